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
mod project;
mod qemu;
mod readme;
mod selftests;
mod series;
mod source;
mod steps;
mod suite;

use anyhow::{bail, Result};
use project::{is_set, text, Project};
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
    let project = &Project::open()?;
    let flavour = &project.flavour(match command {
        "kselftest" => &["rust", kselftest::FRAGMENT],
        _ => &["rust"],
    })?;
    match command {
        "run" => guest::run(project, flavour),
        "test" => suite::run(project, flavour),
        "kselftest" => kselftest::run(project, flavour),
        "bench" => bench::run(project),
        "passthrough" => passthrough::run(project, flavour),
        "torture" => suite::torture::run(project, flavour),
        "mutants" => mutants::run(project),
        "kernel" => kernel::build(project, flavour).map(|kernel| kernel::print_places(&kernel)),
        "matrix" => matrix::run(project),
        "machine" => machine::run(project),
        "guest" => guest::shell(project, flavour),
        "integrate" => kernel::integrate_only(project),
        "series" => series::run(project),
        "modules" => modules::build(project),
        "modules-install" => modules::install(project),
        "fmt" => lint::format(project),
        "clippy" | "checkpatch" => suite::only(project, flavour, &[command]),
        "rustdoc" => lint::rustdoc(project, flavour),
        "htmldocs" => lint::htmldocs(project),
        "clean" => clean::clean(project),
        "bare" => bare::run(project),
        _ => bail!("there is no command {command:?}; make help lists them"),
    }
}

impl Project {
    /// The configuration to build: `CONFIG=a,b` names files of `tools/config/`,
    /// `MODULE=1` is the driver as a module instead of built in.
    fn flavour(&self, default: &[&str]) -> Result<kernel::Flavour> {
        let mut default = default.join(",");
        if is_set("MODULE") {
            default = default.replace("rust", "module");
        }
        let text = text("CONFIG").unwrap_or(default);
        let names = kernel::flavour(&text);
        for name in &names {
            let path = self.root.join(format!("tools/config/{name}.config"));
            if name == "base" || !path.is_file() {
                bail!("CONFIG={text}: there is no {}", path.display());
            }
        }
        Ok(names)
    }
}
