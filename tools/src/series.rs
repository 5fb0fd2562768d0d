// SPDX-License-Identifier: GPL-2.0
//! `make series`: the driver as patches for the kernel's lists, in `build/series/`.
//!
//! `integration/series/order` names the patches. Each is one of
//! `integration/patches`, taken as it is, or one of `integration/series`: its
//! `Files:` are added as they are in the checkout, then its diff is applied.
//! Git makes the commits, the patches and the test of them, in a repository of
//! those files alone that change: the tree they are for stays untouched.

use crate::{
    integrate::{self, integrate},
    lint,
    patches::{self, Patch},
    prelude::*,
    source::{self, Source},
};

/// The patches that are made of the checkout's files.
const PARTS: &str = "integration/series";
const FOLDER: &str = "build/series";
const COVER: &str = "Documentation/cover-letter.rst";
/// The pages, in the checkout, and where they lie in a kernel tree.
const PAGES: (&str, &str) = ("Documentation", "Documentation/arch/s390/iommu");
/// Stands for whoever sends the patches.
const SENDER: &str = "@SENDER@";

pub fn run(project: &Project) -> Result<()> {
    for name in ["git", "patch"] {
        deps::program(project, name, name)?;
    }
    let step = Step::start(project, "series", "writing patches, and applying them")?;
    let who = |key: &str| {
        let root = &project.root;
        step.output(
            &mut command!(step, "git -C {root} config {key}"),
            &format!("git config --global {key} says who signs the patches off"),
        )
    };
    let (name, email) = (who("user.name")?, who("user.email")?);
    let (_, list) = make(&step, FOLDER, (name.trim(), email.trim()))?;
    step.done(&format!("{} patches in {FOLDER}", list.len()));
    Ok(())
}

/// The same, whoever the caller is, and checkpatch on each.
pub fn check(step: &Step) -> Result<Count> {
    let (source, list) = make(step, "build/series-test", NOBODY)?;
    let mut count = lint::checkpatch_on(step, &source.tree, list.iter().map(|path| (None, path)))?;
    count += Count::one(true);
    Ok(count)
}

/// The patches, in a folder that a command may use for a while.
pub fn patches_for(step: &Step) -> Result<Vec<PathBuf>> {
    Ok(make(step, "build/series-steps", NOBODY)?.1)
}

/// A name and an address where nobody sends the patches.
const NOBODY: (&str, &str) = ("Nobody Known", "nobody@example.org");

/// Writes the patches, and makes sure of them: `git am` takes them, and what it
/// leaves is what `make integrate` makes. Others are not left behind.
fn make(step: &Step, folder: &str, (name, email): (&str, &str)) -> Result<(Source, Vec<PathBuf>)> {
    let project = step.project;
    let folder = project.root.join(folder);
    let _ = fs::remove_dir_all(&folder);
    // A tree of the caller's is only read.
    let lock = project.kdir.is_none().then(|| project.lock()).transpose()?;
    let source = source::find(project)?;
    drop(lock);
    let series = read(&project.root)?;
    let scratch = camino_tempfile::tempdir_in(&project.build).context("no temporary folder")?;
    let place = |name| scratch.path().join(name);
    let (sent, integrated) = (place("sent"), place("integrated"));
    let changed = series.iter().flat_map(Patch::files);
    for (file, _) in changed.chain([("Makefile", false)]) {
        if let Some(text) = source.pristine_text(file) {
            write_if_changed(&sent.join(file), &text)?;
            write_if_changed(&integrated.join(file), &text)?;
        }
    }
    let sender = format!("{name} <{email}>");
    let git = |words: &str, more: &[&str]| git(step, &sent, words, more);
    let commit = |message: &str| {
        git("add --all --force", &[])?;
        git("commit --quiet --signoff --message", &[message])
    };
    git("init --quiet --initial-branch=main", &[])?;
    git("config user.name", &[name])?;
    git("config user.email", &[email])?;
    commit("base")?;
    git("checkout --quiet -b series", &[])?;
    for patch in &series {
        put(&project.root, &sent, patch, &sender)?;
        commit(&patch.message()?)?;
    }
    // The cover letter, which no command takes, comes first.
    let (cover, patches) = (letter(&project.root)?, place("patches"));
    git("config branch.series.description", &[&cover])?;
    let how = "--cover-letter --cover-from-description=subject --rfc --zero-commit";
    git(
        &format!("format-patch --quiet {how} main -o"),
        &[patches.as_str()],
    )?;
    let list = paths_of_kind(&patches, "patch")?.split_off(1);
    git("checkout --quiet -b sent main", &[])?;
    git(
        "am --quiet",
        &list.iter().map(|path| path.as_str()).collect::<Vec<_>>(),
    )?;
    git("diff --exit-code series sent", &[])?;
    integrate(&project.root, &Source::of_caller(&integrated))?;
    // No build needs the pages and MAINTAINERS, so that only the series has them.
    run!(
        step,
        "diff --recursive --brief --exclude=.git --exclude=.integrated-*
                --exclude=Documentation --exclude=MAINTAINERS {integrated} {sent}",
        "what the series makes has to be what make integrate makes"
    )?;
    fs::rename(patches, &folder)?;
    let list = list.iter().map(|path| folder.join(name_of(path)));
    Ok((source, list.collect()))
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
fn letter(root: &Path) -> Result<String> {
    let page = fs::read_to_string(root.join(COVER))?;
    let (_, text) = page.split_once("=\n").context(COVER)?;
    let (title, text) = text.split_once('\n').context(COVER)?;
    let text = text.trim_start_matches(['=', '\n']).replace("``", "");
    Ok(format!("{title}\n\n{text}"))
}

/// Runs a command on a repository that is thrown away, whatever the caller's settings are.
fn git(step: &Step, tree: &Path, words: &str, more: &[&str]) -> Result<()> {
    let words = words.split(' ');
    let mut command = command!(step, "git -C {tree} {words...} {more...}");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_CONFIG_NOSYSTEM", "1");
    step.run(&mut command, "the log says why")
}

/// Puts into a tree what a patch of the series brings.
fn put(root: &Path, tree: &Path, patch: &Patch, sender: &str) -> Result<()> {
    for file in patch.header("Files") {
        add(root, tree, file)?;
    }
    if !patch.files().is_empty() {
        let context = "the kernel tree has to be as it was released";
        patch.apply(tree).context(context)?;
    }
    let list = tree.join("MAINTAINERS");
    let text = fs::read_to_string(&list)?;
    Ok(fs::write(list, text.replace(SENDER, sender))?)
}
