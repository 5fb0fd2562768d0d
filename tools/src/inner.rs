// SPDX-License-Identifier: GPL-2.0
//! A QEMU that runs inside the guest: Debian's own for s390x, with the
//! libraries that it needs and its loader, in one folder of an archive.

use crate::{
    apt::{self, Root},
    files::name_of,
    hash, initramfs,
    project::Project,
    steps::Step,
};
use anyhow::{Context, Result};
use fs_err as fs;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where the guest finds it.
pub const FOLDER: &str = "l2";
const PACKAGE: &str = "qemu-system-s390x";
/// The loader that s390x programs name.
const LOADER: &str = "ld64.so.1";
/// Its boot loader, which it wants even where it does not use it.
const FIRMWARE: &str = "usr/share/qemu/s390-ccw.img";
/// Where Debian has libraries of s390x.
const LIBRARIES: [&str; 2] = ["usr/lib/s390x-linux-gnu", "lib/s390x-linux-gnu"];
/// Changes when what is packed does.
const LAYOUT: &str = "1";

/// The archive; made once for a release of Debian.
pub fn qemu(project: &Project) -> Result<PathBuf> {
    let folder = project.cache.join("guest");
    let codename = apt::codename().context(
        "the inner guest's QEMU comes from Debian's packages, this is no Debian 12 or 13",
    )?;
    let key = hash::key((&codename, PACKAGE, LAYOUT));
    let path = folder.join(format!("qemu-{key}.cpio"));
    if path.is_file() {
        return Ok(path);
    }
    let _lock = project.lock()?;
    let doing = "fetching a QEMU that runs in the guest";
    let step = Step::start(project, "inner-qemu", doing)?;
    let tree = folder.join("qemu");
    // bookworm's own is too old; its backports have the one of trixie.
    let mut suites = vec![codename.clone()];
    if codename == "bookworm" {
        suites.push(format!("{codename}-backports"));
    }
    let how = "install --download-only --yes --no-install-recommends -t";
    let mut words: Vec<&str> = how.split(' ').collect();
    words.extend([suites[suites.len() - 1].as_str(), PACKAGE]);
    Root::of_suites(&step, &suites, "s390x")?.unpack(&words, &tree)?;
    let mut files = closure(&step, &tree)?;
    files.push(tree.join(FIRMWARE));
    let partial = path.with_extension("partial");
    initramfs::pack_files(&partial, FOLDER, &files)?;
    fs::rename(&partial, &path)?;
    fs::remove_dir_all(&tree)?;
    step.done(&format!("{} files packed", files.len()));
    Ok(path)
}

/// The program, its loader, and all libraries that it comes to need.
fn closure(step: &Step, tree: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = vec![tree.join("usr/bin").join(PACKAGE), library(tree, LOADER)?];
    while let Some(path) = open.pop() {
        let name = name_of(&path);
        if found.contains_key(&name) {
            continue;
        }
        // NeededLibraries [ ... ]
        let mut command = step.command(step.project.llvm_tool("llvm-readelf"));
        let text = step.output(command.arg("--needed-libs").arg(&path), "read the log")?;
        for needed in text.split_whitespace().filter(|word| word.contains(".so")) {
            open.push(library(tree, needed)?);
        }
        found.insert(name, path);
    }
    Ok(found.into_values().collect())
}

fn library(tree: &Path, name: &str) -> Result<PathBuf> {
    let mut paths = LIBRARIES.iter().map(|folder| tree.join(folder).join(name));
    paths
        .find(|path| path.is_file())
        .with_context(|| format!("no package of {PACKAGE} brought the library {name}"))
}
