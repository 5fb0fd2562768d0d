// SPDX-License-Identifier: GPL-2.0
//! Fetches, builds, boots and tests what this project needs. The `Makefile`
//! calls it; `make help` is the manual.

mod apt;
mod bare;
mod bench;
mod clean;
mod deps;
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
use clap::{Parser, Subcommand};
use project::Project;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds and boots twice, lazy and strict, with real transfers
    Run,
    /// Every check and test, with a summary
    Test,
    /// The kernel's selftests of VFIO and iommufd, and our own
    Kselftest,
    /// What map, unmap and flush cost, beside the C driver
    Bench,
    /// Gives drives to a guest inside the guest
    Passthrough,
    /// The suites on a kernel that finds mistakes, storms, failing allocations
    Torture,
    /// Breaks the code on purpose and sees whether the tests notice
    Mutants,
    /// Builds the kernel only and says where it is
    Kernel,
    /// Builds the kernel in configurations that somebody may choose
    Matrix,
    /// Builds an emulator whose functions are as real machines have them
    Machine,
    /// Boots to a shell
    Guest,
    /// Puts the driver into a kernel tree
    Integrate,
    /// Writes the driver as patches for the kernel's lists
    Series,
    /// Builds the driver as an external module for KDIR=
    Modules,
    /// Installs that module
    ModulesInstall,
    /// Formats all Rust
    Fmt,
    /// Clippy on all Rust
    Clippy,
    /// The kernel's checkpatch on all C
    Checkpatch,
    /// The driver's documentation
    Rustdoc,
    /// The pages of Documentation/ as HTML
    Htmldocs,
    /// Removes what was built, keeps downloads
    Clean,
    /// Runs a command in a bare Debian
    Bare,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    let project = Project::open()?;
    let flavour = project.flavour(match command {
        Command::Kselftest => &["rust", kselftest::FRAGMENT],
        _ => &["rust"],
    })?;
    match command {
        Command::Run => guest::run(&project, &flavour),
        Command::Test => suite::run(&project, &flavour),
        Command::Kselftest => kselftest::run(&project, &flavour),
        Command::Bench => bench::run(&project),
        Command::Passthrough => passthrough::run(&project, &flavour),
        Command::Torture => suite::torture::run(&project, &flavour),
        Command::Mutants => mutants::run(&project),
        Command::Kernel => {
            let kernel = kernel::build(&project, &flavour)?;
            kernel::print_places(&kernel);
            Ok(())
        }
        Command::Matrix => matrix::run(&project),
        Command::Machine => machine::run(&project),
        Command::Guest => guest::shell(&project, &flavour),
        Command::Integrate => kernel::integrate_only(&project),
        Command::Series => series::run(&project),
        Command::Modules => modules::build(&project),
        Command::ModulesInstall => modules::install(&project),
        Command::Fmt => lint::format(&project),
        Command::Clippy => suite::only(&project, &flavour, &[suite::Part::Clippy]),
        Command::Checkpatch => suite::only(&project, &flavour, &[suite::Part::Checkpatch]),
        Command::Rustdoc => lint::rustdoc(&project, &flavour),
        Command::Htmldocs => lint::htmldocs(&project),
        Command::Clean => clean::clean(&project),
        Command::Bare => bare::run(&project),
    }
}

impl Project {
    /// The configuration to build: `CONFIG=a,b` names files of `tools/config/`,
    /// `MODULE=1` is the driver as a module instead of built in.
    fn flavour(&self, default: &[&str]) -> Result<kernel::Flavour> {
        let module = project::variable("MODULE").is_some_and(|value| value != "0");
        let text = match project::variable("CONFIG") {
            Some(value) => value.to_string_lossy().into_owned(),
            None if module => default.join(",").replace("rust", "module"),
            None => default.join(","),
        };
        let names: kernel::Flavour = text.split([',', ' ']).map(str::to_owned).collect();
        for name in &names {
            let path = self.root.join(format!("tools/config/{name}.config"));
            if name == "base" || !path.is_file() {
                bail!("CONFIG={text}: there is no {}", path.display());
            }
        }
        Ok(names)
    }
}
