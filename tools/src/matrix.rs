// SPDX-License-Identifier: GPL-2.0
//! `make matrix`: does the kernel build, without a warning of the driver's, in the
//! configurations that somebody may choose, and by another compiler?

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
    /// Whether gcc compiles the C.
    gcc: bool,
}

impl Row {
    const fn new(name: &'static str, fragments: &'static [&'static str]) -> Self {
        Row {
            name,
            fragments,
            gcc: false,
        }
    }
}

const ROWS: [Row; 9] = [
    Row::new("built in", &["rust"]),
    Row::new("a module", &["module"]),
    Row::new("off: the driver in C", &["c"]),
    Row::new("no debugfs, tracepoints, KUnit", &["bare"]),
    Row::new("a module of these", &["bare", "module"]),
    Row::new("KVM, VFIO_PCI_ZDEV_KVM", &["rust", "kvm"]),
    Row::new("MODVERSIONS", &["module", "modversions"]),
    Row::new("RANDOMIZE_IDENTITY_BASE", &["rust", "identity-base"]),
    Row {
        name: "C by gcc",
        fragments: &["rust"],
        gcc: true,
    },
];

/// Builds every row, or those with `ONLY=` in their names, one after the other in one
/// folder: what two have in common is built once.
pub fn run(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let only = variable("ONLY").unwrap_or_default();
    let only = only.to_string_lossy();
    let mut lines = Vec::new();
    let mut failed = 0;
    for row in ROWS.iter().filter(|row| row.name.contains(&*only)) {
        let start = Instant::now();
        let folder = if row.gcc { "matrix-gcc" } else { "matrix" };
        let project = Project {
            kout: Some(project.cache.join("objects").join(folder)),
            gcc: row.gcc,
            ..project.clone()
        };
        if row.gcc {
            deps::program(&project, deps::GCC, "gcc-s390x-linux-gnu")?;
        }
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
