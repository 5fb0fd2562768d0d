// SPDX-License-Identifier: GPL-2.0
//! `make kselftest`: selftest programs in the guest, on functions that belong
//! to user space. With `COMPARE=1` the same on the C driver's kernel, beside it.

use crate::{
    guest::Machine,
    initramfs::Extra,
    kernel::{self, Flavour, Kernel},
    ktap::{Outcome, Point, Report},
    project::{variable, Project},
    qemu::Boot,
    selftests,
    steps::Step,
};
use anyhow::{bail, Result};
use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// The suites, a boot each: what one leaves behind is not the next one's.
const SUITES: [&str; 2] = ["vfio", "s390_iommu"];
/// The suite on mock devices.
const MOCK: &str = "iommufd";
/// The fragment of the configuration that brings these.
pub const FRAGMENT: &str = "kselftest";
/// A boot takes a fraction of this, on a machine that has to share.
const LIMIT: Duration = Duration::from_secs(3600);
/// Room for what the tests map, in GiB.
pub const MEMORY: u32 = 4;
/// And twice as much of IOVA space.
const WORDS: &str = "guest.mode=kselftest s390_iommu_aperture=2";
/// What the tests are run on, beside NVMe, igb and e1000e.
pub const DEVICES: [&str; 3] = [
    // A legacy device of virtio's does no DMA through the IOMMU.
    "virtio-rng-pci,disable-legacy=on,iommu_platform=on",
    "qemu-xhci",
    // Tests with two devices want two that can copy.
    "igb,romfile=",
];

/// What one kernel reported.
struct Results {
    title: &'static str,
    points: Vec<Point>,
    /// What is wrong beside results that are `not ok`.
    faults: Vec<String>,
}

/// `make kselftest`. `APPEND=` adds to the kernel's command line, for example
/// `guest.only=driver_test`.
pub fn run(project: &Project, flavour: &Flavour) -> Result<()> {
    let compare = variable("COMPARE").is_some_and(|value| value != "0");
    if compare && project.kout.is_some() {
        bail!("kselftest: two kernels do not fit into one KOUT=; leave it out");
    }
    let ours = test(project, "this driver", flavour)?;
    let theirs = match compare {
        true => Some(test(project, "the C driver", &with_c_driver(flavour))?),
        false => None,
    };
    print!("\n{}", table(&ours, theirs.as_ref()));
    print!("{}", reasons(&ours));
    for fault in &ours.faults {
        println!("FAIL {fault}");
    }
    println!("{}", summary(&ours.points, ours.faults.len()));
    if !ours.faults.is_empty() || ours.count(&Outcome::Failed) > 0 {
        // The lines above say it all.
        std::process::exit(1);
    }
    Ok(())
}

/// The same configuration, with the other driver.
fn with_c_driver(flavour: &Flavour) -> Flavour {
    let fragment = |name: &String| match name.as_str() {
        "rust" | "module" => "c".to_owned(),
        _ => name.clone(),
    };
    flavour.iter().map(fragment).collect()
}

/// The suites for a kernel of this configuration.
fn suites(flavour: &Flavour) -> Vec<&'static str> {
    let has_mock = flavour.iter().any(|name| name == FRAGMENT);
    SUITES.into_iter().chain(has_mock.then_some(MOCK)).collect()
}

/// Builds a kernel and the programs, and runs all suites.
fn test(project: &Project, title: &'static str, flavour: &Flavour) -> Result<Results> {
    let machine = {
        let kernel = kernel::build(project, flavour)?;
        let programs = programs(project, &kernel)?;
        // The cache is free for others after this.
        Machine::with_files(project, &kernel, &programs)?
    };
    let mut results = Results {
        title,
        points: Vec::new(),
        faults: Vec::new(),
    };
    for suite in suites(flavour) {
        let name = format!("kselftest-{}-{suite}", flavour.join("-"));
        let report = boot(project, &machine, &name, suite)?;
        let console = project.logs.join(format!("{name}.console.log"));
        for fault in report.faults(true) {
            let text = format!("{suite}: {fault}; its console is {}", console.display());
            results.faults.push(text);
        }
        results.points.extend(report.points);
    }
    Ok(results)
}

/// Builds the programs, as files of the guest's root.
pub fn programs(project: &Project, kernel: &Kernel) -> Result<Vec<Extra>> {
    let in_guest = |(name, path)| (format!("kselftest/{name}"), path);
    Ok(selftests::build(project, kernel)?
        .into_iter()
        .map(in_guest)
        .collect())
}

fn boot(project: &Project, machine: &Machine, name: &str, suite: &str) -> Result<Report> {
    let step = Step::start(project, name, "running the selftests in the guest")?;
    let words = variable("APPEND").unwrap_or_default();
    let append = format!("{WORDS} guest.suite={suite} {}", words.to_string_lossy());
    let boot = Boot {
        memory: MEMORY,
        devices: &DEVICES,
        ..machine.boot(name, append, LIMIT)
    };
    let mut program = String::new();
    let report = boot.run(project, |line| {
        if line.starts_with("not ok ") {
            println!("    | {line}");
        } else if let Some(name) = line.strip_prefix("# run: ") {
            // A sign of life for each program.
            if name != program {
                println!("[{:>7.1} s] {name}", step.seconds());
                name.clone_into(&mut program);
            }
        }
    })?;
    step.done(&summary(&report.points, 0));
    Ok(report)
}

impl Results {
    fn count(&self, outcome: &Outcome) -> usize {
        count(&self.points, outcome)
    }
}

fn count<'a>(points: impl IntoIterator<Item = &'a Point>, outcome: &Outcome) -> usize {
    let points = points.into_iter();
    points.filter(|point| point.outcome == *outcome).count()
}

/// One line, with `faults` more failures than the points have.
fn summary(points: &[Point], faults: usize) -> String {
    let number = |outcome| count(points, outcome);
    let passed = number(&Outcome::Passed);
    let failed = number(&Outcome::Failed) + faults;
    let skipped = number(&Outcome::Skipped);
    let known = match number(&Outcome::Known) {
        0 => String::new(),
        known => format!(", {known} known to fail"),
    };
    format!("{passed} passed, {failed} failed, {skipped} skipped{known}")
}

/// What a result belongs to: `vfio: nvme: program` of
/// `vfio: nvme: program: fixture.variant.test`.
fn group(name: &str) -> &str {
    let end = name.match_indices(": ").nth(2).map(|(at, _)| at);
    &name[..end.unwrap_or(name.len())]
}

/// The groups, in the order in which they came.
fn groups(points: &[Point]) -> Vec<(&str, Vec<&Point>)> {
    let mut list: Vec<(&str, Vec<&Point>)> = Vec::new();
    for point in points {
        let name = group(&point.name);
        match list.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(point),
            None => list.push((name, vec![point])),
        }
    }
    list
}

/// How the tests of each group ended, and which of them end otherwise with the
/// other driver.
fn table(ours: &Results, theirs: Option<&Results>) -> String {
    let mut text = String::new();
    let mut line = |cells: &str| {
        let _ = writeln!(text, "{}", cells.trim_end());
    };
    let all: Vec<&Results> = [Some(ours), theirs].into_iter().flatten().collect();
    let titles: String = all.iter().map(|r| format!("  {:<28}", r.title)).collect();
    let columns = "  passed failed known skipped ".repeat(all.len());
    line(&format!("{:<52}{titles}", ""));
    line(&format!("{:<52}{columns}", ""));
    let mut names: Vec<&str> = Vec::new();
    for results in &all {
        for (name, _) in groups(&results.points) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    for name in names {
        let cells: String = all.iter().map(|results| cells(results, name)).collect();
        line(&format!("{name:<52}{cells}"));
    }
    for text in theirs
        .map(|theirs| differences(ours, theirs))
        .unwrap_or_default()
    {
        line(&text);
    }
    text
}

fn cells(results: &Results, name: &str) -> String {
    let list = groups(&results.points);
    let points = list.iter().find(|(known, _)| *known == name);
    let points = points
        .map(|(_, points)| points.as_slice())
        .unwrap_or_default();
    let number = |outcome| count(points.iter().copied(), outcome);
    format!(
        "  {:>6} {:>6} {:>5} {:>7} ",
        number(&Outcome::Passed),
        number(&Outcome::Failed),
        number(&Outcome::Known),
        number(&Outcome::Skipped)
    )
}

/// The tests that do not end as with the other driver.
fn differences(ours: &Results, theirs: &Results) -> Vec<String> {
    let word = |outcome: Option<&Outcome>| match outcome {
        Some(Outcome::Passed) => "passed",
        Some(Outcome::Failed) => "failed",
        Some(Outcome::Skipped) => "skipped",
        Some(Outcome::Known) => "failed as known",
        None => "not run",
    };
    let by_name = |results: &Results| -> BTreeMap<String, Outcome> {
        let points = results.points.iter();
        points
            .map(|p| (p.name.clone(), p.outcome.clone()))
            .collect()
    };
    let (mine, other) = (by_name(ours), by_name(theirs));
    let mut lines = Vec::new();
    for name in mine
        .keys()
        .chain(other.keys().filter(|name| !mine.contains_key(*name)))
    {
        let (mine, other) = (mine.get(name), other.get(name));
        if mine != other {
            let (mine, other) = (word(mine), word(other));
            lines.push(format!(
                "differs: {name}: {} {mine}, {} {other}",
                ours.title, theirs.title
            ));
        }
    }
    lines
}

/// How many were skipped, or failed as is known, for each reason.
fn reasons(results: &Results) -> String {
    let mut text = String::new();
    for (outcome, title) in [
        (Outcome::Skipped, "skipped"),
        (Outcome::Known, "known to fail"),
    ] {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        let points = results.points.iter();
        for point in points.filter(|point| point.outcome == outcome) {
            *reasons.entry(&point.why).or_default() += 1;
        }
        for (why, count) in reasons {
            let _ = writeln!(text, "{title} {count:>4}: {why}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(title: &'static str, lines: &[&str]) -> Results {
        Results {
            title,
            points: Report::parse(lines.iter().copied()).points,
            faults: Vec::new(),
        }
    }

    #[test]
    fn a_group_is_a_program_on_a_function() {
        assert_eq!(group("vfio: nvme: program: a.b: c"), "vfio: nvme: program");
        assert_eq!(group("vfio: nvme: program"), "vfio: nvme: program");
        assert_eq!(group("dmesg: dmesg is clean"), "dmesg: dmesg is clean");
    }

    #[test]
    fn both_drivers_stand_side_by_side() {
        let ours = results(
            "this",
            &["ok 1 v: n: p: x", "ok 2 v: n: p: y # SKIP no card"],
        );
        let theirs = results(
            "that",
            &["not ok 1 v: n: p: x", "ok 2 v: n: p: y # SKIP no card"],
        );
        let text = table(&ours, Some(&theirs));
        let row = text
            .lines()
            .find(|line| line.starts_with("v: n: p"))
            .unwrap();
        let numbers: Vec<&str> = row.split_whitespace().skip(3).collect();
        assert_eq!(numbers, ["1", "0", "0", "1", "0", "1", "0", "1"]);
        assert!(text.contains("differs: v: n: p: x: this passed, that failed\n"));
        assert_eq!(text.matches("differs").count(), 1);
        assert_eq!(reasons(&ours), "skipped    1: no card\n");
        assert_eq!(summary(&ours.points, 0), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn the_configuration_chooses_driver_and_suites() {
        let flavour = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let (plain, mock): (Flavour, Flavour) = (flavour(&["rust"]), flavour(&["rust", FRAGMENT]));
        assert_eq!(suites(&plain), SUITES);
        assert_eq!(suites(&mock).last(), Some(&MOCK));
        assert_eq!(with_c_driver(&mock), ["c", FRAGMENT]);
    }

    #[test]
    fn the_summary_counts_what_is_no_point_as_well() {
        let points = results("this", &["ok 1 a", "ok 2 b # XFAIL as known"]).points;
        let known = "0 skipped, 1 known to fail";
        assert_eq!(summary(&points, 0), format!("1 passed, 0 failed, {known}"));
        assert_eq!(summary(&points, 1), format!("1 passed, 1 failed, {known}"));
    }
}
