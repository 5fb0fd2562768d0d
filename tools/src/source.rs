// SPDX-License-Identifier: GPL-2.0
//! The kernel's source: the newest that Debian offers, or the caller's.

use crate::{
    apt::{self, Root},
    deps::Version,
    project::Project,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Where a source of Linux 7.3 or newer is found, best first: the suites roll.
const SUITES: [&str; 3] = ["trixie-backports", "forky", "sid"];
/// The oldest kernel that has all that the driver is built on.
pub const OLDEST: Version = Version(7, 3, 0);
/// The first that nobody can know yet.
pub const TOO_NEW: Version = Version(8, 0, 0);

/// A kernel tree.
pub struct Source {
    /// The tree.
    pub tree: PathBuf,
    /// For keys of what is built from it.
    pub name: String,
    /// Where the untouched form of files is kept that patches change; only
    /// for a tree of ours.
    pub pristine: Option<PathBuf>,
}

impl Source {
    /// A tree of which nothing is kept.
    pub fn of_caller(tree: &Path) -> Self {
        let name = tree.file_name().unwrap_or_default().to_string_lossy();
        let key = crate::hash::key([tree.as_os_str().as_encoded_bytes()]);
        Self {
            name: format!("{name}-{key}"),
            tree: tree.to_owned(),
            pristine: None,
        }
    }

    /// A file as the kernel has it. What is kept was kept before the tree's own
    /// was changed, so it is looked for after that was read.
    pub fn pristine_text(&self, file: &str) -> Option<Vec<u8>> {
        let own = fs::read(self.tree.join(file)).ok();
        let kept = self.pristine.as_ref().map(|folder| folder.join(file));
        kept.and_then(|path| fs::read(path).ok()).or(own)
    }
}

/// The caller's tree (`KDIR=`), one in the cache, or one from Debian.
pub fn find(project: &Project) -> Result<Source> {
    if let Some(tree) = &project.kdir {
        return Ok(Source::of_caller(tree));
    }
    let folder = project.cache.join("source");
    if !project.update {
        if let Some(source) = newest_in(&folder) {
            return Ok(source);
        }
    }
    fetch(project, &folder)
}

/// A tree that nobody has changed, in `folder`; takes half a minute.
pub fn unpacked(project: &Project, folder: &Path) -> Result<Source> {
    let _ = fs::remove_dir_all(folder);
    fetch(project, folder)
}

/// The newest tree in the cache that was unpacked to its end.
fn newest_in(folder: &Path) -> Option<Source> {
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("tree/Makefile").is_file())
        .filter_map(|path| {
            let version = Version::find(path.file_name()?.to_str()?.split('_').nth(1)?)?;
            Some((version, path))
        })
        .max()
        .map(|(_, path)| of_folder(&path))
}

fn of_folder(path: &Path) -> Source {
    Source {
        tree: path.join("tree"),
        name: path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        pristine: Some(path.join("pristine")),
    }
}

fn fetch(project: &Project, folder: &Path) -> Result<Source> {
    if apt::codename().is_none() {
        bail!("no kernel source; name a Linux 7.3 or newer tree with KDIR=");
    }
    let step = Step::start(
        project,
        "source",
        "looking for the newest Linux 7.x in Debian",
    )?;
    let (root, package, version) = newest_offered(project, &step)?;
    let place = folder.join(format!("{package}_{version}"));
    if place.join("tree/Makefile").is_file() {
        step.done(&format!("{version} is there"));
        return Ok(of_folder(&place));
    }
    let deb = match downloaded(&project.cache.join("deb"), &package, &version) {
        Some(path) => path,
        None => root.download(project, &step, &package, &project.cache.join("deb"))?,
    };
    unpack(project, &step, &deb, &package, &place)?;
    step.done(&format!("{package} {version} is there"));
    Ok(of_folder(&place))
}

/// The newest fitting source package of the first suite that has one.
fn newest_offered(project: &Project, step: &Step) -> Result<(Root, String, String)> {
    for suite in SUITES {
        let Ok(root) = Root::of_suite(project, step, suite, "amd64") else {
            continue;
        };
        let newest = root
            .names(project, step, "linux-source-")?
            .into_iter()
            .filter_map(|name| {
                let version = Version::find(name.strip_prefix("linux-source-")?)?;
                (version >= OLDEST && version < TOO_NEW).then_some((version, name))
            })
            .max();
        if let Some((_, package)) = newest {
            let version = root.version(project, step, &package)?;
            return Ok((root, package, version));
        }
    }
    bail!(
        "no package linux-source-7.3 or newer 7.x in {}; check the network, or name a tree with KDIR=",
        SUITES.join(", ")
    )
}

fn downloaded(folder: &Path, package: &str, version: &str) -> Option<PathBuf> {
    // apt writes an epoch's colon as %3a.
    let name = format!("{package}_{}_all.deb", version.replace(':', "%3a"));
    Some(folder.join(name)).filter(|path| path.is_file())
}

/// Unpacks the archive within the package; the tree appears when it is whole.
fn unpack(project: &Project, step: &Step, deb: &Path, package: &str, place: &Path) -> Result<()> {
    let partial = place.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(partial.join("tree"))?;
    let archive = format!("./usr/src/{package}.tar.xz");
    let advice = "the package is broken: remove it and run it again";
    let mut outer = project
        .command("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(step.log_file()?)
        .spawn()
        .context("cannot start dpkg-deb")?;
    let mut inner = project
        .command("tar")
        .args(["--extract", "--to-stdout", "--file=-", &archive])
        .stdin(outer.stdout.take().context("no pipe")?)
        .stdout(Stdio::piped())
        .stderr(step.log_file()?)
        .spawn()
        .context("cannot start tar")?;
    step.run(
        project
            .command("tar")
            .args(["--extract", "--file=-", "--strip-components=1"])
            .args(["--use-compress-program=xz -dT0", "--no-same-owner"])
            .arg("--directory")
            .arg(partial.join("tree"))
            .stdin(inner.stdout.take().context("no pipe")?),
        advice,
    )?;
    if !inner.wait()?.success() | !outer.wait()?.success() {
        step.fail(&format!("unpacking {}", deb.display()), advice)?;
    }
    let _ = fs::remove_dir_all(place);
    fs::rename(&partial, place)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_tree_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for (name, whole) in [
            ("linux-source-7.3_7.3.1-1", true),
            ("linux-source-7.3_7.3.4-1~bpo13+1", true),
            ("linux-source-7.10_7.10.1-1", false),
        ] {
            let tree = folder.path().join(name).join("tree");
            fs::create_dir_all(&tree).unwrap();
            if whole {
                fs::write(tree.join("Makefile"), "").unwrap();
            }
        }
        let source = newest_in(folder.path()).unwrap();
        assert_eq!(source.name, "linux-source-7.3_7.3.4-1~bpo13+1");
        assert!(source.tree.ends_with("tree"));
    }

    #[test]
    fn an_empty_cache_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(newest_in(folder.path()).is_none());
        assert!(newest_in(&folder.path().join("none")).is_none());
    }
}
