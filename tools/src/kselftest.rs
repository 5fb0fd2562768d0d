// SPDX-License-Identifier: GPL-2.0
//! `make kselftest`: selftest programs in the guest, on functions that belong
//! to user space. With `COMPARE=1` the same on the C driver's kernel, beside it.

use crate::{
    kernel::with_driver,
    ktap::{count, Outcome, Point, Report},
    prelude::*,
    project::is_set,
    selftests,
};

/// The suites, a boot each, so that none affects the next one.
const SUITES: [&str; 2] = ["vfio", "s390_iommu"];
/// The suite on mock devices.
const MOCK: &str = "iommufd";
/// The fragment of the configuration that brings these.
const FRAGMENT: &str = "kselftest";
/// A boot takes a fraction of this, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(3600);
/// The guest's memory in GiB, for what the tests map.
const MEMORY: u32 = 4;
/// The IOVA space is twice as large.
const ARGUMENTS: &str = "guest.mode=kselftest s390_iommu_aperture=2";
/// What the tests are run on, beside NVMe, igb and e1000e. A legacy device of virtio's does
/// no DMA through the IOMMU. Tests with two devices want two that can copy.
pub const DEVICES: &str = "-device virtio-rng-pci,disable-legacy=on,iommu_platform=on \
    -device qemu-xhci -device igb,romfile=";

struct Results {
    title: &'static str,
    points: Vec<Point>,
    faults: Vec<String>,
}

/// `make kselftest`. `APPEND=` adds to the kernel's command line, for example
/// `guest.only=driver_test`.
pub fn run(project: &Project) -> Result<()> {
    let compare = is_set("COMPARE");
    if compare {
        project.ensure_no_kout("kselftest")?;
    }
    let mut all = vec![test(project, "this driver", &project.flavour)?];
    if compare {
        let flavour = with_driver(&project.flavour, "c");
        all.push(test(project, "the C driver", &flavour)?);
    }
    let ours = &all[0];
    println!("\n{}", table(&all).join("\n"));
    for line in reasons(&ours.points) {
        println!("{line}");
    }
    for fault in &ours.faults {
        println!("FAIL {fault}");
    }
    println!("{}", summary(&ours.points, ours.faults.len()));
    if !ours.faults.is_empty() || count(&ours.points, Outcome::Failed) > 0 {
        // The lines above say it all.
        std::process::exit(1);
    }
    Ok(())
}

fn test(project: &Project, title: &'static str, flavour: &str) -> Result<Results> {
    let machine = {
        let kernel = kernel::build(project, flavour)?;
        let programs = selftests::build(project, &kernel)?;
        // The cache is free for others after this.
        Machine::with_files(project, &kernel, &programs)?
    };
    let mut results = Results {
        title,
        points: Vec::new(),
        faults: Vec::new(),
    };
    let has_mock = flavour.split(',').any(|name| name == FRAGMENT);
    for suite in SUITES.into_iter().chain(has_mock.then_some(MOCK)) {
        let name = format!("kselftest-{}-{suite}", flavour.replace(',', "-"));
        let report = boot(project, &machine, &name, suite)?;
        let console = project.console(&name);
        for fault in report.faults(true) {
            let text = format!("{suite}: {fault}; its console is {console}");
            results.faults.push(text);
        }
        results.points.extend(report.points);
    }
    Ok(results)
}

fn boot(project: &Project, machine: &Machine, name: &str, suite: &str) -> Result<Report> {
    let step = Step::start(project, name, "running the selftests in the guest")?;
    let append = format!("{ARGUMENTS} guest.suite={suite} {}", more_arguments());
    let boot = Boot {
        memory: MEMORY,
        devices: DEVICES,
        ..machine.boot(name, append, LIMIT)
    };
    let mut program = String::new();
    let report = boot.run(project, |line| {
        if line.starts_with("not ok ") {
            println!("    | {line}");
        } else if let Some(name) = line.strip_prefix("# run: ").filter(|name| *name != program) {
            // A sign of life for each program.
            println!("[{:>7.1} s] {name}", step.seconds());
            program = name.to_owned();
        }
    })?;
    step.done(&summary(&report.points, 0));
    Ok(report)
}

/// One line, with `faults` more failures than the points have.
fn summary(points: &[Point], faults: usize) -> String {
    let number = |outcome| count(points, outcome);
    let passed = number(Outcome::Passed);
    let failed = number(Outcome::Failed) + faults;
    let skipped = number(Outcome::Skipped);
    let known = match number(Outcome::Known) {
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

/// The results of each group of tests, in the order of their first test, and the tests
/// with another result on the other driver.
fn table(all: &[Results]) -> Vec<String> {
    let titles: String = all.iter().map(|r| format!("  {:<28}", r.title)).collect();
    let columns = "  passed failed known skipped ".repeat(all.len());
    let mut lines = vec![
        format!("{:<52}{titles}", ""),
        format!("{:<52}{columns}", ""),
    ];
    let mut names: Vec<&str> = Vec::new();
    for point in all.iter().flat_map(|results| &results.points) {
        let name = group(&point.name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let cells = all.iter().map(|results| {
            let number = |outcome| {
                let points = results.points.iter();
                count(points.filter(|p| group(&p.name) == name), outcome)
            };
            let (passed, failed) = (number(Outcome::Passed), number(Outcome::Failed));
            let (known, skipped) = (number(Outcome::Known), number(Outcome::Skipped));
            format!("  {passed:>6} {failed:>6} {known:>5} {skipped:>7} ")
        });
        lines.push(format!("{name:<52}{}", cells.collect::<String>()));
    }
    if let [ours, theirs] = all {
        lines.extend(differences(ours, theirs));
    }
    lines
        .iter()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// The tests with another result than on the other driver.
fn differences(ours: &Results, theirs: &Results) -> Vec<String> {
    let word = |outcome: Option<&Outcome>| match outcome {
        Some(Outcome::Passed) => "passed",
        Some(Outcome::Failed) => "failed",
        Some(Outcome::Skipped) => "skipped",
        Some(Outcome::Known) => "failed as known",
        None => "not run",
    };
    let by_name = |results: &'_ Results| -> BTreeMap<String, Outcome> {
        let points = results.points.iter();
        points.map(|p| (p.name.clone(), p.outcome)).collect()
    };
    let (mine, other) = (by_name(ours), by_name(theirs));
    let names: BTreeSet<&String> = mine.keys().chain(other.keys()).collect();
    let lines = names.into_iter().filter_map(|name| {
        let (mine, other) = (word(mine.get(name)), word(other.get(name)));
        let (a, b) = (ours.title, theirs.title);
        (mine != other).then(|| format!("differs: {name}: {a} {mine}, {b} {other}"))
    });
    lines.collect()
}

/// How many were skipped or are known to fail, for each reason.
fn reasons(points: &[Point]) -> Vec<String> {
    let mut reasons: BTreeMap<(usize, &str), usize> = BTreeMap::new();
    for point in points {
        match point.outcome {
            Outcome::Skipped => *reasons.entry((0, &point.why)).or_default() += 1,
            Outcome::Known => *reasons.entry((1, &point.why)).or_default() += 1,
            _ => {}
        }
    }
    let titles = ["skipped", "known to fail"];
    let line = |((kind, why), count)| format!("{} {count:>4}: {why}", titles[kind]);
    reasons.into_iter().map(line).collect()
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
    fn both_drivers_stand_side_by_side() {
        let skip = "ok 2 v: n: p: y # SKIP no card";
        let all = [
            results("this", &["ok 1 v: n: p: x", skip]),
            results("that", &["not ok 1 v: n: p: x", skip]),
        ];
        let lines = table(&all);
        let numbers: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(numbers.join(" "), "v: n: p 1 0 0 1 0 1 0 1");
        assert_eq!(
            lines[3..],
            ["differs: v: n: p: x: this passed, that failed"]
        );
        assert_eq!(reasons(&all[0].points), ["skipped    1: no card"]);
    }

    #[test]
    fn the_summary_counts_what_is_no_point_as_well() {
        let points = results("this", &["ok 1 a", "ok 2 b # XFAIL as known"]).points;
        let known = "0 skipped, 1 known to fail";
        assert_eq!(summary(&points, 0), format!("1 passed, 0 failed, {known}"));
        assert_eq!(summary(&points, 1), format!("1 passed, 1 failed, {known}"));
    }
}
