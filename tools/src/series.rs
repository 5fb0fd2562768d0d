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
/// No build needs these, so that `make integrate` leaves them out.
const ONLY_SENT: [&str; 2] = ["Documentation", "MAINTAINERS"];

/// `make series`.
pub fn run(project: &Project) -> Result<()> {
    let source = find_source(project)?;
    let step = Step::start(project, "series", "writing the patches, applying them")?;
    let list = make(project, &source, &step)?;
    step.done(&format!(
        "{} patches and a cover letter in {}",
        list.len(),
        project.build.join("series").display()
    ));
    Ok(())
}

/// checkpatch on each patch of the series; what is good, the making of it
/// included, and all.
pub fn check(project: &Project, step: &Step) -> Result<(usize, usize)> {
    let source = find_source(project)?;
    let list = make(project, &source, step)?;
    let (good, all) = lint::checkpatch_series(project, &source.tree, step, list)?;
    Ok((good + 1, all + 1))
}

fn find_source(project: &Project) -> Result<Source> {
    // A tree of the caller's is only read.
    let _lock = project.kdir.is_none().then(|| project.lock()).transpose()?;
    source::find(project)
}

/// Writes the patches, and makes sure of them: `git am` takes them, and what it
/// leaves is what `make integrate` makes.
fn make(project: &Project, source: &Source, step: &Step) -> Result<Vec<PathBuf>> {
    let root = &project.root;
    integrate::tree_version(&source.tree)?;
    let series = read(root)?;
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let git = Git::new(project, step, scratch.path().join("sent"))?;
    let integrated = scratch.path().join("integrated");
    for file in base(&series) {
        if let Some(text) = pristine(source, file) {
            write_if_changed(&git.tree.join(file), &text)?;
            write_if_changed(&integrated.join(file), &text)?;
        }
    }
    git.commit("base")?;
    git.run(&["checkout", "--quiet", "-b", "series"])?;
    for patch in &series {
        for file in patch.header("Files") {
            add(root, &git.tree, file)?;
        }
        if patch.text.contains("\n--- ") {
            patch.apply(&git.tree)?;
        }
        let maintainers = git.tree.join("MAINTAINERS");
        if let Ok(text) = fs::read_to_string(&maintainers) {
            let sender = format!("{} <{}>", git.name, git.email);
            write_if_changed(&maintainers, text.replace(SENDER, &sender).as_bytes())?;
        }
        git.commit(&patch.message()?)?;
    }

    let cover = fs::read_to_string(root.join(COVER)).with_context(|| COVER)?;
    git.run(&["config", "branch.series.description", &letter(&cover)?])?;
    let folder = project.build.join("series");
    let _ = fs::remove_dir_all(&folder);
    let out = format!("--output-directory={}", folder.display());
    let from_cover = "--cover-from-description=subject";
    git.run(&[
        "format-patch", "--quiet", "--rfc", "--zero-commit", "--cover-letter",
        from_cover, &out, "main..series",
    ])?;

    let mut list: Vec<PathBuf> = files_below(&folder)?
        .into_iter()
        .filter(|name| !name.starts_with("0000-"))
        .map(|name| folder.join(name))
        .collect();
    list.sort();
    git.run(&["checkout", "--quiet", "-b", "sent", "main"])?;
    let mut am = git.command(&["am", "--quiet", "--"]);
    step.run(am.args(&list), "the patches do not apply")?;
    let advice = "what git am makes of the patches is not what they were made of";
    step.run(&mut git.command(&["diff", "--exit-code", "series", "sent"]), advice)?;

    let tree = Source { tree: integrated, name: String::new(), pristine: None };
    integrate(root, &tree)?;
    let mut diff = project.command("diff");
    diff.args(["--recursive", "--brief", "--exclude=.git", "--exclude=.integrated-*"])
        .args(ONLY_SENT.map(|name| format!("--exclude={name}")))
        .args([&tree.tree, &git.tree]);
    step.run(&mut diff, &format!("{FOLDER} and what make integrate makes must agree"))?;
    Ok(list)
}

/// The patches in the order of the list, which has to name all that there are.
fn read(root: &Path) -> Result<Vec<Patch>> {
    let order = root.join(FOLDER).join("order");
    let text = fs::read_to_string(&order).with_context(|| order.display().to_string())?;
    let mut all = integrate::patches(root)?;
    all.extend(patches::read(&root.join(FOLDER))?);
    let mut list = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let place = all.iter().position(|patch| patch.name == line);
        let place = place.with_context(|| format!("{}: no patch {line}", order.display()))?;
        list.push(all.remove(place));
    }
    if let Some(patch) = all.first() {
        bail!("{} does not name {}", order.display(), patch.name);
    }
    Ok(list)
}

/// The kernel's files that the series is about.
fn base(series: &[Patch]) -> impl Iterator<Item = &str> {
    let changed = series.iter().flat_map(Patch::files);
    // Makefile has the version.
    std::iter::once("Makefile").chain(changed.map(|(file, _)| file))
}

/// A file as the kernel has it. What is kept was kept before the tree's own was
/// changed, so it is looked for after that was read.
fn pristine(source: &Source, file: &str) -> Option<Vec<u8>> {
    let own = fs::read(source.tree.join(file));
    let kept = source.pristine.as_ref().map(|folder| folder.join(file));
    kept.and_then(|path| fs::read(path).ok()).or(own.ok())
}

/// Adds a file of the checkout, or all of a folder, where a kernel tree has it.
fn add(root: &Path, tree: &Path, file: &str) -> Result<()> {
    let from = root.join(file);
    if from.is_dir() {
        let below = files_below(&from)?;
        return below.iter().try_for_each(|name| add(root, tree, &format!("{file}/{name}")));
    }
    let moved = [PAGES, integrate::SELFTESTS].iter().find_map(|(folder, place)| {
        Some(Path::new(place).join(file.strip_prefix(folder)?.strip_prefix('/')?))
    });
    let to = tree.join(moved.unwrap_or(Path::new(integrate::PLACE).join(file)));
    let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    write_if_changed(&to, &text)?;
    Ok(())
}

impl Patch {
    /// The words of all lines of its header with this key.
    fn header(&self, key: &str) -> impl Iterator<Item = &str> {
        let header = self.text.split("\n\n").next().unwrap_or_default();
        header
            .lines()
            .filter_map(move |line| line.strip_prefix(key)?.strip_prefix(": "))
            .flat_map(str::split_whitespace)
    }

    /// What the commit says.
    fn message(&self) -> Result<String> {
        let subject: Vec<&str> = self.header("Subject").collect();
        let body = self.text.split_once("\n\n").map(|(_, rest)| rest);
        match body.and_then(|body| body.split("\n---\n").next()) {
            Some(body) if !subject.is_empty() => Ok(format!("{}\n\n{body}", subject.join(" "))),
            _ => bail!("{} has no subject, or does not say why", self.path.display()),
        }
    }
}

/// The page as a letter: its title is the subject.
fn letter(page: &str) -> Result<String> {
    let line = |text: &str| !text.is_empty() && text.chars().all(|c| c == '=');
    let mut lines = page.lines().skip_while(|text| !line(text)).skip(1);
    let title = lines.next().with_context(|| format!("{COVER} has no title"))?;
    let body: Vec<String> = lines.skip(1).map(|text| text.replace("``", "")).collect();
    Ok(format!("{title}\n{}", body.join("\n")))
}

/// A repository that is thrown away, and who makes its commits.
struct Git<'a> {
    project: &'a Project,
    step: &'a Step,
    tree: PathBuf,
    name: String,
    email: String,
}

impl<'a> Git<'a> {
    fn new(project: &'a Project, step: &'a Step, tree: PathBuf) -> Result<Self> {
        let who = |key: &str| {
            let mut command = project.command("git");
            command.arg("-C").arg(&project.root).args(["config", key]);
            let advice = format!("git config --global {key} ... says who signs the patches off");
            Ok::<_, anyhow::Error>(step.output(&mut command, &advice)?.trim().to_owned())
        };
        let (name, email) = (who("user.name")?, who("user.email")?);
        let git = Self { project, step, tree, name, email };
        git.run(&["init", "--quiet", "--initial-branch=main"])?;
        Ok(git)
    }

    /// Git for this tree, whatever the caller's settings are.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.project.command("git");
        command.arg("--git-dir").arg(self.tree.join(".git"));
        command.arg("--work-tree").arg(&self.tree).args(arguments);
        fs::create_dir_all(&self.tree).ok();
        command.current_dir(&self.tree).env_remove("GIT_INDEX_FILE");
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for role in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{role}_NAME"), &self.name);
            command.env(format!("GIT_{role}_EMAIL"), &self.email);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        self.step.run(&mut self.command(arguments), "the log says why")
    }

    fn commit(&self, message: &str) -> Result<()> {
        self.run(&["add", "--all", "--force"])?;
        self.run(&["commit", "--quiet", "--signoff", "--message", message])
    }
}
