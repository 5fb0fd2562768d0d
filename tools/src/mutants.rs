// SPDX-License-Identifier: GPL-2.0
//! `make mutants`: breaks the code on purpose, by one patch of `tests/mutations/`
//! after the other, and sees whether the test fails that the patch names.
//!
//! A patch says what it breaks and who notices:
//!
//! ```text
//! Killed-by: host ranges::marks::a_page_marks_its_chunk
//! ```
//!
//! `host` are the tests of `tests/host`, `model` the same built for loom. Without the
//! change each named test has to pass, and with it the program has to build: a
//! mutant that does not compile was not noticed by a test.

use crate::{
    lint,
    patches::{self, Patch},
    project::Project,
    steps::Step,
};
use anyhow::{bail, ensure, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const MARK: &str = "Killed-by: ";

/// A change, and the test that has to fail with it.
struct Mutant {
    patch: Patch,
    /// Whether the test is one of the model's.
    model: bool,
    test: String,
}

impl Mutant {
    fn read(patch: Patch) -> Result<Self> {
        let line = patch.text.lines().find_map(|line| line.strip_prefix(MARK));
        let killer = line.and_then(|line| line.split_once(' '));
        let (part, test) = killer.with_context(|| format!("{}: no {MARK:?}", patch.name))?;
        let (model, test) = (part == "model", test.to_owned());
        ensure!(
            model || part == "host",
            "{}: {part:?} is no part",
            patch.name
        );
        Ok(Self { patch, model, test })
    }

    fn name(&self) -> &str {
        self.patch.name.trim_end_matches(".patch")
    }
}

/// A copy of what the tests are made of, to be broken.
struct Copy<'p> {
    project: &'p Project,
    folder: PathBuf,
}

impl<'p> Copy<'p> {
    fn make(project: &'p Project) -> Result<Self> {
        let folder = project.root.join("build/mutants");
        if folder.exists() {
            fs::remove_dir_all(&folder).context("cannot remove build/mutants")?;
        }
        let list = Command::new("git")
            .args(["ls-files", "*.rs", "tests/host"])
            .current_dir(&project.root)
            .output()
            .context("cannot run git")?;
        for name in String::from_utf8(list.stdout)?.lines() {
            if name.contains('/') && !name.starts_with("tests/host/") {
                continue;
            }
            let to = folder.join(name);
            fs::create_dir_all(to.parent().unwrap_or(&folder))?;
            fs::copy(project.root.join(name), &to)
                .with_context(|| format!("cannot copy {name}"))?;
        }
        Ok(Self { project, folder })
    }

    fn patch(&self, patch: &Path, options: &[&str]) -> Result<bool> {
        let status = Command::new("patch")
            .args(["-p1", "--batch", "--fuzz=0", "--silent"])
            .args(options)
            .arg("-i")
            .arg(patch)
            .current_dir(&self.folder)
            .status()
            .context("cannot run patch")?;
        Ok(status.success())
    }

    /// cargo test, of one test or of none.
    fn test(&self, step: &Step, model: bool, arguments: &[&str]) -> Result<bool> {
        let host = self.folder.join("tests/host");
        let mut target = lint::target_folder(self.project, &host);
        let mut command = self.project.command(&self.project.cargo);
        if model {
            target = target.with_extension("flags");
            command.env("RUSTFLAGS", "--cfg loom");
        }
        command
            .args(["test", "--release", "--locked", "--manifest-path"])
            .arg(host.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", target)
            .args(arguments);
        step.status(&mut command)
    }

    /// Whether a test that is there passes.
    fn passes(&self, step: &Step, model: bool, test: &str) -> Result<bool> {
        self.test(step, model, &["--", "--exact", test])
    }

    /// Whether a mutant is noticed.
    fn kills(&self, step: &Step, mutant: &Mutant) -> Result<bool> {
        ensure!(
            self.patch(&mutant.patch.path, &[])?,
            "the patch does not apply"
        );
        let built = self.test(step, mutant.model, &["--no-run"])?;
        let killed = built && !self.passes(step, mutant.model, &mutant.test)?;
        ensure!(
            self.patch(&mutant.patch.path, &["-R"])?,
            "the patch cannot be taken back"
        );
        ensure!(built, "it does not compile");
        Ok(killed)
    }
}

/// All mutants, or those whose names begin with one of `MUTANT=a,b`.
pub fn check(project: &Project) -> Result<(usize, usize)> {
    let chosen =
        crate::project::variable("MUTANT").map(|names| names.to_string_lossy().into_owned());
    let is_chosen = |mutant: &Mutant| match &chosen {
        Some(names) => names.split(',').any(|name| mutant.name().starts_with(name)),
        None => true,
    };
    let patches = patches::read(&project.root.join("tests/mutations"))?;
    let mutants: Result<Vec<_>> = patches.into_iter().map(Mutant::read).collect();
    let mutants: Vec<_> = mutants?.into_iter().filter(is_chosen).collect();
    ensure!(
        !mutants.is_empty(),
        "there is no such mutant in tests/mutations"
    );
    count(project, &mutants)
}

/// `make mutants`.
pub fn run(project: &Project) -> Result<()> {
    let (passed, all) = check(project)?;
    let failed = all - passed;
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("mutants: {failed} not noticed; make the tests named above fail with them");
    }
    Ok(())
}

/// Tries mutants; how many are noticed, and how many there are.
fn count(project: &Project, mutants: &[Mutant]) -> Result<(usize, usize)> {
    let step = Step::start(project, "mutants", "the tests, without a change")?;
    let copy = Copy::make(project)?;
    for mutant in mutants {
        let passes = copy.passes(&step, mutant.model, &mutant.test)?;
        ensure!(
            passes,
            "{}: {} fails without it",
            mutant.name(),
            mutant.test
        );
    }
    step.done("all pass");
    let mut failed = 0;
    for mutant in mutants {
        let step = Step::start(project, &format!("mutant-{}", mutant.name()), &mutant.test)?;
        match copy.kills(&step, mutant) {
            Ok(true) => step.done("noticed"),
            Ok(false) => {
                failed += 1;
                step.done("NOT NOTICED");
            }
            Err(error) => {
                failed += 1;
                step.done(&format!("FAILED: {error:#}"));
            }
        }
    }
    Ok((mutants.len() - failed, mutants.len()))
}
