// SPDX-License-Identifier: GPL-2.0
//! Mutants that only a guest notices: a kernel and a boot for each.

use super::{Mutant, Place};
use crate::{
    guest::Machine,
    kernel::{self, Flavour},
    ktap::{Outcome, Report},
    project::Project,
    qemu::Boot,
    steps::Step,
};
use anyhow::Result;
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

const LIMIT: Duration = Duration::from_secs(900);
const KUNIT: &str = "kunit.enable=1 kunit.autorun=1 kunit.filter_glob=s390_iommu*";

/// Boots without a mutant, then with each. Returns how many were killed, and how many
/// were not.
pub(super) fn run(project: &Project, place: Place, list: &[&Mutant]) -> Result<(usize, usize)> {
    if list.is_empty() {
        return Ok((0, 0));
    }
    let fragments: &[&str] = match place {
        Place::Debug => &["rust", "debug", "torture"],
        _ => &["rust"],
    };
    let flavour: Flavour = fragments.iter().map(|name| (*name).to_owned()).collect();
    let machine = Machine::prepare(project, &flavour)?;
    let step = Step::start(project, "mutants-guest", "the named tests without a mutant")?;
    let report = report(project, &machine, &machine.image, list)?;
    for mutant in list {
        if outcome(&report, mutant) != Some(&Outcome::Passed) {
            step.fail(&mutant.test, "repair it, or its name, first")?;
        }
    }
    step.done("all of them pass");
    let mut killed = 0;
    for mutant in list {
        let step = Step::start(project, &format!("mutant-{}", mutant.name), &mutant.test)?;
        let found = try_one(project, &machine, &flavour, &step, mutant)?;
        killed += usize::from(found == "killed");
        step.done(found);
    }
    Ok((killed, list.len() - killed))
}

fn try_one(
    project: &Project,
    machine: &Machine,
    flavour: &Flavour,
    step: &Step,
    mutant: &Mutant,
) -> Result<&'static str> {
    let root = project.build.join("mutants-guest");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    let mut copy = project.command("sh");
    copy.current_dir(&project.root)
        .args(["-c", "git ls-files -z | xargs -0 cp --parents -t \"$0\""]);
    step.run(copy.arg(&root), "the checkout cannot be copied")?;
    if !mutant.apply(&root, step, false)? {
        return Ok("FAILED: it does not apply");
    }
    let copy = Project {
        root,
        ..project.clone()
    };
    let image = match kernel::build(&copy, flavour) {
        Ok(kernel) => kernel.image,
        // What does not compile says nothing of the test.
        Err(_) => return Ok("FAILED: it does not compile"),
    };
    let report = report(project, machine, &image, &[mutant])?;
    Ok(match outcome(&report, mutant) {
        Some(Outcome::Failed) => "killed",
        Some(_) => "FAILED: it survives",
        None => "FAILED: its test did not end",
    })
}

/// A boot with the suites of these mutants' tests. What a kernel finds by itself it
/// finds while there is something to do.
fn report(project: &Project, machine: &Machine, image: &Path, list: &[&Mutant]) -> Result<Report> {
    let mut suites: BTreeSet<&str> = list
        .iter()
        .filter_map(|mutant| Some(mutant.test.split_once(": ")?.0))
        .collect();
    if suites.remove("dmesg") {
        suites.extend(["nvme", "nic", "flush"]);
    }
    let suites = Vec::from_iter(suites).join(",");
    let append = format!("guest.mode=test {KUNIT} guest.suite={suites}");
    let boot = Boot {
        image,
        plugged: &["nvme", "igb", "e1000e", "nvme1"],
        generators: 6,
        processors: 4,
        ..machine.boot("mutants-guest", append, LIMIT)
    };
    boot.run(project, |_| {})
}

fn outcome<'a>(report: &'a Report, mutant: &Mutant) -> Option<&'a Outcome> {
    let mut points = report.points.iter();
    let point = points.find(|point| point.name == mutant.test)?;
    Some(&point.outcome)
}
