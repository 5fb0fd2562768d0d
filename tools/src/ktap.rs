// SPDX-License-Identifier: GPL-2.0
//! What the guest reports: KTAP on a console that the kernel writes to as
//! well. Subtests are skipped; the results of the top level include them.

use crate::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its number in the plan.
    pub number: usize,
    pub name: String,
    pub outcome: Outcome,
    /// The comment on it, for example the reason of a skip.
    pub why: String,
}

#[derive(Debug, Default)]
pub struct Report {
    /// What `1..N` promised.
    pub plan: Option<usize>,
    pub points: Vec<Point>,
    /// The status of the last line, `guest: done status=N`.
    pub status: Option<i32>,
    /// The message of a kernel panic.
    pub panic: Option<String>,
}

impl Report {
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut report = Self::default();
        for line in lines {
            report.line(line.trim_end());
        }
        report
    }

    fn line(&mut self, line: &str) {
        let own = printed(line);
        if let Some(text) = own.strip_prefix("1..") {
            self.plan = self
                .plan
                .or_else(|| text.split_whitespace().next()?.parse().ok());
        } else if let Some(text) = own.strip_prefix("guest: done status=") {
            self.status = text.trim().parse().ok();
        } else if let Some(point) = point(own) {
            self.points.push(point);
        } else if line.contains("Kernel panic - not syncing") {
            self.panic.get_or_insert_with(|| line.trim().to_owned());
        }
    }

    pub fn count(&self, outcome: Outcome) -> usize {
        count(&self.points, outcome)
    }

    /// The counts of the results; what is known to fail does not count.
    pub fn tally(&self) -> Count {
        Count {
            passed: self.count(Outcome::Passed),
            failed: self.count(Outcome::Failed),
            skipped: self.count(Outcome::Skipped),
        }
    }

    /// The same with all other faults as failures; these are shown.
    pub fn judge(&self, step: &Step, more: Option<String>) -> Count {
        let faults: Vec<_> = self.faults(true).into_iter().chain(more).collect();
        step.show(&faults.join("\n"));
        let mut count = self.tally();
        count.failed += faults.len();
        count
    }

    pub fn faults(&self, wants_plan: bool) -> Vec<String> {
        let mut list = Vec::from_iter(self.panic.clone());
        match self.status {
            Some(0) => {}
            // A failed test says so itself.
            Some(_) if self.count(Outcome::Failed) > 0 => {}
            Some(status) => list.push(format!("the guest ended with status {status}")),
            None => list.push("the guest did not come to its end".into()),
        }
        let reported = self.points.len();
        let mut numbers = self.points.iter().zip(1..);
        match self.plan {
            _ if !wants_plan => {}
            None => list.push("the guest printed no plan".into()),
            Some(0) => list.push("the guest's plan is empty".into()),
            Some(plan) if plan != reported => {
                list.push(format!("{plan} tests were planned and {reported} reported"))
            }
            Some(_) if numbers.any(|(point, number)| point.number != number) => {
                list.push("the test numbers are not in order".into());
            }
            Some(_) => {}
        }
        list
    }
}

pub fn count<'a>(points: impl IntoIterator<Item = &'a Point>, outcome: Outcome) -> usize {
    let points = points.into_iter();
    points.filter(|point| point.outcome == outcome).count()
}

/// What a program printed: a message of the kernel, which begins with its time, may come
/// before the end of a line.
pub fn printed(line: &str) -> &str {
    let is_time = |at: &usize| {
        let time = line[at + 1..].split_once(']').map(|(time, _)| time);
        time.is_some_and(|time| time.contains('.') && time.trim_start().parse::<f64>().is_ok())
    };
    let mut brackets = line.match_indices('[').map(|(at, _)| at);
    &line[..brackets.find(is_time).unwrap_or(line.len())]
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
    let directive = directive.trim();
    // All else is no directive.
    let is_there = |word: &&str| {
        let start = directive.get(..word.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    let word = ["SKIP", "XFAIL"].into_iter().find(is_there).unwrap_or("");
    Some(Point {
        number,
        name: name.trim().trim_start_matches("- ").to_owned(),
        outcome: match (ok, word) {
            (false, _) => Outcome::Failed,
            (true, "SKIP") => Outcome::Skipped,
            (true, "XFAIL") => Outcome::Known,
            (true, _) => Outcome::Passed,
        },
        why: directive[word.len()..].trim().to_owned(),
    })
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
        assert_eq!(report.tally().to_string(), "2 passed, 0 failed, 1 skipped");
        let point = &report.points[1];
        assert_eq!((&*point.name, &*point.why), ("nic", "no card"));
        assert!(report.faults(true).is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let faults = |lines: &[&str]| Report::parse(lines.iter().copied()).faults(true);
        let done = "guest: done status=0";
        let panic = "Kernel panic - not syncing: Oops";
        assert_eq!(faults(&["1..2", "ok 1 a", panic]).len(), 3);
        assert_eq!(faults(&[]).len(), 2);
        assert_eq!(Report::parse([]).faults(false).len(), 1);
        for (lines, fault) in [
            (
                &["1..2", "ok 1 a", "ok 1 a", done][..],
                "the test numbers are not in order",
            ),
            (
                &["1..1", "ok 1 a", "ok 2 b", done],
                "1 tests were planned and 2 reported",
            ),
            (
                &["1..1", "ok 1 a", "guest: done status=3"],
                "the guest ended with status 3",
            ),
        ] {
            assert_eq!(faults(lines), [fault]);
        }
        // A failed test is counted.
        let failed = ["1..1", "not ok 1 a # sums differ", "guest: done status=1"];
        assert!(faults(&failed).is_empty());
    }

    #[test]
    fn a_message_before_the_end_of_a_line_is_cut() {
        let message = "[  415.887627] pci_bus 0001:00: busn_res: [bus 00] is released";
        for line in ["guest: want plug nvme", "ok 1 map[3] of 2.5 [MiB]"] {
            assert_eq!(printed(line), line);
            assert_eq!(printed(&format!("{line}{message}")), line);
        }
        let lines =
            ["1..1", "ok 1 a", "guest: done status=0"].map(|line| format!("{line}{message}"));
        let report = Report::parse(lines.iter().map(String::as_str));
        assert_eq!(report.points[0].name, "a");
        assert!(report.faults(true).is_empty());
    }

    #[test]
    fn a_skip_that_failed_has_failed() {
        let outcome = |line| point(line).unwrap().outcome;
        assert_eq!(outcome("not ok 1 a # SKIP why"), Outcome::Failed);
        assert_eq!(outcome("ok 1 a # XFAIL no huge pages"), Outcome::Known);
        assert_eq!(point("ok then"), None);
    }
}
