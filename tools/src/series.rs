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
    integrate::{self, integrate},
    lint,
    patches::{self, Patch},
    prelude::*,
    source::{self, Source},
};

/// The series of the driver.
const DRIVER: &str = "driver";
/// The patches that are made from the checkout's files.
const PARTS: &str = "integration/series";
const COVER: &str = "Documentation/cover-letter.rst";
/// The fixes of the kernel's selftests.
const FIXES: &str = "integration/selftests";
const FIXES_COVER: &str = "integration/selftests/cover-letter.rst";
/// Warnings that checkpatch need not give for them: like any other, this `asm/io.h` takes
/// volatile pointers, and page sizes depend on the architecture.
const FIXES_IGNORED: &str = "--ignore=VOLATILE,ARCH_DEFINES";
/// The pages, in the checkout, and where they lie in a kernel tree.
const PAGES: (&str, &str) = (lint::PAGES, "Documentation/arch/s390/iommu");
/// Stands for the sender of the patches.
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
    let (_, list) = make(&step, "series", (name.trim(), email.trim()))?;
    step.done(&format!("{} patches below build/series", list.len()));
    Ok(())
}

/// The same, whoever the caller is, and checkpatch on each.
pub fn check(step: &Step) -> Result<Count> {
    let (source, list) = make(step, "series-test", NOBODY)?;
    let option = |path| (!is_of_driver(path)).then_some(FIXES_IGNORED);
    let files = list.iter().map(|path| (option(path), path));
    let mut count = lint::checkpatch_on(step, &source.tree, files)?;
    count += Count::one(true);
    Ok(count)
}

/// The patches of the driver, in a folder that a command may use for a while.
pub fn patches_for(step: &Step) -> Result<Vec<Patch>> {
    let mut list = make(step, "series-steps", NOBODY)?.1;
    list.retain(|path| is_of_driver(path));
    list.into_iter().map(Patch::read).collect()
}

fn is_of_driver(patch: &Path) -> bool {
    patch.parent().and_then(Path::file_name) == Some(DRIVER)
}

/// The sender where nobody sends the patches.
const NOBODY: (&str, &str) = ("Nobody Known", "nobody@example.org");

/// Writes all series into a folder below `build/`, in place of older ones, and checks
/// them: `git am` applies them, each file of the driver has a maintainer, and the result
/// equals that of `make integrate`.
fn make(step: &Step, folder: &str, (name, email): (&str, &str)) -> Result<(Source, Vec<PathBuf>)> {
    let project = step.project;
    let folder = project.build.join(folder);
    let _ = fs::remove_dir_all(&folder);
    // A tree of the caller's is only read.
    let lock = project.kdir.is_none().then(|| project.lock()).transpose()?;
    let source = source::find(project)?;
    drop(lock);
    let scratch = camino_tempfile::tempdir_in(&project.build).context("no temporary folder")?;
    let place = |name: &str| scratch.path().join(name);
    let driver = read(&project.root)?;
    let fixes = patches::read(&project.root.join(FIXES))?;
    let mut list = Vec::new();
    for (series, cover, patches, how) in [
        (DRIVER, COVER, &driver, "--rfc"),
        ("selftests", FIXES_COVER, &fixes, "--numbered"),
    ] {
        let tree = place(series);
        let git = |arguments: &str, more: &[&str]| git(step, &tree, arguments, more);
        let commit = |message: &str| {
            git("add --all --force", &[])?;
            git("commit --quiet --signoff --message", &[message])
        };
        copy_changed(&source, patches, &tree)?;
        git("init --quiet --initial-branch=main", &[])?;
        git("config user.name", &[name])?;
        git("config user.email", &[email])?;
        commit("base")?;
        git("checkout --quiet -b series", &[])?;
        for patch in patches {
            put(&project.root, &tree, patch, &format!("{name} <{email}>"))?;
            commit(&patch.message()?)?;
        }
        let (cover, written) = (
            letter(&project.root.join(cover))?,
            place("patches").join(series),
        );
        git("config branch.series.description", &[&cover])?;
        let how = format!("--cover-letter --cover-from-description=subject --zero-commit {how}");
        git(
            &format!("format-patch --quiet {how} main -o"),
            &[written.as_str()],
        )?;
        // The first file is the cover letter, which is no patch.
        let written = paths_of_kind(&written, "patch")?.split_off(1);
        git("checkout --quiet -b sent main", &[])?;
        git(
            "am --quiet",
            &Vec::from_iter(written.iter().map(|path| path.as_str())),
        )?;
        git("diff --exit-code series sent", &[])?;
        if series == DRIVER {
            find_maintainers(step, &source, &tree)?;
            if !lint::write_pages(step, &tree.join(PAGES.1), "series-htmldocs")? {
                bail!("pages of the series: correct what sphinx says");
            }
            compare(step, &source, patches, &tree, &place("integrated"))?;
        }
        let at_end = |path: &PathBuf| folder.join(series).join(name_of(path));
        list.extend(written.iter().map(at_end));
    }
    fs::rename(place("patches"), &folder)?;
    Ok((source, list))
}

/// Whether the series gives the same tree as `make integrate`.
fn compare(
    step: &Step,
    source: &Source,
    patches: &[Patch],
    made: &Path,
    integrated: &Path,
) -> Result<()> {
    copy_changed(source, patches, integrated)?;
    integrate(&step.root, &Source::of_caller(integrated))?;
    // No build needs the pages and MAINTAINERS, so only the series has them.
    run!(
        step,
        "diff --recursive --brief --exclude=.git --exclude=.integrated-*
                --exclude=Documentation --exclude=MAINTAINERS {integrated} {made}",
        "what the series makes has to be what make integrate makes"
    )
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

/// Whether MAINTAINERS names somebody for each file that changes, beside the one who has
/// all files.
fn find_maintainers(step: &Step, source: &Source, tree: &Path) -> Result<()> {
    let (advice, scripts) = ("the log says why", source.tree.join("scripts"));
    let mut diff = command!(step, "git -C {tree} diff --name-only main sent");
    let changed = step.output(&mut diff, advice)?;
    for file in changed.lines().filter(|file| *file != "MAINTAINERS") {
        let mut command = command!(
            step,
            "perl {scripts}/get_maintainer.pl --no-tree --mpath=MAINTAINERS --no-git
                --no-git-fallback --no-rolestats --no-l -f {file}"
        );
        let list = step.output(command.current_dir(tree), advice)?;
        if !list.lines().any(|line| !line.contains("torvalds@")) {
            bail!("{file}: MAINTAINERS names nobody");
        }
    }
    Ok(())
}

/// The patches in the order of the list, which must name each of them.
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

/// The page as a cover letter: its title is the subject.
fn letter(page: &Path) -> Result<String> {
    let text = fs::read_to_string(page)?;
    let (_, text) = text.split_once("=\n").context("a letter has a title")?;
    let (title, text) = text.split_once('\n').context("a letter has a text")?;
    let text = text.trim_start_matches(['=', '\n']).replace("``", "");
    Ok(format!("{title}\n\n{text}"))
}

/// Runs a command on a temporary repository, without the caller's settings.
fn git(step: &Step, tree: &Path, arguments: &str, more: &[&str]) -> Result<()> {
    let arguments = arguments.split(' ');
    let mut command = command!(step, "git -C {tree} {arguments...} {more...}");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.env("GIT_CONFIG_NOSYSTEM", "1");
    step.run(&mut command, "the log says why")
}

/// Makes the changes of one patch of the series in a tree.
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
