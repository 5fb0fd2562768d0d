// SPDX-License-Identifier: GPL-2.0
//! The kernel's source: the newest that Debian offers, or the caller's.

use crate::{
    apt::{self, Root},
    prelude::*,
};

/// Where a source of Linux 7.3 or newer is found, best first: the suites roll.
const SUITES: [&str; 3] = ["trixie-backports", "forky", "sid"];
/// The oldest kernel with all that the driver needs.
pub const OLDEST: Version = Version(7, 3, 0);
/// The first major version that nobody knows yet.
pub const TOO_NEW: Version = Version(8, 0, 0);

pub struct Source {
    pub tree: PathBuf,
    /// For keys of what is built from it.
    pub name: String,
    /// Where the untouched form of files is kept that patches change; only
    /// for a tree of ours.
    pub pristine: Option<PathBuf>,
}

impl Source {
    /// A tree of the caller's, of which nothing is kept.
    pub fn of_caller(tree: &Path) -> Self {
        Self {
            name: format!("{}-{}", name_of(tree), hash::key(tree.as_std_path())),
            tree: tree.to_owned(),
            pristine: None,
        }
    }

    fn of_folder(path: &Path) -> Self {
        Self {
            tree: path.join("tree"),
            name: name_of(path),
            pristine: Some(path.join("pristine")),
        }
    }

    /// A file as the kernel has it, if it has it: what is kept of one that a patch makes
    /// is empty. What is kept was kept before the tree's own was changed, so it is looked
    /// for after that was read.
    pub fn pristine_text(&self, file: &str) -> Option<Vec<u8>> {
        let own = fs::read(self.tree.join(file)).ok();
        let kept = self.pristine.as_ref().map(|folder| folder.join(file));
        let text = kept.and_then(|path| fs::read(path).ok()).or(own);
        text.filter(|text| !text.is_empty())
    }
}

/// Whether a place in the cache has a tree that was unpacked to its end.
fn is_whole(place: &Path) -> bool {
    place.join("tree/Makefile").is_file()
}

/// The caller's tree (`KDIR=`), one in the cache, or one from Debian.
pub fn find(project: &Project) -> Result<Source> {
    if let Some(tree) = &project.kdir {
        return Ok(Source::of_caller(tree));
    }
    let folder = project.cache.join("source");
    match newest_in(&folder) {
        Some(source) if !project.update => Ok(source),
        _ => fetch(project, &folder),
    }
}

/// A new tree, unpacked into `folder`; it takes half a minute.
pub fn unpacked(project: &Project, folder: &Path) -> Result<Source> {
    let _ = fs::remove_dir_all(folder);
    fetch(project, folder)
}

fn newest_in(folder: &Path) -> Option<Source> {
    let places = paths_in(folder).ok()?.into_iter();
    let versions = places.filter(|place| is_whole(place)).filter_map(|place| {
        let version = Version::find(name_of(&place).split('_').nth(1)?)?;
        Some((version, place))
    });
    versions.max().map(|(_, place)| Source::of_folder(&place))
}

fn fetch(project: &Project, folder: &Path) -> Result<Source> {
    if apt::codename().is_none() {
        bail!("no kernel source; name a Linux 7.3 or newer tree with KDIR=");
    }
    let doing = "looking for the newest Linux 7.x in Debian";
    let step = Step::start(project, "source", doing)?;
    let (root, package, version) = newest_offered(&step)?;
    let place = folder.join(format!("{package}_{version}"));
    if !is_whole(&place) {
        let debs = project.cache.join("deb");
        // apt writes an epoch's colon as %3a.
        let escaped = version.replace(':', "%3a");
        let deb = debs.join(format!("{package}_{escaped}_all.deb"));
        if !deb.is_file() {
            root.download(&format!("download {package}"), &debs)?;
        }
        unpack(&step, &deb, &package, &place)?;
    }
    step.done(&format!("{package} {version} is there"));
    Ok(Source::of_folder(&place))
}

/// The newest fitting source package of the first suite that has one, and its version.
fn newest_offered<'a>(step: &'a Step) -> Result<(Root<'a>, String, String)> {
    for suite in SUITES {
        let Ok(root) = Root::of_suites(step, &[suite.to_owned()], "amd64") else {
            continue;
        };
        let names = root.ask("pkgnames linux-source-", "linux-source-")?;
        if let Some((_, name)) = Version::newest(names, OLDEST..TOO_NEW) {
            let package = format!("linux-source-{name}");
            let versions = root.ask(&format!("show --no-all-versions {package}"), "Version: ")?;
            let version = versions.into_iter().next();
            let version = version.with_context(|| format!("apt knows no version of {package}"))?;
            return Ok((root, package, version));
        }
    }
    bail!(
        "no package linux-source-7.3 or newer 7.x in {}; check the network, or name a tree with KDIR=",
        SUITES.join(", ")
    )
}

/// Unpacks the archive within the package; the tree appears when it is whole.
fn unpack(step: &Step, deb: &Path, package: &str, place: &Path) -> Result<()> {
    let partial = place.join("partial");
    let tree = partial.join("tree");
    make_anew(&tree)?;
    let advice = "the package is broken: remove it and run it again";
    run!(step, "dpkg-deb -x {deb} {partial}", advice)?;
    run!(
        step,
        "tar --extract --strip-components=1 --no-same-owner '--use-compress-program=xz -dT0'
                --file {partial}/usr/src/{package}.tar.xz --directory {tree}",
        advice
    )?;
    fs::rename(&tree, place.join("tree"))?;
    Ok(fs::remove_dir_all(&partial)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_tree_is_taken() {
        let folder = camino_tempfile::tempdir().unwrap();
        assert!(newest_in(folder.path()).is_none());
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
}
