// SPDX-License-Identifier: GPL-2.0
//! Makes the driver selectable in a kernel tree: patches of the kernel's files, the
//! driver's files in `drivers/iommu/s390/`, and our selftests among the kernel's.
//!
//! Everything is read and checked before the first file is written, so a tree
//! that is not understood stays as it was. Doing it again changes nothing, and
//! files that do not change keep their times, so `make` builds only what did.

use crate::{
    deps::Version,
    patches::{self, Patch, Texts},
    source::{Source, OLDEST, TOO_NEW},
    steps::write_if_changed,
};
use anyhow::{bail, Context, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

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
/// What was there before there were patches.
const BY_EDITOR: &str = ".integrated-hooks.toml";

/// What was found and done.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    /// The tree's version.
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
    let files = driver_files(root)?;

    let refuse = || {
        format!(
            "{} is not a kernel tree that is understood, nothing was changed",
            source.tree.display()
        )
    };
    let version = tree_version(&source.tree).with_context(refuse)?;
    let place = source.tree.join(PLACE);
    let applied = patches::read(&place.join(APPLIED))?;
    let texts = plan(source, &wanted, &applied).with_context(refuse)?;
    check_place(root, &place, &files).with_context(refuse)?;
    let (from, to) = (root.join(SELFTESTS.0), source.tree.join(SELFTESTS.1));
    let selftests = files_below(&from)?;
    check_place(&from, &to, &[]).with_context(refuse)?;

    let edited = write_texts(source, &texts)?;
    let mut copied = copy_files(root, &place, &files)?;
    if !selftests.is_empty() {
        copied += copy_files(&from, &to, &selftests)?;
    }
    if !is_same_folder(root, &place) {
        let names: Vec<String> = wanted.into_iter().map(|patch| patch.name).collect();
        copy_files(&root.join(PATCHES), &place.join(APPLIED), &names)?;
        let _ = fs::remove_file(place.join(BY_EDITOR));
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
    if version < OLDEST || version >= TOO_NEW {
        bail!("it is Linux {version}; {OLDEST} or a newer 7.x is needed");
    }
    Ok(version)
}

/// The patches for the kernel's own files.
pub fn patches(root: &Path) -> Result<Vec<Patch>> {
    let list = patches::read(&root.join(PATCHES))?;
    if list.is_empty() {
        bail!("the checkout {} has no {PATCHES}", root.display());
    }
    Ok(list)
}

/// The new text of each file that changes, or must be put back.
fn plan(source: &Source, wanted: &[Patch], applied: &[Patch]) -> Result<Texts> {
    let mut files: BTreeSet<String> = wanted
        .iter()
        .chain(applied)
        .flat_map(Patch::files)
        .map(|(file, _)| file.to_owned())
        .collect();
    if let Some(pristine) = &source.pristine {
        // Also what an older set changed and this one does not.
        files.extend(files_below(pristine)?);
    }
    let texts = files
        .into_iter()
        .map(|file| {
            // One that is missing is for a patch to make, or to complain of.
            let text = source.pristine_text(&file).unwrap_or_default();
            (file, text)
        })
        .collect();
    if source.pristine.is_some() {
        return patches::apply(wanted, &texts);
    }
    // The caller may have put the files back, or taken a newer kernel.
    let bare = match applied {
        [] => None,
        _ => patches::revert(applied, &texts).ok(),
    };
    patches::apply(wanted, bare.as_ref().unwrap_or(&texts)).or_else(|error| {
        // All are there, by `git am` or by a linked checkout.
        match patches::revert(wanted, &texts) {
            Ok(_) => Ok(texts),
            Err(_)
                if bare.is_none()
                    && (!applied.is_empty()
                        || source.tree.join(PLACE).join(BY_EDITOR).is_file()) =>
            {
                Err(error.context(
                    "other changes of this project are in its files; put these back as the \
                     kernel has them (git checkout)",
                ))
            }
            Err(_) => Err(error),
        }
    })
}

fn write_texts(source: &Source, texts: &Texts) -> Result<usize> {
    let mut count = 0;
    for (file, text) in texts {
        let path = source.tree.join(file);
        if let Some(kept) = source.pristine.as_ref().map(|folder| folder.join(file)) {
            if !kept.is_file() {
                let old = fs::read(&path).unwrap_or_default();
                write_if_changed(&kept, &old)?;
            }
        }
        count += usize::from(if text.is_empty() {
            fs::remove_file(&path).is_ok()
        } else {
            write_if_changed(&path, text)?
        });
    }
    Ok(count)
}

/// The driver's files, relative to the checkout.
pub fn driver_files(root: &Path) -> Result<Vec<String>> {
    let mut list = Vec::new();
    for (folder, wanted) in [
        ("", &["rs", "c", "h", "Kbuild", "Kconfig"][..]),
        ("address_space", &["rs"]),
        ("dma_table", &["rs"]),
        ("function", &["rs"]),
        ("integration", &["c", "h"]),
        ("rust", &["rs"]),
        ("rust/iommu", &["rs"]),
        ("zpci", &["rs"]),
    ] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let kind = name.rsplit('.').next().unwrap_or_default();
            // What an external build leaves behind is not ours to copy.
            let made = name.ends_with(".mod.c") || name.starts_with('.');
            if path.is_file() && wanted.contains(&kind) && !made {
                list.push(
                    Path::new(folder)
                        .join(name.as_ref())
                        .to_string_lossy()
                        .into_owned(),
                );
            }
        }
    }
    for file in ["Kbuild", "Kconfig"] {
        if !list.iter().any(|name| name == file) {
            bail!("the checkout {} has no {file}", root.display());
        }
    }
    list.sort();
    Ok(list)
}

/// Our selftests, in the checkout.
pub fn selftest_files(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join(SELFTESTS.0);
    let mut list: Vec<PathBuf> = files_below(&folder)?
        .into_iter()
        .map(|file| folder.join(file))
        .collect();
    list.sort();
    Ok(list)
}

/// The folder must be ours, or not there.
fn check_place(root: &Path, place: &Path, files: &[String]) -> Result<()> {
    if !place.exists() || is_same_folder(root, place) || place.join(LIST).is_file() {
        return Ok(());
    }
    let by_hand = files
        .iter()
        .any(|file| file.ends_with(".rs") && place.join(file).is_file());
    if by_hand {
        return Ok(());
    }
    bail!("its {} holds something else", place.display());
}

/// A tree into which the checkout was linked needs no copies.
fn is_same_folder(root: &Path, place: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(root).is_some() && real(root) == real(place)
}

fn copy_files(root: &Path, place: &Path, files: &[String]) -> Result<usize> {
    if is_same_folder(root, place) {
        return Ok(0);
    }
    let list = place.join(LIST);
    let mut count = 0;
    for old in fs::read_to_string(&list).unwrap_or_default().lines() {
        if !files.iter().any(|file| file == old) && fs::remove_file(place.join(old)).is_ok() {
            count += 1;
        }
    }
    for file in files {
        let from = root.join(file);
        let content = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        count += usize::from(write_if_changed(&place.join(file), &content)?);
    }
    write_if_changed(&list, (files.join("\n") + "\n").as_bytes())?;
    Ok(count)
}

/// All files below a folder, relative to it.
pub fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut list = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                list.push(path.strip_prefix(folder)?.to_string_lossy().into_owned());
            }
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;
    use tempfile::TempDir;

    const PATCH: &str = "Subject: x\n---\n\
        --- a/drivers/iommu/Makefile\n+++ b/drivers/iommu/Makefile\n\
        @@ -1,3 +1,4 @@\n a\n obj-c += c.o\n+obj-rust += s390/\n b\n";
    const FIRST: &str = "integration/patches/0001-x.patch";

    fn write(folder: &Path, file: &str, text: &str) {
        write_if_changed(&folder.join(file), text.as_bytes()).unwrap();
    }

    fn checkout() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), FIRST, PATCH);
        write(folder.path(), "integration/glue.c", "glue");
        write(folder.path(), "Kbuild", "kbuild");
        write(folder.path(), "Kconfig", "kconfig");
        write(folder.path(), "driver.rs", "driver");
        write(folder.path(), "driver.mod.c", "made");
        write(folder.path(), "README.md", "readme");
        write(folder.path(), "tests/selftests/a_test.c", "test");
        folder
    }

    fn tree(version: (u32, u32)) -> (TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        let (major, minor) = version;
        let makefile = format!("VERSION = {major}\nPATCHLEVEL = {minor}\nSUBLEVEL = 4\n");
        write(folder.path(), "tree/Makefile", &makefile);
        write(
            folder.path(),
            "tree/drivers/iommu/Makefile",
            "a\nobj-c += c.o\nb\n",
        );
        let source = Source {
            tree: folder.path().join("tree"),
            name: "test".into(),
            pristine: Some(folder.path().join("pristine")),
        };
        (folder, source)
    }

    fn times(folder: &Path) -> Vec<(String, SystemTime)> {
        let mut list: Vec<_> = files_below(folder)
            .unwrap()
            .into_iter()
            .map(|file| {
                let data = fs::metadata(folder.join(&file)).unwrap();
                (file, data.modified().unwrap())
            })
            .collect();
        list.sort();
        list
    }

    #[test]
    fn twice_is_once() {
        let (root, (_folder, mut source)) = (checkout(), tree((7, 3)));
        let report = integrate(root.path(), &source).unwrap();
        assert_eq!((report.version, report.edited), (Version(7, 3, 4), 1));
        let makefile = source.tree.join("drivers/iommu/Makefile");
        let text = fs::read_to_string(&makefile).unwrap();
        assert_eq!(text, "a\nobj-c += c.o\nobj-rust += s390/\nb\n");
        let place = source.tree.join(PLACE);
        assert_eq!(
            fs::read_to_string(place.join("integration/glue.c")).unwrap(),
            "glue"
        );
        let test = source.tree.join(SELFTESTS.1).join("a_test.c");
        assert_eq!(fs::read_to_string(test).unwrap(), "test");
        assert!(!place.join("README.md").exists());
        assert!(!place.join("driver.mod.c").exists());

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
        let (root, (_folder, source)) = (checkout(), tree((7, 3)));
        integrate(root.path(), &source).unwrap();
        fs::remove_file(root.path().join("integration/glue.c")).unwrap();
        write(root.path(), "driver.rs", "changed");
        let report = integrate(root.path(), &source).unwrap();
        assert_eq!(report.copied, 2);
        assert!(!source.tree.join(PLACE).join("integration/glue.c").exists());
    }

    #[test]
    fn changed_patches_replace_those_applied_before() {
        let (root, (_folder, mut source)) = (checkout(), tree((7, 3)));
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
        let (root, (_folder, mut source)) = (checkout(), tree((7, 3)));
        source.pristine = None;
        let makefile = source.tree.join("drivers/iommu/Makefile");
        let bare = fs::read_to_string(&makefile).unwrap();
        assert_eq!(integrate(root.path(), &source).unwrap().edited, 1);
        let patched = fs::read_to_string(&makefile).unwrap();
        fs::write(&makefile, &bare).unwrap();
        assert_eq!(integrate(root.path(), &source).unwrap().edited, 1);
        assert_eq!(fs::read_to_string(&makefile).unwrap(), patched);
        // By hand: nothing is on record.
        fs::remove_dir_all(source.tree.join(PLACE)).unwrap();
        assert_eq!(integrate(root.path(), &source).unwrap().edited, 0);
        // What is on record is not what is there.
        fs::write(&makefile, patched.replace("obj-rust", "obj-else")).unwrap();
        let error = format!("{:#}", integrate(root.path(), &source).unwrap_err());
        assert!(error.contains("other changes of this project"), "{error}");
        assert!(error.contains("0001-x.patch does not fit"), "{error}");
    }

    #[test]
    fn what_is_not_understood_stays_untouched() {
        let refused = |change: &dyn Fn(&Path)| {
            let (root, (_folder, mut source)) = (checkout(), tree((7, 3)));
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
        let (root, (_folder, source)) = (checkout(), tree((7, 3)));
        let more = PATCH.replace("drivers/iommu/Makefile", "arch/none.c");
        write(root.path(), "integration/patches/0002-y.patch", &more);
        let before = times(&source.tree);
        let error = format!("{:#}", integrate(root.path(), &source).unwrap_err());
        assert!(error.contains("it has no arch/none.c"), "{error}");
        assert_eq!(times(&source.tree), before);
    }

    #[test]
    fn a_linked_checkout_is_left_alone() {
        let (root, (_folder, source)) = (checkout(), tree((7, 3)));
        std::os::unix::fs::symlink(root.path(), source.tree.join(PLACE)).unwrap();
        // The selftests lie elsewhere in the tree.
        assert_eq!(integrate(root.path(), &source).unwrap().copied, 1);
        assert_eq!(integrate(root.path(), &source).unwrap().copied, 0);
    }
}
