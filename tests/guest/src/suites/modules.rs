// SPDX-License-Identifier: GPL-2.0
//! Suites that are kernel modules.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::host;
use crate::ktap::{Suite, skip};
use crate::module::Module;
use crate::sysfs;

/// The support module of the suites, and its PCI driver for the functions under test
const SUPPORT: &str = "iommu_test";
const RESULTS: &str = "/sys/kernel/debug/iommu_test";
/// How a test in L2 asks how many pages L1 has mapped, and the file for the answer
pub const QUESTION: &str = "iommu_test: how many pages are mapped outside?";
pub const ANSWER: &str = "/sys/module/iommu_test/parameters/answer";

/// Runs a suite's module on the NVMe functions, then returns them to their driver and
/// verifies the disk.
pub fn run(suite: &mut Suite, cmdline: &Cmdline, module: &str) -> Result<()> {
    run_with(suite, cmdline, module, "")
}

/// Like [`run`], with parameters for the module.
pub fn run_with(suite: &mut Suite, cmdline: &Cmdline, module: &str, args: &str) -> Result<()> {
    let functions = Function::of_driver("nvme");
    ensure!(!functions.is_empty(), "no PCI function is bound to the driver nvme");
    let borrowed = Borrowed::take(functions)?;
    let result = run_module(suite, cmdline, module, args);
    let disk = borrowed.give_back();
    suite.test("the disk works afterwards", || verify(&disk?));
    result
}

fn run_module(suite: &mut Suite, cmdline: &Cmdline, module: &str, args: &str) -> Result<()> {
    let support = Module::load(SUPPORT, &parameters(cmdline))?;
    let tests = Module::load(module, args)?;
    let results = find_results()?;
    report(suite, &sysfs::read(results)?)?;
    tests.unload()?;
    support.unload()
}

/// Runs one test of a module and returns whether it passes. `fault` is what the host does
/// to the first NVMe function's instructions meanwhile, see [`host::fault`].
pub fn passes(module: &str, test: &str, fault: &str) -> Result<bool> {
    let borrowed = Borrowed::take(Function::of_driver("nvme"))?;
    let result = with_fault(module, test, fault);
    for function in &borrowed.0 {
        // What the machine still caches after a lost refresh must not meet the disk.
        sysfs::write(function.path().join("reset"), "1")?;
    }
    verify(&borrowed.give_back()?)?;
    result
}

fn with_fault(module: &str, test: &str, fault: &str) -> Result<bool> {
    let support = Module::load(SUPPORT, &format!("only=\"{test}\""))?;
    host::fault("nvme", fault)?;
    let before = host::faults_left("nvme")?;
    let tests = Module::load(module, "");
    let left = host::faults_left("nvme")?;
    host::fault("nvme", host::NO_FAULT)?;
    let tests = tests?;
    ensure!(left < before || before == 0, "no instruction failed, so the test is void");
    let text = sysfs::read(find_results()?)?;
    tests.unload()?;
    support.unload()?;
    let mut lines = text.lines();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        bail!("{test}: not one result: {text:?}");
    };
    let (name, result) = parse(line).with_context(|| format!("cannot parse {line:?}"))?;
    ensure!(name == test, "{test}: the result is of {name}");
    match result {
        Ok(()) => Ok(true),
        Err(_) if line.starts_with("not ok") => Ok(false),
        Err(skip) => Err(skip),
    }
}

/// The support module's parameters from the command line: `guest.only=` (parts of the
/// names of the tests to run), `guest.refresh_symbol=` and `guest.calm=`.
fn parameters(cmdline: &Cmdline) -> String {
    let given = ["only", "refresh_symbol", "calm"].into_iter().filter_map(|name| {
        let value = cmdline.value(&format!("guest.{name}"))?;
        Some(format!("{name}={value}"))
    });
    given.collect::<Vec<_>>().join(" ")
}

/// The only results file. Its name is the suite's, which may differ from the module's.
fn find_results() -> Result<PathBuf> {
    let files = sysfs::list(RESULTS);
    files.into_iter().next().with_context(|| format!("no results in {RESULTS}"))
}

fn report(suite: &mut Suite, text: &str) -> Result<()> {
    ensure!(!text.is_empty(), "the module has no results");
    for line in text.lines() {
        let Some((what, result)) = parse(line) else {
            bail!("cannot parse the result {line:?}");
        };
        suite.test(what, || result);
    }
    Ok(())
}

/// Parses a line in the format that `tests/modules/iommu_test.h` describes.
fn parse(line: &str) -> Option<(&str, Result<()>)> {
    if let Some(rest) = line.strip_prefix("not ok ") {
        let (what, why) = rest.split_once(" # ")?;
        return Some((what, Err(anyhow::anyhow!("{why}"))));
    }
    let rest = line.strip_prefix("ok ")?;
    match rest.split_once(" # SKIP ") {
        Some((what, why)) => Some((what, skipped(why))),
        None => Some((rest, Ok(()))),
    }
}

fn skipped(why: &str) -> Result<()> {
    skip!("{why}")
}

fn verify(disk: &Path) -> Result<()> {
    Transfer::new(500, 2 * MIB).verify(disk).map(drop)
}

/// Functions that were unbound from their driver for a test.
struct Borrowed(Vec<Function>);

impl Borrowed {
    fn take(functions: Vec<Function>) -> Result<Self> {
        for function in &functions {
            function.unbind()?;
            function.set_override(SUPPORT)?;
            function.set_reset_method("bus")?;
        }
        Ok(Self(functions))
    }

    /// Rebinds the functions to their driver. Returns the disk of the first one.
    fn give_back(self) -> Result<PathBuf> {
        for function in &self.0 {
            function.unbind()?;
            function.set_override("")?;
            function.set_reset_method("default")?;
            function.probe()?;
        }
        self.0[0].disk()
    }
}
