// SPDX-License-Identifier: GPL-2.0
//! A QEMU that runs inside the guest: Debian's own for s390x, with the
//! libraries that it needs and its loader, in one folder of an archive.

use crate::{
    apt::{self, Root},
    hash, initramfs,
    project::Project,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Where the guest finds it.
pub const FOLDER: &str = "l2";
/// The package and its program.
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
    let Some(codename) = apt::codename() else {
        bail!("the inner guest's QEMU comes from Debian's packages, this is no Debian 12 or 13");
    };
    let key = hash::key([codename.as_bytes(), PACKAGE.as_bytes(), LAYOUT.as_bytes()]);
    let path = folder.join(format!("qemu-{key}.cpio"));
    if path.is_file() {
        return Ok(path);
    }
    let _lock = project.lock()?;
    let step = Step::start(
        project,
        "inner-qemu",
        "fetching a QEMU that runs in the guest",
    )?;
    let tree = folder.join("qemu.partial");
    let _ = fs::remove_dir_all(&tree);
    // bookworm's own is too old; its backports have the one of trixie.
    let mut suites = vec![codename.clone()];
    if codename == "bookworm" {
        suites.push(format!("{codename}-backports"));
    }
    let root = Root::of_suites(project, &step, &suites, "s390x")?;
    root.unpack(project, &step, PACKAGE, &suites[suites.len() - 1], &tree)?;
    let mut files = closure(project, &step, &tree)?;
    files.push(tree.join(FIRMWARE));
    let partial = path.with_extension("partial");
    initramfs::pack_files(&partial, FOLDER, &files)?;
    fs::rename(&partial, &path)?;
    fs::remove_dir_all(&tree)?;
    step.done(&format!("{} files packed", files.len()));
    Ok(path)
}

/// The program, its loader, and all libraries that it comes to need.
fn closure(project: &Project, step: &Step, tree: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = vec![tree.join("usr/bin").join(PACKAGE), library(tree, LOADER)?];
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap_or_default().to_owned();
        if found.contains_key(&name) {
            continue;
        }
        let text = step.output(
            project
                .command(project.llvm_tool("llvm-readelf"))
                .arg("--needed-libs")
                .arg(&path),
            "read the log",
        )?;
        for needed in needed(&text) {
            open.push(library(tree, needed)?);
        }
        found.insert(name, path);
    }
    Ok(found.into_values().collect())
}

/// The names between the brackets of `NeededLibraries [ ... ]`.
fn needed(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split_whitespace();
    words.filter(|word| word.contains(".so"))
}

fn library(tree: &Path, name: &str) -> Result<PathBuf> {
    let mut paths = LIBRARIES.iter().map(|folder| tree.join(folder).join(name));
    paths
        .find(|path| path.is_file())
        .with_context(|| format!("no package of {PACKAGE} brought the library {name}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn libraries_as_readelf_prints_them() {
        let text = "NeededLibraries [\n  ld64.so.1\n  libc.so.6\n]\n";
        let names: Vec<&str> = super::needed(text).collect();
        assert_eq!(names, ["ld64.so.1", "libc.so.6"]);
    }
}
