// SPDX-License-Identifier: GPL-2.0
//! `make mutants`: each patch of `tests/mutations` breaks one thing in a copy of the
//! driver, and the test that the patch names must fail there.

mod guest;

use crate::{integrate, prelude::*};

/// How long a test may take, in seconds; without a mutant it takes a few.
const LIMIT: &str = "120";
/// The tests of the host.
const TESTS: &str = "tests/host";
/// The kinds of files that these and the driver need.
const KINDS: [&str; 3] = ["rs", "toml", "lock"];
/// How the summary of a run begins if all tests passed.
const ALL_PASSED: &str = "test result: ok. ";
const KILLED: &str = "killed";

/// Where tests run. The last three need a kernel for each mutant: `guest` the usual one,
/// `debug` that of `make torture`, `levels` the usual one on that machine of
/// `PART=machine`.
const PLACES: [&str; 5] = ["host", "model", "guest", "debug", "levels"];

/// A patch, and the test that finds what it breaks.
struct Mutant {
    name: String,
    patch: PathBuf,
    place: String,
    test: String,
}

impl Mutant {
    fn read(patch: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&patch)?;
        let killer = text.lines().find_map(|l| l.strip_prefix("Killed-by: "));
        let (place, test) = killer
            .and_then(|killer| killer.split_once(' '))
            .filter(|(place, _)| PLACES.contains(place))
            .with_context(|| format!("{patch}: which test kills it?"))?;
        Ok(Mutant {
            name: name_of(&patch.with_extension("")),
            place: place.to_owned(),
            test: test.to_owned(),
            patch,
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

fn mutants(project: &Project) -> Result<Vec<Mutant>> {
    let patches = paths_of_kind(&project.root.join("tests/mutations"), "patch")?;
    patches.into_iter().map(Mutant::read).collect()
}

/// Whether the patches apply to the driver as it is: for `make test`.
pub fn check(step: &Step) -> Result<Count> {
    let tree = copy(step)?;
    let list = mutants(step)?.into_iter();
    list.map(|mutant| mutant.apply(&tree, step, true)).collect()
}

/// `make mutants`; `ONLY=` takes those with this in their names.
pub fn run(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let mut list = mutants(project)?;
    let only = text("ONLY");
    list.retain(|mutant| only.as_ref().is_none_or(|part| mutant.name.contains(part)));
    let tree = copy(project)?;
    let step = Step::start(project, "mutants", "the named tests without a mutant")?;
    for place in &PLACES[..2] {
        let of_place = list.iter().filter(|mutant| mutant.place == *place);
        let tests: BTreeSet<&str> = of_place.map(|mutant| &*mutant.test).collect();
        let tests = Vec::from_iter(tests);
        if tests.is_empty() {
            continue;
        }
        if !build(&step, &tree, place)? || !passes(&step, &tree, place, &tests)? {
            let what = "a test that nothing was broken for";
            step.fail(what, "repair it, or its name, first")?;
        }
    }
    step.done("all of them pass");

    let mut count = Count::default();
    let (others, guests): (Vec<_>, Vec<_>) = list
        .iter()
        .partition(|mutant| PLACES[..2].contains(&&*mutant.place));
    for mutant in others {
        let step = Step::start(project, &format!("mutant-{}", mutant.name), &mutant.test)?;
        let outcome = try_one(&step, &tree, mutant)?;
        step.done(outcome);
        count += Count::one(outcome == KILLED);
        copy(project)?;
    }
    // Minutes for each, so only those that are named.
    if only.is_none() {
        count.skipped = guests.len();
        println!(
            "           {} that need a guest are skipped; ONLY=guest and ONLY=debug take them",
            count.skipped
        );
    } else {
        for place in &PLACES[2..] {
            let of_place = guests.iter().copied().filter(|m| m.place == *place);
            count += guest::run(project, place, &of_place.collect::<Vec<_>>())?;
        }
    }
    println!();
    count.finish();
    Ok(())
}

fn try_one(step: &Step, tree: &Path, mutant: &Mutant) -> Result<&'static str> {
    if !mutant.apply(tree, step, false)? {
        return Ok("FAILED: it does not apply");
    }
    // A mutant that does not compile proves nothing about the test.
    if !build(step, tree, &mutant.place)? {
        return Ok("FAILED: it does not compile");
    }
    if passes(step, tree, &mutant.place, &[&mutant.test])? {
        return Ok("FAILED: it survives");
    }
    // A test that ran out of time or memory did not find it.
    match fs::read_to_string(step.log())?.contains("panicked at") {
        true => Ok(KILLED),
        false => Ok("FAILED: its test did not end"),
    }
}

/// Copies the driver and the host's tests, over what a patch changed.
fn copy(project: &Project) -> Result<PathBuf> {
    let tree = project.build.join("mutants");
    // The failing seeds of one mutant are not for the next.
    let _ = fs::remove_dir_all(tree.join(TESTS).join("proptest-regressions"));
    let driver = integrate::driver_files(&project.root)?;
    let tests = files_below(&project.root.join(TESTS))?.into_iter();
    let tests = tests.filter(|file| !file.starts_with("fuzz/") && !file.contains("target/"));
    for file in driver
        .into_iter()
        .chain(tests.map(|file| format!("{TESTS}/{file}")))
    {
        if KINDS.contains(&file.rsplit('.').next().unwrap_or_default()) {
            write_if_changed(&tree.join(&file), fs::read(project.root.join(&file))?)?;
        }
    }
    Ok(tree)
}

fn cargo(step: &Step, tree: &Path, place: &str) -> Command {
    let cargo = &step.cargo;
    let mut command = command!(
        step,
        "timeout --kill-after=5 {LIMIT} {cargo} test --release --locked
            --manifest-path {tree}/{TESTS}/Cargo.toml"
    );
    let target = step.build.join("target/mutants");
    if place == "model" {
        command.env("RUSTFLAGS", "--cfg loom");
        command.env("CARGO_TARGET_DIR", target.with_extension("flags"));
    } else {
        command.env("CARGO_TARGET_DIR", target);
    }
    command
}

fn build(step: &Step, tree: &Path, place: &str) -> Result<bool> {
    step.check(cargo(step, tree, place).arg("--no-run"))
}

/// Whether all of the tests were there and passed.
fn passes(step: &Step, tree: &Path, place: &str, tests: &[&str]) -> Result<bool> {
    let mut command = cargo(step, tree, place);
    command.args(["--", "--exact"]).args(tests);
    let (good, output) = step.attempt(&mut command)?;
    let mut lines = output.lines();
    let summary = lines.find(|line| line.starts_with(ALL_PASSED));
    let count = format!("{ALL_PASSED}{} passed;", tests.len());
    if good && !summary.is_some_and(|line| line.starts_with(&count)) {
        bail!("{place}: one of these tests is not there: {tests:?}");
    }
    Ok(good)
}
