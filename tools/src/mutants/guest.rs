// SPDX-License-Identifier: GPL-2.0
//! Mutants that only a guest notices: a kernel and a boot for each.

use super::{Mutant, KILLED};
use crate::{
    boots::{FULL, MACHINE},
    ktap::{Outcome, Report},
    prelude::*,
};

const LIMIT: Duration = Duration::from_secs(900);

/// Boots without a mutant, then with each of them.
pub(super) fn run(project: &Project, place: &str, list: &[&Mutant]) -> Result<Count> {
    if list.is_empty() {
        return Ok(Count::default());
    }
    let flavour = match place {
        "debug" => "rust,debug,torture",
        _ => "rust",
    };
    let machine = Machine::prepare(project, flavour)?.corrected(project)?;
    let step = Step::start(project, "mutants-guest", "the named tests without a mutant")?;
    let report = report(project, &machine, &machine.image, place, list)?;
    for mutant in list {
        if outcome(&report, mutant) != Some(Outcome::Passed) {
            step.fail(&mutant.test, "repair it, or its name, first")?;
        }
    }
    step.done("all of them pass");
    let results = list.iter().map(|mutant| {
        let step = Step::start(project, &format!("mutant-{}", mutant.name), &mutant.test)?;
        let found = try_one(&machine, flavour, &step, mutant)?;
        step.done(found);
        Ok(found == KILLED)
    });
    results.collect()
}

fn try_one(machine: &Machine, flavour: &str, step: &Step, mutant: &Mutant) -> Result<&'static str> {
    let project = step.project;
    let root = project.build.join("mutants-guest");
    make_anew(&root)?;
    let from = &project.root;
    let script = "cd \"$0\" && git ls-files -z | xargs -0 cp --parents -t \"$1\"";
    run!(
        step,
        "sh -c {script} {from} {root}",
        "the checkout cannot be copied"
    )?;
    if !mutant.apply(&root, step, false)? {
        return Ok("FAILED: it does not apply");
    }
    let copy = Project {
        root,
        ..project.clone()
    };
    let image = match kernel::build(&copy, flavour) {
        Ok(kernel) => kernel.image,
        // A mutant that does not compile proves nothing about the test.
        Err(_) => return Ok("FAILED: it does not compile"),
    };
    let report = report(project, machine, &image, &mutant.place, &[mutant])?;
    Ok(match outcome(&report, mutant) {
        Some(Outcome::Failed) => KILLED,
        Some(_) => "FAILED: it survives",
        None => "FAILED: its test did not end",
    })
}

/// A boot with the suites of these mutants' tests. What the kernel itself finds needs
/// some load.
fn report(
    project: &Project,
    machine: &Machine,
    image: &Path,
    place: &str,
    list: &[&Mutant],
) -> Result<Report> {
    let mut suites: BTreeSet<&str> = list
        .iter()
        .filter_map(|mutant| Some(mutant.test.split_once(": ")?.0))
        .collect();
    if suites.remove("dmesg") {
        suites.extend(["nvme", "nic", "flush"]);
    }
    let suites = Vec::from_iter(suites).join(",");
    let variant = MACHINE.iter().find(|boot| boot.name == place);
    let mut boot = variant
        .unwrap_or(&FULL)
        .boot(machine, "mutants-guest", LIMIT);
    boot.append += &format!(" guest.suite={suites}");
    boot.image = image;
    boot.run(project, |_| {})
}

fn outcome(report: &Report, mutant: &Mutant) -> Option<Outcome> {
    let mut points = report.points.iter();
    let point = points.find(|point| point.name == mutant.test)?;
    Some(point.outcome)
}
