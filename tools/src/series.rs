// SPDX-License-Identifier: GPL-2.0
//! `make series`: the driver as patches for the kernel's lists, in `build/series/`.
//!
//! `integration/series/order` names the patches. Each is one of
//! `integration/patches`, taken as it is, or one of `integration/series`: its
//! `Files:` are added as they are in the checkout, then its diff is applied.
//! Git makes the commits, the patches and the test of them, in a repository of
//! those files alone that change: the tree they are for stays untouched.

use crate::{
    integrate::{self, files_below, integrate},
    lint,
    patches::{self, Patch},
    project::Project,
    source::{self, Source},
    steps::{write_if_changed, Step},
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The patches that are made of the checkout's files.
const FOLDER: &str = "integration/series";
/// What the cover letter says.
const COVER: &str = "Documentation/cover-letter.rst";
/// The pages, in the checkout, and where they lie in a kernel tree.
const PAGES: (&str, &str) = ("Documentation", "Documentation/arch/s390/iommu");
/// Stands for whoever sends the patches.
const SENDER: &str = "@SENDER@";

/// `make series`.
pub fn run(project: &Project) -> Result<()> {
    let step = Step::start(project, "series", "writing patches, and applying them")?;
    let (_, list) = make(project, &step)?;
    let folder = project.build.join("series");
    let count = list.len();
    step.done(&format!("{count} patches in {}", folder.display()));
    Ok(())
}

/// The same, and checkpatch on each; what is good, and all.
pub fn check(project: &Project, step: &Step) -> Result<(usize, usize)> {
    let (source, list) = make(project, step)?;
    let (good, all) = lint::checkpatch_series(project, &source.tree, step, list)?;
    Ok((good + 1, all + 1))
}

/// Writes the patches, and makes sure of them: `git am` takes them, and what it
/// leaves is what `make integrate` makes.
fn make(project: &Project, step: &Step) -> Result<(Source, Vec<PathBuf>)> {
    // A tree of the caller's is only read.
    let lock = project.kdir.is_none().then(|| project.lock()).transpose()?;
    let source = source::find(project)?;
    drop(lock);
    let series = read(&project.root)?;
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let place = |name| scratch.path().join(name);
    let (sent, integrated) = (place("sent"), place("integrated"));
    let changed = series.iter().flat_map(Patch::files);
    for (file, _) in changed.chain([("Makefile", false)]) {
        if let Some(text) = source.pristine_text(file) {
            write_if_changed(&sent.join(file), &text)?;
            write_if_changed(&integrated.join(file), &text)?;
        }
    }
    let git = Git::init(project, step, sent)?;
    git.commit("base")?;
    git.run("checkout --quiet -b series")?;
    for patch in &series {
        git.make(patch)?;
    }
    let list = git.write(&project.build.join("series"))?;
    git.run("checkout --quiet -b sent main")?;
    let advice = "the patches do not apply";
    step.run(git.command("am --quiet").args(&list), advice)?;
    git.run("diff --exit-code series sent")?;

    integrate(&project.root, &Source::of_caller(&integrated))?;
    let mut diff = project.command("diff");
    // No build needs the pages and MAINTAINERS, so that only the series has them.
    let other = [".git", ".integrated-*", "Documentation", "MAINTAINERS"];
    diff.args(["--recursive", "--brief"]);
    diff.args(other.map(|name| format!("--exclude={name}")));
    let advice = "what the series makes has to be what make integrate makes";
    step.run(diff.args([&integrated, &git.tree]), advice)?;
    Ok((source, list))
}

/// The patches in the order of the list, which has to name all that there are.
fn read(root: &Path) -> Result<Vec<Patch>> {
    let order = fs::read_to_string(root.join(FOLDER).join("order")).context("no order")?;
    let mut all = integrate::patches(root)?;
    all.extend(patches::read(&root.join(FOLDER))?);
    let mut list = Vec::new();
    for line in order
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let place = all.iter().position(|patch| patch.name == line);
        list.push(all.remove(place.with_context(|| format!("{FOLDER}/order: no {line}"))?));
    }
    if let Some(patch) = all.first() {
        bail!("{FOLDER}/order does not name {}", patch.name);
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
    let mut moved = [PAGES, integrate::SELFTESTS].into_iter();
    let moved =
        moved.find_map(|(folder, place)| Some(place.to_owned() + file.strip_prefix(folder)?));
    let to = moved.unwrap_or(format!("{}/{file}", integrate::PLACE));
    let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    write_if_changed(&tree.join(to), &text).map(drop)
}

/// The page as a letter: its title is the subject.
fn letter(root: &Path) -> Result<String> {
    let page = fs::read_to_string(root.join(COVER)).context(COVER)?;
    let (_, text) = page.split_once("=\n").context(COVER)?;
    let (title, text) = text.split_once('\n').context(COVER)?;
    let text = text.trim_start_matches(['=', '\n']).replace("``", "");
    Ok(format!("{title}\n\n{text}"))
}

/// A repository that is thrown away.
struct Git<'a> {
    project: &'a Project,
    step: &'a Step,
    tree: PathBuf,
    /// Who signs the patches off.
    sender: String,
}

impl<'a> Git<'a> {
    fn init(project: &'a Project, step: &'a Step, tree: PathBuf) -> Result<Self> {
        let who = |key: &str| {
            let mut command = project.command("git");
            command.current_dir(&project.root).args(["config", key]);
            let advice = format!("git config --global {key} says who signs the patches off");
            let value = step.output(&mut command, &advice)?;
            Ok::<_, anyhow::Error>(value.trim().to_owned())
        };
        let (name, email) = (who("user.name")?, who("user.email")?);
        let sender = format!("{name} <{email}>");
        let git = Self {
            project,
            step,
            tree,
            sender,
        };
        git.run("init --quiet --initial-branch=main")?;
        git.set("user.name", &name)?;
        git.set("user.email", &email)?;
        Ok(git)
    }

    /// A command on it, whatever else the caller's settings are.
    fn command(&self, words: &str) -> Command {
        let mut command = self.project.command("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_CONFIG_NOSYSTEM", "1");
        command.current_dir(&self.tree).args(words.split(' '));
        command
    }

    fn run(&self, words: &str) -> Result<()> {
        self.step.run(&mut self.command(words), "the log says why")
    }

    fn set(&self, key: &str, value: &str) -> Result<()> {
        let mut command = self.command("config");
        self.step
            .run(command.args([key, value]), "the log says why")
    }

    fn commit(&self, message: &str) -> Result<()> {
        self.run("add --all --force")?;
        let mut command = self.command("commit --quiet --signoff --message");
        self.step.run(command.arg(message), "the log says why")
    }

    /// Commits a patch.
    fn make(&self, patch: &Patch) -> Result<()> {
        for file in patch.header("Files") {
            add(&self.project.root, &self.tree, file)?;
        }
        if !patch.files().is_empty() {
            let applied = patch.apply(&self.tree);
            applied.context("the kernel tree has to be as it was released")?;
        }
        let maintainers = self.tree.join("MAINTAINERS");
        let text = fs::read_to_string(&maintainers)?.replace(SENDER, &self.sender);
        fs::write(maintainers, text)?;
        self.commit(&patch.message()?)
    }

    /// Writes the commits as patches, with a cover letter, which is not returned.
    fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let _ = fs::remove_dir_all(folder);
        self.set("branch.series.description", &letter(&self.project.root)?)?;
        let mut command = self.command("format-patch --quiet --rfc --zero-commit main");
        command.args(["--cover-letter", "--cover-from-description=subject"]);
        command.arg("--output-directory").arg(folder);
        self.step.run(&mut command, "the log says why")?;
        let list = patches::read(folder)?.into_iter();
        Ok(list.skip(1).map(|patch| patch.path).collect())
    }
}
