// SPDX-License-Identifier: GPL-2.0
//! `make mutants`: each patch of `tests/mutations` breaks one thing in a copy of the
//! driver, and the test that the patch names must fail there.

mod guest;

use crate::{
    deps,
    project::{variable, Project},
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A test that takes longer hangs, in seconds; it was passed in a few before.
const LIMIT: &str = "120";
/// What is copied: the driver, and the tests of the host.
const COPIED: [&str; 11] = [
    "",
    "address_space",
    "dma_table",
    "function",
    "rust",
    "rust/iommu",
    "zpci",
    "tests/host",
    "tests/host/kernel",
    "tests/host/kernel/src",
    "tests/host/src",
];
/// How the summary of a run begins in which all tests passed.
const ALL_PASSED: &str = "test result: ok. ";

/// Where a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Host,
    Model,
    /// Needs a kernel for each mutant.
    Guest,
    /// Needs the kernel of `make torture` for each.
    Debug,
}

/// A patch, and the test that finds what it breaks.
#[derive(Debug)]
struct Mutant {
    name: String,
    patch: PathBuf,
    place: Place,
    test: String,
}

impl Mutant {
    fn read(patch: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&patch)?;
        let killer = text.lines().find_map(|l| l.strip_prefix("Killed-by: "));
        let (place, test) = killer
            .and_then(parse)
            .with_context(|| format!("{}: which test kills it?", patch.display()))?;
        Ok(Mutant {
            name: patch
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            patch,
            place,
            test,
        })
    }

    fn apply(&self, tree: &Path, step: &Step, check_only: bool) -> Result<bool> {
        let mut command = Command::new("git");
        command.arg("apply").args(check_only.then_some("--check"));
        // Not the repository that the copy happens to lie in.
        command.env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree));
        step.check(command.arg(&self.patch).current_dir(tree))
    }
}

fn parse(killer: &str) -> Option<(Place, String)> {
    let (place, test) = killer.split_once(' ')?;
    let place = match place {
        "host" => Place::Host,
        "model" => Place::Model,
        "guest" => Place::Guest,
        "debug" => Place::Debug,
        _ => return None,
    };
    Some((place, test.to_owned()))
}

fn mutants(project: &Project) -> Result<Vec<Mutant>> {
    let folder = project.root.join("tests/mutations");
    let mut patches: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("{} is not there", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    patches.retain(|path| path.extension().is_some_and(|kind| kind == "patch"));
    patches.sort();
    patches.into_iter().map(Mutant::read).collect()
}

/// Those of the patches that apply to the driver as it is, and all: for `make test`.
pub fn check(project: &Project, step: &Step) -> Result<(usize, usize)> {
    let list = mutants(project)?;
    let tree = copy(project)?;
    let mut good = 0;
    for mutant in &list {
        good += usize::from(mutant.apply(&tree, step, true)?);
    }
    Ok((good, list.len()))
}

/// `make mutants`; `ONLY=` takes those that have it in their names.
pub fn run(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let mut list = mutants(project)?;
    if let Some(part) = variable("ONLY") {
        list.retain(|mutant| mutant.name.contains(&*part.to_string_lossy()));
    }
    let tree = copy(project)?;
    let step = Step::start(project, "mutants", "the named tests without a mutant")?;
    for place in [Place::Host, Place::Model] {
        let of_place = |m: &&Mutant| m.place == place;
        let tests: BTreeSet<&str> = list.iter().filter(of_place).map(|m| &*m.test).collect();
        let tests: Vec<_> = tests.into_iter().collect();
        if tests.is_empty() {
            continue;
        }
        if !build(project, &tree, &step, place)? || !passes(project, &tree, &step, place, &tests)? {
            step.fail(
                "a test that nothing was broken for",
                "repair it, or its name, first",
            )?;
        }
    }
    step.done("all of them pass");

    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let (others, guests): (Vec<_>, Vec<_>) = list
        .iter()
        .partition(|mutant| matches!(mutant.place, Place::Host | Place::Model));
    for mutant in others {
        let step = Step::start(project, &format!("mutant-{}", mutant.name), &mutant.test)?;
        let outcome = try_one(project, &tree, &step, mutant)?;
        step.done(outcome);
        match outcome {
            "killed" => passed += 1,
            _ => failed += 1,
        }
        copy(project)?;
    }
    // Minutes for each, so only those that are named.
    if variable("ONLY").is_none() {
        skipped = guests.len();
        println!("           {skipped} that need a guest are skipped; ONLY=guest and ONLY=debug take them");
    } else {
        for place in [Place::Guest, Place::Debug] {
            let of_place = guests.iter().copied().filter(|m| m.place == place);
            let (killed, survived) = guest::run(project, place, &of_place.collect::<Vec<_>>())?;
            (passed, failed) = (passed + killed, failed + survived);
        }
    }
    println!();
    match skipped {
        0 => println!("{passed} passed, {failed} failed"),
        _ => println!("{passed} passed, {failed} failed, {skipped} skipped"),
    }
    if failed > 0 || passed == 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn try_one(project: &Project, tree: &Path, step: &Step, mutant: &Mutant) -> Result<&'static str> {
    if !mutant.apply(tree, step, false)? {
        return Ok("FAILED: it does not apply");
    }
    // What does not compile says nothing of the test.
    if !build(project, tree, step, mutant.place)? {
        return Ok("FAILED: it does not compile");
    }
    if passes(project, tree, step, mutant.place, &[&mutant.test])? {
        return Ok("FAILED: it survives");
    }
    // Not what ran out of time or memory.
    match fs::read_to_string(step.log())?.contains("panicked at") {
        true => Ok("killed"),
        false => Ok("FAILED: its test did not end"),
    }
}

/// Copies the driver and the host's tests, over what a patch changed.
fn copy(project: &Project) -> Result<PathBuf> {
    let tree = project.build.join("mutants");
    // The seeds of what failed for one mutant are not for the next.
    let _ = fs::remove_dir_all(tree.join("tests/host/proptest-regressions"));
    for folder in COPIED {
        fs::create_dir_all(tree.join(folder))?;
        for entry in fs::read_dir(project.root.join(folder))? {
            let from = entry?.path();
            let kind = from.extension().unwrap_or_default();
            if from.is_file() && ["rs", "toml", "lock"].iter().any(|k| kind == *k) {
                let to = tree.join(folder).join(from.file_name().unwrap_or_default());
                crate::steps::write_if_changed(&to, &fs::read(&from)?)?;
            }
        }
    }
    Ok(tree)
}

fn cargo(project: &Project, tree: &Path, place: Place) -> Command {
    let mut command = project.command("timeout");
    command.args(["--kill-after=5", LIMIT]).arg(&project.cargo);
    command.args(["test", "--release", "--locked"]);
    command.arg("--manifest-path");
    command.arg(tree.join("tests/host/Cargo.toml"));
    let target = project.build.join("target/mutants");
    if place == Place::Model {
        command.env("RUSTFLAGS", "--cfg loom");
        command.env("CARGO_TARGET_DIR", target.with_extension("flags"));
    } else {
        command.env("CARGO_TARGET_DIR", target);
    }
    command
}

fn build(project: &Project, tree: &Path, step: &Step, place: Place) -> Result<bool> {
    step.check(cargo(project, tree, place).arg("--no-run"))
}

/// Whether all of the tests were there and passed.
fn passes(
    project: &Project,
    tree: &Path,
    step: &Step,
    place: Place,
    tests: &[&str],
) -> Result<bool> {
    let before = fs::read_to_string(step.log())?.len();
    let mut command = cargo(project, tree, place);
    command.args(["--", "--exact"]).args(tests);
    if !step.status(&mut command)? {
        return Ok(false);
    }
    let log = fs::read_to_string(step.log())?;
    let summary = log[before..].find(ALL_PASSED).map(|at| &log[before + at..]);
    let count = format!("{ALL_PASSED}{} passed;", tests.len());
    match summary {
        Some(summary) if summary.starts_with(&count) => Ok(true),
        _ => bail!("{place:?}: one of these tests is not there: {tests:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killers_are_named() {
        let (place, test) = parse("model threads::widen").unwrap();
        assert_eq!((place, &*test), (Place::Model, "threads::widen"));
        let (place, test) = parse("guest dma: a page").unwrap();
        assert_eq!((place, &*test), (Place::Guest, "dma: a page"));
        assert!(parse("nothing").is_none());
        assert!(parse("somewhere else").is_none());
    }
}
