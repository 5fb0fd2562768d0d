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
    let root = &project.root;
    let series = read(root)?;
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let (sent, integrated) = ["sent", "integrated"]
        .map(|name| scratch.path().join(name))
        .into();
    let changed = series.iter().flat_map(Patch::files);
    for (file, _) in [("Makefile", false)].into_iter().chain(changed) {
        if let Some(text) = source.pristine_text(file) {
            write_if_changed(&sent.join(file), &text)?;
            write_if_changed(&integrated.join(file), &text)?;
        }
    }
    let git = Git {
        project,
        step,
        tree: &sent,
    };
    let sender = git.init()?;
    git.commit("base")?;
    git.run(&["checkout", "--quiet", "-b", "series"])?;
    for patch in &series {
        for file in patch.header("Files") {
            add(root, &sent, file)?;
        }
        if !patch.files().is_empty() {
            patch
                .apply(&sent)
                .context("the kernel tree has to be as it was released")?;
        }
        let maintainers = fs::read_to_string(sent.join("MAINTAINERS")).unwrap_or_default();
        write_if_changed(
            &sent.join("MAINTAINERS"),
            maintainers.replace(SENDER, &sender).as_bytes(),
        )?;
        git.commit(&patch.message()?)?;
    }

    git.run(&["config", "branch.series.description", &letter(root)?])?;
    let folder = project.build.join("series");
    let _ = fs::remove_dir_all(&folder);
    let output = format!("--output-directory={}", folder.display());
    let letter = ["--cover-letter", "--cover-from-description=subject"];
    git.run(&[
        "format-patch",
        "--quiet",
        "--rfc",
        "--zero-commit",
        letter[0],
        letter[1],
        &output,
        "main",
    ])?;
    let mut list: Vec<PathBuf> = patches::read(&folder)?
        .into_iter()
        .map(|patch| patch.path)
        .collect();
    list.remove(0);
    git.run(&["checkout", "--quiet", "-b", "sent", "main"])?;
    step.run(
        git.command(&["am", "--quiet"]).args(&list),
        "the patches do not apply",
    )?;
    git.run(&["diff", "--exit-code", "series", "sent"])?;

    let tree = Source {
        tree: integrated,
        name: String::new(),
        pristine: None,
    };
    integrate(root, &tree)?;
    let mut diff = project.command("diff");
    // No build needs the pages and MAINTAINERS, so that only the series has them.
    let other = [".git", ".integrated-*", "Documentation", "MAINTAINERS"];
    diff.args(["--recursive", "--brief"])
        .args(other.map(|name| format!("--exclude={name}")));
    let advice = "what the series makes has to be what make integrate makes";
    step.run(diff.args([&tree.tree, &sent]), advice)?;
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

impl Patch {
    /// The words of all lines of its header with this key.
    fn header<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let header = self.text.split("\n\n").next().unwrap_or_default();
        let values = header
            .lines()
            .filter_map(move |line| line.strip_prefix(key)?.strip_prefix(": "));
        values.flat_map(str::split_whitespace)
    }

    /// What its commit says.
    fn message(&self) -> Result<String> {
        let subject = self.header("Subject").collect::<Vec<_>>().join(" ");
        let body = self
            .text
            .split_once("\n\n")
            .with_context(|| format!("{}: no text", self.name))?
            .1;
        let body = body.split("\n---\n").next().unwrap_or_default();
        Ok(format!("{subject}\n\n{body}"))
    }
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
    tree: &'a Path,
}

impl Git<'_> {
    /// Makes it, its commits by the caller, whose name and address it returns.
    fn init(&self) -> Result<String> {
        self.run(&["init", "--quiet", "--initial-branch=main"])?;
        let who = |key: &str| -> Result<String> {
            let mut command = self.project.command("git");
            command
                .current_dir(&self.project.root)
                .args(["config", key]);
            let advice = format!("git config --global {key} says who signs the patches off");
            let value = self.step.output(&mut command, &advice)?.trim().to_owned();
            self.run(&["config", key, &value])?;
            Ok(value)
        };
        Ok(format!("{} <{}>", who("user.name")?, who("user.email")?))
    }

    /// A command on it, whatever else the caller's settings are.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.project.command("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        command.current_dir(self.tree).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        self.step
            .run(&mut self.command(arguments), "the log says why")
    }

    fn commit(&self, message: &str) -> Result<()> {
        self.run(&["add", "--all", "--force"])?;
        self.run(&["commit", "--quiet", "--signoff", "--message", message])
    }
}
