// SPDX-License-Identifier: GPL-2.0
//! This driver beside the one in C, on the same kernel and in the same suites: what
//! C's does right, this one does right.

use super::Suite;
use crate::{
    boots::{full, Variant, MACHINE, NAMED},
    ktap::{Outcome, Point, Report},
    prelude::*,
};
use std::iter;

/// Suites that both come to the end of, on functions as Debian's emulator has them.
const USUAL: Variant = full(
    "usual",
    "iommu.strict=1 guest.suite=nvme,nic,dma,remap,attach,flush,pressure",
    "",
);
/// The machine refuses instructions at random.
const REFUSALS: Variant = full(
    "refusals",
    "guest.suite=refusals guest.rounds=4 nvme_core.admin_timeout=10",
    NAMED,
);
/// The other boots for both: of those of `PART=machine`.
const SPECIAL: [&str; 3] = ["identity", "windows", "vfs"];
/// What suites measure is for the reader: the host may be busy.
const FIGURE: &str = "an interrupt waited";
const LIMIT: Duration = Duration::from_secs(600);

impl Suite<'_> {
    /// Boots both. What C's driver fails at is shown, and is no failure of ours.
    pub(super) fn peer(&mut self) {
        let ours = self.peer_reports("rust", &self.project.flavour);
        let c = self.peer_reports("c", "c");
        self.step("peer", "comparing with the driver in C", |_| {
            let mut count = Count::default();
            for (ours, c) in iter::zip(ours?, c?) {
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
                count.passed += passed - worse.len();
                count.failed += worse.len();
            }
            Ok(count)
        });
    }

    /// The results of a driver in each of the boots.
    fn peer_reports(&mut self, driver: &str, flavour: &str) -> Result<Vec<Report>> {
        // The previous kernel locks the cache.
        self.kernel = None;
        let machine = Machine::prepare(self.project, flavour)?.corrected(self.project)?;
        let special = MACHINE.iter().filter(|boot| SPECIAL.contains(&boot.name));
        let reports = [&USUAL, &REFUSALS].into_iter().chain(special);
        let reports = reports.map(|variant| {
            let name = format!("peer-{driver}-{}", variant.name);
            let boot = variant.boot(&machine, &name, LIMIT);
            let mut report = None;
            self.step(&name, "running suites of the guest", |step| {
                let run = boot.run(step.project, |line| {
                    if line.contains(FIGURE) {
                        println!("    | {line}");
                    }
                });
                // The driver in C may stop on machines that it was not made for.
                let may_stop = driver == "c" && variant.name != USUAL.name;
                let read = match run {
                    Err(error) if may_stop => {
                        println!("    | {error:#}");
                        Report::default()
                    }
                    run => run?,
                };
                let read = report.insert(read);
                let ended = read.status.is_some() && read.plan == Some(read.points.len());
                Ok(match ended {
                    false if may_stop => Count {
                        skipped: 1,
                        ..Count::default()
                    },
                    ended => Count::one(ended),
                })
            });
            report.with_context(|| format!("{name} did not boot"))
        });
        reports.collect()
    }
}

/// The tests that the other passes and we do not.
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
