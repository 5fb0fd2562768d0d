// SPDX-License-Identifier: GPL-2.0
//! This driver beside the one in C, on the same kernel and in the same suites: what
//! C's does right, this one does right.

use super::Suite;
use crate::{
    ktap::{Outcome, Point, Report},
    prelude::*,
};

/// The suites that both come to the end of.
const SUITES: &str = "nvme,nic,dma,remap,attach,flush,pressure";
/// What suites measure is for the reader: the host may be busy.
const FIGURE: &str = "an interrupt waited";
const LIMIT: Duration = Duration::from_secs(900);

impl Suite<'_> {
    /// Boots both. What C's driver fails at is shown, and is no failure of ours.
    pub(super) fn peer(&mut self) -> Result<()> {
        let ours = self.peer_report("peer-rust", &self.project.flavour);
        let c = self.peer_report("peer-c", "c");
        self.step("peer", "comparing with the driver in C", |_| {
            let (ours, c) = (ours?, c?);
            let worse = worse(&ours, &c);
            for name in &worse {
                println!("    | the driver in C does it, this one does not: {name}");
            }
            let passed = c.count(Outcome::Passed);
            println!(
                "    | this driver passes {} of {}, the one in C {passed}",
                ours.count(Outcome::Passed),
                ours.points.len(),
            );
            Ok(Count {
                passed: passed - worse.len(),
                failed: worse.len(),
                skipped: 0,
            })
        });
        Ok(())
    }

    fn peer_report(&mut self, name: &str, flavour: &str) -> Result<Report> {
        // The one before holds the cache.
        self.kernel = None;
        let machine = Machine::prepare(self.project, flavour)?.corrected(self.project)?;
        let append = format!("guest.mode=test iommu.strict=1 guest.suite={SUITES}");
        let boot = machine.boot(name, append, LIMIT);
        let mut report = None;
        self.step(name, "running suites of the guest", |step| {
            let seen = report.insert(boot.run(step.project, |line| {
                if line.contains(FIGURE) {
                    println!("    | {line}");
                }
            })?);
            let ended = seen.status.is_some() && seen.plan == Some(seen.points.len());
            Ok(Count::one(ended))
        });
        report.with_context(|| format!("{name} did not boot"))
    }
}

/// What the other passes and we do not.
fn worse<'a>(ours: &Report, other: &'a Report) -> Vec<&'a str> {
    let passed = |point: &&Point| point.outcome == Outcome::Passed;
    let names = other.points.iter().filter(passed).map(|p| p.name.as_str());
    names
        .filter(|name| !ours.points.iter().filter(passed).any(|p| p.name == *name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_other_does_is_asked_of_us() {
        let ours = Report::parse(["ok 1 a", "not ok 2 b", "ok 3 c # SKIP why"]);
        let other = Report::parse(["not ok 1 a", "ok 2 b", "ok 3 c", "ok 4 d"]);
        assert_eq!(worse(&ours, &other), ["b", "c", "d"]);
        assert!(worse(&ours, &ours).is_empty());
    }
}
