// SPDX-License-Identifier: GPL-2.0
//! Makes the driver selectable in a kernel tree: patches of the kernel's files, the
//! driver's files in `drivers/iommu/s390/`, and our selftests among the kernel's.
//!
//! Everything is read and checked before the first file is written, so a tree
//! that is not understood stays as it was. Doing it again changes nothing, and
//! files that do not change keep their times, so `make` builds only what did.

use crate::{
    patches::{self, Patch},
    prelude::*,
    source::{Source, OLDEST, TOO_NEW},
};
use camino_tempfile::Utf8TempDir;

/// Where the driver lies in a kernel tree.
pub const PLACE: &str = "drivers/iommu/s390";
/// Our selftests, in the checkout, and where they lie in a kernel tree.
pub const SELFTESTS: (&str, &str) = ("tests/selftests", "tools/testing/selftests/s390_iommu");
/// The patches for the kernel's own files, in the checkout.
const PATCHES: &str = "integration/patches";
/// Lists the files that were put there, so that those that are gone are removed.
const LIST: &str = ".integrated-files";
/// Holds the patches that were applied, so that they can be taken back.
const APPLIED: &str = ".integrated-patches";
/// The folders with the driver's files besides the checkout's top, and the kinds of files.
const FOLDERS: &str = "address_space dma_table function integration rust zpci";
const KINDS: [&str; 5] = ["rs", "c", "h", "Kbuild", "Kconfig"];

#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub version: Version,
    /// Files of the kernel tree that were edited now.
    pub edited: usize,
    /// Files of the driver and its selftests that were written or removed now.
    pub copied: usize,
}

/// Integrates the driver in `root` into a kernel tree.
///
/// # Errors
///
/// The tree is not a Linux that the patches fit; nothing was written.
pub fn integrate(root: &Path, source: &Source) -> Result<Report> {
    let wanted = patches(root)?;
    let place = source.tree.join(PLACE);
    let (ours, there) = (root.join(SELFTESTS.0), source.tree.join(SELFTESTS.1));
    let copies = [
        (root, &place, driver_files(root)?),
        (&ours, &there, files_below(&ours)?),
    ];
    let applied = patches::read(&place.join(APPLIED))?;
    let check = || {
        let version = tree_version(&source.tree)?;
        let plan = plan(source, &wanted, &applied)?;
        for (from, to, files) in &copies {
            check_place(from, to, files)?;
        }
        Ok::<_, anyhow::Error>((version, plan))
    };
    let (version, plan) = check().with_context(|| {
        let tree = &source.tree;
        format!("{tree} is not a kernel tree that is understood, nothing was changed")
    })?;
    let edited = plan.write(source)?;
    let mut copied = 0;
    for (from, to, files) in &copies {
        copied += copy_files(from, to, files)?;
    }
    if !is_same_folder(root, &place) {
        let names: Vec<String> = wanted.into_iter().map(|patch| patch.name).collect();
        copy_files(&root.join(PATCHES), &place.join(APPLIED), &names)?;
    }
    Ok(Report {
        version,
        edited,
        copied,
    })
}

/// The version in the tree's Makefile, if it is one that the patches may fit.
pub fn tree_version(tree: &Path) -> Result<Version> {
    let makefile = fs::read_to_string(tree.join("Makefile")).context("it has no Makefile")?;
    let number = |key: &str| {
        makefile
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))
            .and_then(|text| text.trim().parse().ok())
            .with_context(|| format!("its Makefile has no {key}"))
    };
    let version = Version(
        number("VERSION")?,
        number("PATCHLEVEL")?,
        number("SUBLEVEL")?,
    );
    if !(OLDEST..TOO_NEW).contains(&version) {
        bail!("it is Linux {version}; {OLDEST} or a newer 7.x is needed");
    }
    Ok(version)
}

pub fn patches(root: &Path) -> Result<Vec<Patch>> {
    let list = patches::read(&root.join(PATCHES))?;
    if list.is_empty() {
        bail!("the checkout {root} has no {PATCHES}");
    }
    Ok(list)
}

/// What the patches say, for keys of what is made with them.
pub fn patch_texts(root: &Path) -> Result<Vec<String>> {
    Ok(patches(root)?.into_iter().map(|patch| patch.text).collect())
}

/// What is to become of files that patches change, or changed before.
struct Plan {
    files: BTreeSet<String>,
    /// A tree with these files as they have to be.
    tree: Utf8TempDir,
}

fn plan(source: &Source, wanted: &[Patch], applied: &[Patch]) -> Result<Plan> {
    let patched = wanted.iter().chain(applied).flat_map(Patch::files);
    let mut files: BTreeSet<String> = patched.map(|(file, _)| file.to_owned()).collect();
    if let Some(pristine) = &source.pristine {
        // Also what an older set changed and this one does not.
        files.extend(files_below(pristine)?);
    }
    // Nothing but a copy is touched. A patch makes a file that is missing, or
    // reports it.
    let attempt = |change: &dyn Fn(&Path) -> Result<()>| {
        let tree = camino_tempfile::tempdir()?;
        for file in &files {
            if let Some(text) = source.pristine_text(file) {
                write_if_changed(&tree.path().join(file), text)?;
            }
        }
        change(tree.path())?;
        Ok(tree)
    };
    // The caller may have put the files back, or taken a newer kernel.
    let undone = source.pristine.is_none()
        && !applied.is_empty()
        && attempt(&|tree| patches::revert(applied, tree)).is_ok();
    let changed = attempt(&|tree| {
        if undone {
            patches::revert(applied, tree)?;
        }
        patches::apply(wanted, tree)
    });
    let tree = changed.or_else(|error: anyhow::Error| {
        if source.pristine.is_some() {
            return Err(error);
        }
        // All are there, by `git am` or by a linked checkout.
        if attempt(&|tree| patches::revert(wanted, tree)).is_ok() {
            return attempt(&|_| Ok(()));
        }
        if undone || applied.is_empty() {
            return Err(error);
        }
        Err(error.context(
            "other changes of this project are in its files; put these back as the kernel has \
             them (git checkout)",
        ))
    })?;
    Ok(Plan { files, tree })
}

impl Plan {
    /// Writes what differs, and keeps the untouched form of it; how many files.
    fn write(&self, source: &Source) -> Result<usize> {
        let mut count = 0;
        for file in &self.files {
            let path = source.tree.join(file);
            let kept = source.pristine.as_ref().map(|folder| folder.join(file));
            if let Some(kept) = kept.filter(|kept| !kept.is_file()) {
                write_if_changed(&kept, fs::read(&path).unwrap_or_default())?;
            }
            count += usize::from(match fs::read(self.tree.path().join(file)) {
                Ok(text) => write_if_changed(&path, text)?,
                Err(_) => fs::remove_file(&path).is_ok(),
            });
        }
        Ok(count)
    }
}

/// The driver's files, relative to the checkout.
pub fn driver_files(root: &Path) -> Result<Vec<String>> {
    let mut list: Vec<String> = paths_in(root)?.iter().map(|path| name_of(path)).collect();
    for folder in FOLDERS.split(' ') {
        let below = files_below(&root.join(folder))?.into_iter();
        list.extend(below.map(|file| format!("{folder}/{file}")));
    }
    // Not the products of an external build.
    list.retain(|file| {
        let path = Path::new(file);
        has_kind(path, &KINDS) && !name_of(path).starts_with('.')
    });
    for file in ["Kbuild", "Kconfig"] {
        if !list.iter().any(|name| name == file) {
            bail!("the checkout {root} has no {file}");
        }
    }
    list.sort();
    Ok(list)
}

/// Our selftests, in the checkout.
pub fn selftest_files(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join(SELFTESTS.0);
    let files = files_below(&folder)?.into_iter();
    Ok(files.map(|file| folder.join(file)).collect())
}

/// The folder must be ours, or not there.
fn check_place(from: &Path, place: &Path, files: &[String]) -> Result<()> {
    let by_hand = |file: &String| file.ends_with(".rs") && place.join(file).is_file();
    let is_ours = is_same_folder(from, place) || place.join(LIST).is_file();
    if place.exists() && !is_ours && !files.iter().any(by_hand) {
        bail!("its {place} holds something else");
    }
    Ok(())
}

/// A tree into which the checkout was linked needs no copies.
fn is_same_folder(root: &Path, place: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(root).is_some() && real(root) == real(place)
}

/// Copies files, and removes those that were copied before and are no more; how many.
fn copy_files(from: &Path, place: &Path, files: &[String]) -> Result<usize> {
    if files.is_empty() || is_same_folder(from, place) {
        return Ok(0);
    }
    let list = place.join(LIST);
    let mut count = 0;
    for old in fs::read_to_string(&list).unwrap_or_default().lines() {
        let is_gone = !files.iter().any(|file| file == old);
        count += usize::from(is_gone && fs::remove_file(place.join(old)).is_ok());
    }
    for file in files {
        let text = fs::read(from.join(file))?;
        count += usize::from(write_if_changed(&place.join(file), text)?);
    }
    write_if_changed(&list, files.join("\n") + "\n")?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    const PATCH: &str = "Subject: x\n---\n\
        --- a/drivers/iommu/Makefile\n+++ b/drivers/iommu/Makefile\n\
        @@ -1,3 +1,4 @@\n a\n obj-c += c.o\n+obj-rust += s390/\n b\n";
    const FIRST: &str = "integration/patches/0001-x.patch";

    fn write(folder: &Path, file: &str, text: &str) {
        write_if_changed(&folder.join(file), text).unwrap();
    }

    fn checkout() -> Utf8TempDir {
        let folder = camino_tempfile::tempdir().unwrap();
        for (file, text) in [
            (FIRST, PATCH),
            ("integration/glue.c", "glue"),
            ("Kbuild", "kbuild"),
            ("Kconfig", "kconfig"),
            ("driver.rs", "driver"),
            ("driver.mod.c", "made"),
            ("README.md", "readme"),
            ("tests/selftests/a_test.c", "test"),
        ] {
            write(folder.path(), file, text);
        }
        folder
    }

    fn tree() -> (Utf8TempDir, Source) {
        let folder = camino_tempfile::tempdir().unwrap();
        let source = Source {
            tree: folder.path().join("tree"),
            name: "test".into(),
            pristine: Some(folder.path().join("pristine")),
        };
        let makefile = "VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 4\n";
        write(&source.tree, "Makefile", makefile);
        write(
            &source.tree,
            "drivers/iommu/Makefile",
            "a\nobj-c += c.o\nb\n",
        );
        (folder, source)
    }

    fn times(folder: &Path) -> Vec<(String, SystemTime)> {
        let time = |file: &String| fs::metadata(folder.join(file)).unwrap().modified().unwrap();
        let files = files_below(folder).unwrap().into_iter();
        files.map(|file| (file.clone(), time(&file))).collect()
    }

    #[test]
    fn twice_is_once() {
        let (root, (_folder, mut source)) = (checkout(), tree());
        let report = integrate(root.path(), &source).unwrap();
        assert_eq!((report.version, report.edited), (Version(7, 3, 4), 1));
        let makefile = source.tree.join("drivers/iommu/Makefile");
        let text = fs::read_to_string(&makefile).unwrap();
        assert_eq!(text, "a\nobj-c += c.o\nobj-rust += s390/\nb\n");
        let place = source.tree.join(PLACE);
        let glue = fs::read_to_string(place.join("integration/glue.c")).unwrap();
        let test = fs::read_to_string(source.tree.join(SELFTESTS.1).join("a_test.c")).unwrap();
        assert_eq!((&*glue, &*test), ("glue", "test"));
        assert!(!place.join("README.md").exists() && !place.join("driver.mod.c").exists());

        let before = times(&source.tree);
        for pristine in [source.pristine.clone(), None] {
            source.pristine = pristine;
            let report = integrate(root.path(), &source).unwrap();
            assert_eq!((report.edited, report.copied), (0, 0));
            assert_eq!(times(&source.tree), before);
        }
    }

    #[test]
    fn only_what_changed_is_written() {
        let (root, (_folder, source)) = (checkout(), tree());
        integrate(root.path(), &source).unwrap();
        fs::remove_file(root.path().join("integration/glue.c")).unwrap();
        write(root.path(), "driver.rs", "changed");
        let report = integrate(root.path(), &source).unwrap();
        assert_eq!(report.copied, 2);
        assert!(!source.tree.join(PLACE).join("integration/glue.c").exists());
    }

    #[test]
    fn changed_patches_replace_those_applied_before() {
        let (root, (_folder, mut source)) = (checkout(), tree());
        let makefile = source.tree.join("drivers/iommu/Makefile");
        let add = "--- /dev/null\n+++ b/d/new\n@@ -0,0 +1 @@\n+N\n";
        let more = "integration/patches/0002-y.patch";
        let kept = source.pristine.take();
        for (pristine, name) in [(kept, "obj-kept"), (None, "obj-not-kept")] {
            source.pristine = pristine;
            write(root.path(), FIRST, PATCH);
            write(root.path(), more, add);
            integrate(root.path(), &source).unwrap();
            assert!(source.tree.join("d/new").is_file());
            fs::remove_file(root.path().join(more)).unwrap();
            write(root.path(), FIRST, &PATCH.replace("obj-rust", name));
            integrate(root.path(), &source).unwrap();
            let text = fs::read_to_string(&makefile).unwrap();
            assert_eq!(text, format!("a\nobj-c += c.o\n{name} += s390/\nb\n"));
            assert!(!source.tree.join("d/new").exists());
        }
    }

    #[test]
    fn a_caller_may_put_files_back_or_patch_them() {
        let (root, (_folder, mut source)) = (checkout(), tree());
        source.pristine = None;
        let makefile = source.tree.join("drivers/iommu/Makefile");
        let bare = fs::read_to_string(&makefile).unwrap();
        assert_eq!(integrate(root.path(), &source).unwrap().edited, 1);
        let patched = fs::read_to_string(&makefile).unwrap();
        fs::write(&makefile, &bare).unwrap();
        assert_eq!(integrate(root.path(), &source).unwrap().edited, 1);
        assert_eq!(fs::read_to_string(&makefile).unwrap(), patched);
        // By hand: there is no record.
        fs::remove_dir_all(source.tree.join(PLACE)).unwrap();
        assert_eq!(integrate(root.path(), &source).unwrap().edited, 0);
        // The record does not match the files.
        fs::write(&makefile, patched.replace("obj-rust", "obj-else")).unwrap();
        let error = format!("{:#}", integrate(root.path(), &source).unwrap_err());
        assert!(error.contains("other changes of this project"), "{error}");
        assert!(error.contains("0001-x.patch does not fit"), "{error}");
    }

    #[test]
    fn what_is_not_understood_stays_untouched() {
        let refused = |change: &dyn Fn(&Path)| {
            let (root, (_folder, mut source)) = (checkout(), tree());
            source.pristine = None;
            change(&source.tree);
            let before = times(&source.tree);
            let error = format!("{:#}", integrate(root.path(), &source).unwrap_err());
            assert!(error.contains("nothing was changed"), "{error}");
            assert_eq!(times(&source.tree), before);
            error
        };
        let makefile = "drivers/iommu/Makefile";
        let unfit = refused(&|tree| write(tree, makefile, "a\nb\n"));
        assert!(unfit.contains("0001-x.patch does not fit"), "{unfit}");
        let older = "VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 9\n";
        assert!(refused(&|tree| write(tree, "Makefile", older)).contains("Linux 7.2.9"));
        let newer = "VERSION = 8\nPATCHLEVEL = 0\nSUBLEVEL = 0\n";
        assert!(refused(&|tree| write(tree, "Makefile", newer)).contains("Linux 8.0.0"));
        assert!(refused(&|tree| write(tree, "Makefile", "all:\n")).contains("no VERSION"));
        let foreign = format!("{PLACE}/Kconfig");
        assert!(refused(&|tree| write(tree, &foreign, "other")).contains("something else"));
    }

    #[test]
    fn a_second_patch_that_fails_keeps_the_first_from_being_written() {
        let (root, (_folder, source)) = (checkout(), tree());
        let more = PATCH.replace("drivers/iommu/Makefile", "arch/none.c");
        write(root.path(), "integration/patches/0002-y.patch", &more);
        let before = times(&source.tree);
        let error = format!("{:#}", integrate(root.path(), &source).unwrap_err());
        assert!(error.contains("it has no arch/none.c"), "{error}");
        assert_eq!(times(&source.tree), before);
    }

    #[test]
    fn a_linked_checkout_is_left_alone() {
        let (root, (_folder, source)) = (checkout(), tree());
        std::os::unix::fs::symlink(root.path(), source.tree.join(PLACE)).unwrap();
        // The selftests lie elsewhere in the tree.
        assert_eq!(integrate(root.path(), &source).unwrap().copied, 1);
        assert_eq!(integrate(root.path(), &source).unwrap().copied, 0);
    }
}
