// SPDX-License-Identifier: GPL-2.0
//! What the guest reports: KTAP on a console that the kernel writes to as
//! well. Subtests are read past; the top level's results include them.

/// A line of the console without what the terminal and the kernel's clock add.
fn clean(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`
    Passed,
    /// `not ok`
    Failed,
    /// `ok ... # SKIP`
    Skipped,
    /// `ok ... # XFAIL`: failed for a reason that is on record
    Known,
}

/// A test point of the top level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its number in the plan.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What is said of it, for example the reason of a skip.
    pub why: String,
}

/// All that one boot reported.
#[derive(Debug, Default)]
pub struct Report {
    /// What `1..N` promised.
    pub plan: Option<usize>,
    /// The results, in the order in which they came.
    pub points: Vec<Point>,
    /// The status of the last line, `guest: done status=N`.
    pub status: Option<i32>,
    /// A kernel that died.
    pub panic: Option<String>,
}

impl Report {
    /// Reads a whole console.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut report = Self::default();
        for line in lines {
            report.line(clean(line));
        }
        report
    }

    fn line(&mut self, line: &str) {
        if let Some(text) = line.strip_prefix("1..") {
            self.plan = self
                .plan
                .or_else(|| text.split_whitespace().next()?.parse().ok());
        } else if let Some(text) = line.strip_prefix("guest: done status=") {
            self.status = text.trim().parse().ok();
        } else if let Some(point) = point(line) {
            self.points.push(point);
        } else if line.contains("Kernel panic - not syncing") {
            self.panic.get_or_insert_with(|| line.trim().to_owned());
        }
    }

    /// How many ended so.
    pub fn count(&self, outcome: &Outcome) -> usize {
        self.points.iter().filter(|p| p.outcome == *outcome).count()
    }

    /// What is wrong beside results that are `not ok`.
    pub fn faults(&self, wants_plan: bool) -> Vec<String> {
        let mut list = Vec::new();
        if let Some(text) = &self.panic {
            list.push(text.clone());
        }
        match self.status {
            Some(0) => {}
            // A failed test says so itself.
            Some(_) if self.count(&Outcome::Failed) > 0 => {}
            Some(status) => list.push(format!("the guest ended with status {status}")),
            None => list.push("the guest did not come to its end".into()),
        }
        if wants_plan {
            match self.plan {
                None => list.push("the guest printed no plan".into()),
                Some(0) => list.push("the guest's plan is empty".into()),
                Some(plan) if plan != self.points.len() => list.push(format!(
                    "{plan} tests were planned and {} reported",
                    self.points.len()
                )),
                Some(_) => {}
            }
            let in_order = self.points.iter().map(|p| p.number);
            if self.plan == Some(self.points.len()) && !in_order.eq(1..=self.points.len()) {
                list.push("the test numbers are not in order".into());
            }
        }
        list
    }
}

/// `ok 1 name`, `not ok 2 - name # why`, `ok 3 name # SKIP why`.
fn point(line: &str) -> Option<Point> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let number = number.parse().ok()?;
    let (name, directive) = rest.split_once(" #").unwrap_or((rest, ""));
    let (word, why) = split_directive(directive.trim());
    let name = name.trim().trim_start_matches("- ").to_owned();
    let outcome = match (ok, word) {
        (true, "SKIP") => Outcome::Skipped,
        (true, "XFAIL") => Outcome::Known,
        (true, _) => Outcome::Passed,
        (false, _) => Outcome::Failed,
    };
    let why = why.to_owned();
    Some(Point {
        number,
        name,
        outcome,
        why,
    })
}

/// `SKIP why` and `XFAIL why`; all else is no directive.
fn split_directive(text: &str) -> (&'static str, &str) {
    for word in ["SKIP", "XFAIL"] {
        let start = text.get(..word.len());
        if start.is_some_and(|start| start.eq_ignore_ascii_case(word)) {
            return (word, text[word.len()..].trim());
        }
    }
    ("", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[    0.1] Linux version 7.3\r\nKTAP version 1\r\n1..3\r\n\
        # nvme: 64 MiB\r\n    KTAP version 1\r\n    1..2\r\n    not ok 1 inner\r\n    ok 2 inner\r\n\
        ok 1 nvme\r\nok 2 - nic # SKIP no card\r\n[    9.9] ok 7 is a kernel's line\r\nok 3 dmesg is clean\r\n\
        guest: done status=0\r\n";

    #[test]
    fn a_good_run() {
        let report = Report::parse(GOOD.lines());
        assert_eq!(report.plan, Some(3));
        assert_eq!(report.count(&Outcome::Passed), 2);
        assert_eq!(report.count(&Outcome::Skipped), 1);
        assert_eq!(report.points[1].name, "nic");
        assert_eq!(report.points[1].why, "no card");
        assert_eq!(report.status, Some(0));
        assert!(report.faults(true).is_empty());
    }

    #[test]
    fn a_failed_test_is_counted_not_a_fault() {
        let report = Report::parse([
            "1..1",
            "not ok 1 nvme # sums differ",
            "guest: done status=1",
        ]);
        assert_eq!(report.count(&Outcome::Failed), 1);
        assert!(report.faults(true).is_empty());
    }

    #[test]
    fn an_end_that_did_not_come_is_a_fault() {
        let report = Report::parse(["1..2", "ok 1 a", "Kernel panic - not syncing: Oops"]);
        assert_eq!(report.faults(true).len(), 3);
        assert_eq!(Report::parse([]).faults(true).len(), 2);
        assert_eq!(Report::parse([]).faults(false).len(), 1);
    }

    #[test]
    fn numbers_and_plan_must_agree() {
        let twice = Report::parse(["1..2", "ok 1 a", "ok 1 a", "guest: done status=0"]);
        assert_eq!(twice.faults(true), ["the test numbers are not in order"]);
        let more = Report::parse(["1..1", "ok 1 a", "ok 2 b", "guest: done status=0"]);
        assert_eq!(more.faults(true), ["1 tests were planned and 2 reported"]);
        let status = Report::parse(["1..1", "ok 1 a", "guest: done status=3"]);
        assert_eq!(status.faults(true), ["the guest ended with status 3"]);
    }

    #[test]
    fn a_skip_that_failed_has_failed() {
        assert_eq!(
            point("not ok 1 a # SKIP why").unwrap().outcome,
            Outcome::Failed
        );
        assert_eq!(point("ok 1").unwrap().name, "");
        assert_eq!(point("ok then"), None);
        let known = point("ok 1 a # XFAIL no huge pages").unwrap();
        assert_eq!(
            (known.outcome, known.why.as_str()),
            (Outcome::Known, "no huge pages")
        );
    }
}
