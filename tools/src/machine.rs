// SPDX-License-Identifier: GPL-2.0
//! `make machine`: QEMU with the patches of `integration/qemu`, which give
//! emulated functions what Debian's QEMU has none of.

use crate::{
    apt::{self, Root},
    deps::{self, Version},
    hash,
    project::Project,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The release of Debian that has the version which the patches are for.
const RELEASE: &str = "trixie";
/// What the patches are for: these, and what was corrected since.
const OLDEST: Version = Version(10, 0, 13);
const TOO_NEW: Version = Version(10, 1, 0);
/// The program.
const NAME: &str = "qemu-system-s390x";
/// Nothing but the emulator. The firmware is Debian's, its archive of QEMU's source has
/// none.
const CONFIGURE: &[&str] = &[
    "--python=/usr/bin/python3",
    "--cc=ccache cc",
    "--target-list=s390x-softmmu",
    "--without-default-features",
    "--enable-tcg",
    "--disable-docs",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-werror",
    "--disable-download",
    "--disable-install-blobs",
    "--firmwarepath=/usr/share/qemu",
];

/// `make machine`.
pub fn run(project: &Project) -> Result<()> {
    println!("machine={}", build(project)?.display());
    Ok(())
}

/// The emulator, from the cache if it was built from the same before.
pub fn build(project: &Project) -> Result<PathBuf> {
    deps::ensure_machine(project)?;
    let _lock = project.lock_file("machine.lock")?;
    let (archive, version) = source(project)?;
    let patches = patches(&project.root.join("integration/qemu"))?;
    let place = place(project, &version, &patches)?;
    let program = place.join(NAME);
    if program.is_file() {
        return Ok(program);
    }
    let work = project.cache.join("machine-build");
    let _ = fs::remove_dir_all(&work);
    let (tree, objects) = (work.join("source"), work.join("objects"));
    prepare(project, &archive, &version, &patches, &tree)?;
    compile(project, &tree, &objects)?;
    let step = Step::start(project, "machine-strip", "leaving out what debuggers read")?;
    let stripped = work.join("stripped");
    fs::create_dir_all(&stripped)?;
    step.run(
        project
            .command("strip")
            .arg("-o")
            .arg(stripped.join(NAME))
            .arg(objects.join(NAME)),
        "read the log",
    )?;
    // Appears when it is whole.
    fs::rename(&stripped, &place)?;
    let _ = fs::remove_dir_all(&work);
    step.done(&format!("QEMU {version} is there"));
    Ok(program)
}

/// The folder of what is built from this.
fn place(project: &Project, version: &Version, patches: &[PathBuf]) -> Result<PathBuf> {
    let version = version.to_string();
    let options = CONFIGURE.join(" ");
    let mut parts = vec![version.into_bytes(), options.into_bytes()];
    for path in patches {
        parts.push(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let key = hash::key(parts.iter().map(Vec::as_slice));
    Ok(project.cache.join(format!("machine-{key}")))
}

/// The patches, in the order in which they are applied.
fn patches(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut list: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    list.retain(|path| path.extension().is_some_and(|kind| kind == "patch"));
    list.sort();
    Ok(list)
}

/// QEMU's source: the newest in the cache, or the newest that Debian offers.
fn source(project: &Project) -> Result<(PathBuf, Version)> {
    let folder = project.cache.join("deb");
    if !project.update {
        if let Some(found) = newest_in(&folder) {
            return Ok(found);
        }
    }
    if apt::codename().is_none() {
        bail!(
            "QEMU's source is taken from Debian; name an emulator that has the patches with QEMU="
        );
    }
    let step = Step::start(
        project,
        "machine-source",
        "looking for QEMU's source in Debian",
    )?;
    let root = Root::of_sources(project, &step, RELEASE)?;
    let offered = root.source_versions(project, &step, "qemu")?;
    let Some((version, text)) = newest_of(&offered) else {
        bail!(
            "{RELEASE} has no QEMU from {OLDEST} to before {TOO_NEW}, but {}: adapt \
             integration/qemu",
            offered.join(", ")
        );
    };
    let archive = root.download_source(project, &step, &format!("qemu={text}"), &folder)?;
    step.done(&format!("QEMU {version} is downloaded"));
    Ok((archive, version))
}

fn fits(version: Version) -> bool {
    version >= OLDEST && version < TOO_NEW
}

fn newest_in(folder: &Path) -> Option<(PathBuf, Version)> {
    let version_in = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix("qemu_")?;
        Version::find(name).filter(|version| fits(*version))
    };
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| Some((version_in(&entry.path())?, entry.path())))
        .max()
        .map(|(version, path)| (path, version))
}

fn newest_of(offered: &[String]) -> Option<(Version, &String)> {
    offered
        .iter()
        .filter_map(|text| Some((Version::find(text)?, text)))
        .filter(|(version, _)| fits(*version))
        .max()
}

/// Unpacks and patches.
fn prepare(
    project: &Project,
    archive: &Path,
    version: &Version,
    patches: &[PathBuf],
    tree: &Path,
) -> Result<()> {
    let doing = format!("unpacking QEMU {version}");
    let step = Step::start(project, "machine-patch", &doing)?;
    fs::create_dir_all(tree)?;
    step.run(
        project
            .command("tar")
            .args(["--extract", "--strip-components=1", "--no-same-owner"])
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(tree),
        "the archive is broken: remove the cache's folder deb and run it again",
    )?;
    for path in patches {
        step.run(
            // A patch that almost fits is one that nobody has seen run.
            project
                .command("patch")
                .current_dir(tree)
                .args(["--strip=1", "--fuzz=0", "--forward", "--batch"])
                .arg(format!("--input={}", path.display())),
            &format!(
                "{} does not fit QEMU {version}: adapt it",
                path.strip_prefix(&project.root).unwrap_or(path).display()
            ),
        )?;
    }
    step.done(&format!("unpacked, {} patches applied", patches.len()));
    Ok(())
}

fn compile(project: &Project, tree: &Path, objects: &Path) -> Result<()> {
    let step = Step::start(project, "machine-build", "building QEMU")?;
    fs::create_dir_all(objects)?;
    let ccache = project.cache.join("ccache");
    step.run(
        project
            .command(tree.join("configure"))
            .current_dir(objects)
            .args(CONFIGURE)
            .env("CCACHE_DIR", &ccache),
        "read the log, or meson-logs/meson-log.txt beside the objects",
    )?;
    step.run(
        project
            .command("ninja")
            .current_dir(objects)
            .args(["-j", &project.jobs.to_string(), NAME])
            .env("CCACHE_DIR", &ccache),
        "read the log",
    )?;
    step.done("built");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_fits_is_taken() {
        let offered = [
            "1:10.0.2+ds-2+deb13u1",
            "1:10.0.13+ds-0+deb13u1",
            "1:10.0.14+ds-0+deb13u1",
            "1:11.1.3+ds-1",
        ]
        .map(str::to_owned);
        let (version, text) = newest_of(&offered).unwrap();
        assert_eq!(version, Version(10, 0, 14));
        assert_eq!(text, &offered[2]);
        assert_eq!(newest_of(&offered[..1]), None);
    }

    #[test]
    fn archives_in_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "qemu_10.0.9+ds.orig.tar.xz",
            "qemu_10.0.13+ds.orig.tar.xz",
            "linux-source-7.3_7.3.4-1_all.deb",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let (path, version) = newest_in(folder.path()).unwrap();
        assert_eq!(version, Version(10, 0, 13));
        assert!(path.ends_with("qemu_10.0.13+ds.orig.tar.xz"));
    }

    #[test]
    fn patches_are_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["0002-b.patch", "README", "0001-a.patch"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let names = patches(folder.path()).unwrap();
        assert!(names[0].ends_with("0001-a.patch") && names.len() == 2);
    }
}
