// SPDX-License-Identifier: GPL-2.0
//! `make series`: patches for the kernel's lists, one series in each folder of
//! `build/series/`.
//!
//! `integration/series/order` names the patches of the driver. Each is one of
//! `integration/patches`, taken as it is, or one of `integration/series`: its
//! `Files:` are added as they are in the checkout, then its diff is applied.
//! The fixes of the kernel's selftests are a series of their own.
//! Git makes the commits, the patches and the test of them, in a repository of
//! those files alone that change: the tree they are for stays untouched.

use crate::{
    count::Count,
    deps,
    files::{files_below, name_of, write_if_changed},
    integrate::{self, integrate},
    lint,
    patches::{self, Patch},
    project::Project,
    source::{self, Source},
    steps::Step,
};
use anyhow::{bail, Context, Result};
use fs_err as fs;
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// The series of the driver.
const DRIVER: &str = "driver";
/// The patches that are made of the checkout's files.
const PARTS: &str = "integration/series";
const COVER: &str = "Documentation/cover-letter.rst";
/// The fixes of the kernel's selftests.
const FIXES: &str = "integration/selftests";
const FIXES_COVER: &str = "integration/selftests/cover-letter.rst";
/// What checkpatch has against them: an `asm/io.h` takes pointers to volatile as all do,
/// and page sizes are those of an architecture.
const FIXES_IGNORED: &str = "--ignore=VOLATILE,ARCH_DEFINES";
/// The pages, in the checkout, and where they lie in a kernel tree.
const PAGES: (&str, &str) = (lint::PAGES, "Documentation/arch/s390/iommu");
/// Stands for whoever sends the patches.
const SENDER: &str = "@SENDER@";
/// No more words for git.
const NOTHING: [&str; 0] = [];

pub fn run(project: &Project) -> Result<()> {
    for name in ["git", "patch"] {
        deps::program(project, name, name)?;
    }
    let step = Step::start(project, "series", "writing patches, and applying them")?;
    let who = |key: &str| {
        let mut command = step.command("git");
        command.current_dir(&project.root).args(["config", key]);
        let advice = format!("git config --global {key} says who signs the patches off");
        step.output(&mut command, &advice)
    };
    let sender = (who("user.name")?, who("user.email")?);
    let (_, list) = make(&step, "series", &sender)?;
    step.done(&format!("{} patches below build/series", list.len()));
    Ok(())
}

/// The same, whoever the caller is, and checkpatch on each.
pub fn check(step: &Step) -> Result<Count> {
    let (source, list) = make(step, "series-test", &nobody())?;
    let files = list
        .iter()
        .map(|path| ((!is_of_driver(path)).then_some(FIXES_IGNORED), path));
    let mut count = lint::checkpatch_on(step, &source.tree, files)?;
    count += Count::one(true);
    Ok(count)
}

/// The patches of the driver, in a folder that a command may use for a while.
pub fn patches_for(step: &Step) -> Result<Vec<Patch>> {
    let mut list = make(step, "series-steps", &nobody())?.1;
    list.retain(|path| is_of_driver(path));
    list.into_iter().map(Patch::read).collect()
}

fn is_of_driver(patch: &Path) -> bool {
    patch
        .parent()
        .is_some_and(|folder| folder.ends_with(DRIVER))
}

fn nobody() -> (String, String) {
    ("Nobody Known".into(), "nobody@example.org".into())
}

/// Writes all series into a folder below `build/`, and makes sure of them: `git am`
/// takes them, each file of the driver's has a maintainer, and what it leaves is what
/// `make integrate` makes. Others are not left behind.
fn make(
    step: &Step,
    folder: &str,
    (name, email): &(String, String),
) -> Result<(Source, Vec<PathBuf>)> {
    let project = step.project;
    let folder = project.build.join(folder);
    let _ = fs::remove_dir_all(&folder);
    // A tree of the caller's is only read.
    let lock = project.kdir.is_none().then(|| project.lock()).transpose()?;
    let source = source::find(project)?;
    drop(lock);
    let scratch = tempfile::tempdir_in(&project.build).context("no temporary folder")?;
    let driver = read(&project.root)?;
    let fixes = patches::read(&project.root.join(FIXES))?;
    let mut list = Vec::new();
    for (series, cover, patches, how) in [
        (DRIVER, COVER, &driver, "--rfc"),
        ("selftests", FIXES_COVER, &fixes, "--numbered"),
    ] {
        let git = Git {
            step,
            tree: scratch.path().join(series),
            sender: format!("{} <{}>", name.trim(), email.trim()),
        };
        copy_changed(&source, patches, &git.tree)?;
        git.run("init --quiet --initial-branch=main", NOTHING)?;
        git.run("config user.name", [name.trim()])?;
        git.run("config user.email", [email.trim()])?;
        git.commit("base")?;
        git.run("checkout --quiet -b series", NOTHING)?;
        patches.iter().try_for_each(|patch| git.make(patch))?;
        let written = git.write(
            &letter(&project.root.join(cover))?,
            &scratch.path().join("patches").join(series),
            how,
        )?;
        git.run("checkout --quiet -b sent main", NOTHING)?;
        git.run("am --quiet", &written)?;
        git.run("diff --exit-code series sent", NOTHING)?;
        if series == DRIVER {
            git.find_maintainers(&source)?;
            if !lint::write_pages(step, &git.tree.join(PAGES.1), "series-htmldocs")? {
                bail!("pages of the series: correct what sphinx says");
            }
            compare(&git, &source, patches, &scratch.path().join("integrated"))?;
        }
        let place = |path: &PathBuf| folder.join(series).join(name_of(path));
        list.extend(written.iter().map(place));
    }
    fs::rename(scratch.path().join("patches"), &folder)?;
    Ok((source, list))
}

/// Whether the series makes what `make integrate` makes.
fn compare(git: &Git, source: &Source, patches: &[Patch], integrated: &Path) -> Result<()> {
    copy_changed(source, patches, integrated)?;
    integrate(&git.step.project.root, &Source::of_caller(integrated))?;
    let mut diff = git.step.command("diff");
    // No build needs the pages and MAINTAINERS, so that only the series has them.
    let other = [".git", ".integrated-*", "Documentation", "MAINTAINERS"];
    diff.args(["--recursive", "--brief"]);
    diff.args(other.map(|name| format!("--exclude={name}")));
    let advice = "what the series makes has to be what make integrate makes";
    git.step.run(diff.arg(integrated).arg(&git.tree), advice)
}

/// The files of a released tree that patches change.
fn copy_changed(source: &Source, patches: &[Patch], tree: &Path) -> Result<()> {
    let changed = patches.iter().flat_map(Patch::files);
    for (file, _) in changed.chain([("Makefile", false), ("MAINTAINERS", false)]) {
        if let Some(text) = source.pristine_text(file) {
            write_if_changed(&tree.join(file), &text)?;
        }
    }
    Ok(())
}

/// The patches in the order of the list, which has to name all that there are.
fn read(root: &Path) -> Result<Vec<Patch>> {
    let order = fs::read_to_string(root.join(PARTS).join("order"))?;
    let mut all = integrate::patches(root)?;
    all.extend(patches::read(&root.join(PARTS))?);
    let mut list = Vec::new();
    for line in order.lines().filter(|line| line.ends_with(".patch")) {
        let place = all.iter().position(|patch| patch.name == line);
        list.push(all.remove(place.with_context(|| format!("{PARTS}/order: no {line}"))?));
    }
    if let Some(patch) = all.first() {
        bail!("{PARTS}/order does not name {}", patch.name);
    }
    Ok(list)
}

/// Adds a file of the checkout, or all of a folder, where a kernel tree has it.
fn add(root: &Path, tree: &Path, file: &str) -> Result<()> {
    let from = root.join(file);
    if from.is_dir() {
        let mut below = files_below(&from)?.into_iter();
        return below.try_for_each(|name| add(root, tree, &format!("{file}/{name}")));
    }
    let there = |(folder, place)| Some(format!("{place}{}", file.strip_prefix(folder)?));
    let moved = [PAGES, integrate::SELFTESTS].into_iter().find_map(there);
    let to = moved.unwrap_or(format!("{}/{file}", integrate::PLACE));
    write_if_changed(&tree.join(to), fs::read(&from)?).map(drop)
}

/// The page as a letter: its title is the subject.
fn letter(page: &Path) -> Result<String> {
    let text = fs::read_to_string(page)?;
    let (_, text) = text.split_once("=\n").context("a letter has a title")?;
    let (title, text) = text.split_once('\n').context("a letter has a text")?;
    let text = text.trim_start_matches(['=', '\n']).replace("``", "");
    Ok(format!("{title}\n\n{text}"))
}

/// A repository that is thrown away.
struct Git<'a> {
    step: &'a Step<'a>,
    tree: PathBuf,
    /// Who signs the patches off.
    sender: String,
}

impl Git<'_> {
    /// Runs a command on it, whatever else the caller's settings are.
    fn run(&self, words: &str, more: impl IntoIterator<Item: AsRef<OsStr>>) -> Result<()> {
        let mut command = self.step.command("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_CONFIG_NOSYSTEM", "1");
        command.current_dir(&self.tree);
        command.args(words.split(' ')).args(more);
        self.step.run(&mut command, "the log says why")
    }

    fn commit(&self, message: &str) -> Result<()> {
        self.run("add --all --force", NOTHING)?;
        self.run("commit --quiet --signoff --message", [message])
    }

    /// Somebody has each file that changes, other than who has all of them.
    fn find_maintainers(&self, source: &Source) -> Result<()> {
        let mut command = self.step.command("git");
        command
            .current_dir(&self.tree)
            .args(["diff", "--name-only", "main", "sent"]);
        let changed = self.step.output(&mut command, "the log says why")?;
        for file in changed.lines().filter(|file| *file != "MAINTAINERS") {
            let mut command = self.step.command("perl");
            command
                .current_dir(&self.tree)
                .arg(source.tree.join("scripts/get_maintainer.pl"));
            command.args("--no-tree --mpath=MAINTAINERS --no-git --no-git-fallback".split(' '));
            command.args(["--no-rolestats", "--no-l", "-f", file]);
            let list = self.step.output(&mut command, "the log says why")?;
            if !list.lines().any(|line| !line.contains("torvalds@")) {
                bail!("{file}: MAINTAINERS names nobody");
            }
        }
        Ok(())
    }

    fn make(&self, patch: &Patch) -> Result<()> {
        for file in patch.header("Files") {
            add(&self.step.project.root, &self.tree, file)?;
        }
        if !patch.files().is_empty() {
            let context = "the kernel tree has to be as it was released";
            patch.apply(&self.tree).context(context)?;
        }
        let list = self.tree.join("MAINTAINERS");
        let text = fs::read_to_string(&list)?;
        fs::write(list, text.replace(SENDER, &self.sender))?;
        self.commit(&patch.message()?)
    }

    /// Writes the commits as patches, with a cover letter, which is not returned.
    fn write(&self, cover: &str, folder: &Path, how: &str) -> Result<Vec<PathBuf>> {
        self.run("config branch.series.description", [cover])?;
        let words = "--cover-letter --cover-from-description=subject --zero-commit";
        self.run(
            &format!("format-patch --quiet {words} {how} main -o"),
            [folder],
        )?;
        let list = patches::read(folder)?.into_iter();
        Ok(list.skip(1).map(|patch| patch.path).collect())
    }
}
