// SPDX-License-Identifier: GPL-2.0
//! Fetches, builds, boots and tests what this project needs. The `Makefile`
//! calls it; `make help` is the manual.

mod apt;
mod bare;
mod bench;
mod boots;
mod clean;
mod count;
mod deps;
mod files;
mod guest;
mod hash;
mod hotplug;
mod initramfs;
mod inner;
mod integrate;
mod kernel;
mod kselftest;
mod ktap;
mod lint;
mod machine;
mod matrix;
mod modules;
mod mutants;
mod passthrough;
mod patches;
mod prelude;
mod project;
mod qemu;
mod readme;
mod selftests;
mod series;
mod source;
mod steps;
mod suite;

use anyhow::{bail, Result};
use project::Project;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(&std::env::args().nth(1).unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str) -> Result<()> {
    let project = &Project::open(match command {
        "kselftest" => "rust,kselftest",
        _ => "rust",
    })?;
    match command {
        "run" => guest::run(project),
        "test" => suite::run(project),
        "kselftest" => kselftest::run(project),
        "bench" => bench::run(project),
        "passthrough" => passthrough::run(project),
        "torture" => suite::torture::run(project),
        "mutants" => mutants::run(project),
        "kernel" => kernel::print_places(project),
        "matrix" => matrix::run(project),
        "machine" => machine::run(project),
        "guest" => guest::shell(project),
        "integrate" => kernel::integrate_only(project),
        "series" => series::run(project),
        "modules" => modules::build(project),
        "modules-install" => modules::install(project),
        "fmt" => lint::format(project),
        "clippy" | "checkpatch" => suite::only(project, &[command]),
        "rustdoc" => lint::rustdoc(project),
        "htmldocs" => lint::htmldocs(project),
        "clean" => clean::clean(project),
        "bare" => bare::run(project),
        _ => bail!("there is no command {command:?}; make help lists them"),
    }
}
