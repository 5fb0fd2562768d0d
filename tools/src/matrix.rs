// SPDX-License-Identifier: GPL-2.0
//! `make matrix`: does the kernel build, without a warning of the driver's, in the
//! configurations that somebody may choose?

use crate::{
    deps,
    kernel::{self, Flavour},
    project::{variable, Project},
    steps::Step,
};
use anyhow::Result;
use std::{fs, time::Instant};

/// A configuration: what it is called, and its fragments.
struct Row {
    name: &'static str,
    fragments: &'static [&'static str],
}

const ROWS: [Row; 8] = [
    Row {
        name: "built in",
        fragments: &["rust"],
    },
    Row {
        name: "a module",
        fragments: &["module"],
    },
    Row {
        name: "off: the driver in C",
        fragments: &["c"],
    },
    Row {
        name: "no debugfs, tracepoints, KUnit",
        fragments: &["bare"],
    },
    Row {
        name: "a module of these",
        fragments: &["bare", "module"],
    },
    Row {
        name: "KVM, VFIO_PCI_ZDEV_KVM",
        fragments: &["rust", "kvm"],
    },
    Row {
        name: "MODVERSIONS",
        fragments: &["module", "modversions"],
    },
    Row {
        name: "RANDOMIZE_IDENTITY_BASE",
        fragments: &["rust", "identity-base"],
    },
];

/// Builds every row, or those with `ONLY=` in their names, one after the other in one
/// folder: what two have in common is built once.
pub fn run(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let only = variable("ONLY").unwrap_or_default();
    let only = only.to_string_lossy();
    let project = Project {
        kout: Some(project.cache.join("objects/matrix")),
        ..project.clone()
    };
    let mut lines = Vec::new();
    let mut failed = 0;
    for row in ROWS.iter().filter(|row| row.name.contains(&*only)) {
        let start = Instant::now();
        let flavour: Flavour = row
            .fragments
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        let word = match try_row(&project, &flavour) {
            Ok(0) => "builds".to_owned(),
            Ok(count) => format!("{count} warnings"),
            Err(error) => {
                println!("error: {error:#}");
                "FAILS".to_owned()
            }
        };
        failed += usize::from(word != "builds");
        let seconds = start.elapsed().as_secs();
        lines.push(format!("{:<32} {word:<12} {seconds:>5} s", row.name));
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    println!("{} passed, {failed} failed", lines.len() - failed);
    if failed > 0 || lines.is_empty() {
        std::process::exit(1);
    }
    Ok(())
}

/// Builds with W=1 for the folder of the driver, and counts its warnings.
fn try_row(project: &Project, flavour: &Flavour) -> Result<usize> {
    let kernel = kernel::build(project, flavour)?;
    let step = Step::start(project, "warnings", "the driver's folder with W=1")?;
    let folder = format!("{}/", crate::integrate::PLACE);
    // What is up to date is not compiled again.
    let _ = fs::remove_dir_all(kernel.objects.join(crate::integrate::PLACE));
    step.run(
        kernel
            .make(project)
            .args([&format!("-j{}", project.jobs), "W=1", &folder]),
        "correct what the compiler says",
    )?;
    let log = fs::read_to_string(step.log())?;
    // The compiler says this of its own target, for every crate.
    let ours = |line: &&str| line.starts_with("warning: ") && !line.contains("unstable feature");
    let summary =
        |line: &&str| !line.contains("warning emitted") && !line.contains("warnings emitted");
    let c = log.matches(": warning: ").count();
    let count = log.lines().filter(ours).filter(summary).count() + c;
    step.done(&format!("{count} warnings"));
    Ok(count)
}
