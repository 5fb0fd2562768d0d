// SPDX-License-Identifier: GPL-2.0
//! Programs that run inside the guest: Debian's own for s390x, with the libraries
//! that they need and their loader, in one folder of an archive.

use crate::{
    apt::{self, Root, INSTALL},
    initramfs,
    prelude::*,
};

/// Programs, each of a package of its name.
pub struct Programs {
    /// Where the guest finds them.
    pub folder: &'static str,
    names: &'static [&'static str],
    /// Other files that they need.
    files: &'static [&'static str],
}

/// What L1 starts L2 with; it wants its boot loader even where it does not use it.
pub const QEMU: Programs = Programs {
    folder: "l2",
    names: &["qemu-system-s390x"],
    files: &["usr/share/qemu/s390-ccw.img"],
};
/// What keeps devices at work for `make bench`.
pub const LOAD: Programs = Programs {
    folder: "load",
    names: &["fio", "iperf3"],
    files: &[],
};

/// The loader that s390x programs name.
const LOADER: &str = "ld64.so.1";
/// Where Debian has libraries of s390x; fio needs those of Ceph.
const LIBRARIES: &str = "usr/lib/s390x-linux-gnu lib/s390x-linux-gnu usr/lib/s390x-linux-gnu/ceph";
/// To be changed with the content of the archive.
const LAYOUT: &str = "2";

impl Programs {
    /// The archive; made once for a release of Debian. A program that is given takes the
    /// place of Debian's of its name.
    pub fn archive(&self, project: &Project, given: Option<&Path>) -> Result<PathBuf> {
        let folder = project.cache.join("guest");
        let codename = apt::codename().context(
            "the guest's programs come from Debian's packages, this is no Debian 12 or 13",
        )?;
        let key = hash::key((&codename, LAYOUT, self.names, given.map(Path::as_std_path)));
        let path = folder.join(format!("{}-{key}.cpio", self.folder));
        if path.is_file() {
            return Ok(path);
        }
        let _lock = project.lock()?;
        let doing = format!("fetching {} for the guest", self.names.join(" and "));
        let step = Step::start(project, &format!("guest-{}", self.folder), &doing)?;
        let tree = folder.join(self.folder);
        // bookworm's own QEMU is too old; its backports have the one of trixie.
        let mut suites = vec![codename.clone()];
        if codename == "bookworm" {
            suites.push(format!("{codename}-backports"));
        }
        let (newest, names) = (&suites[suites.len() - 1], self.names.join(" "));
        let arguments = format!("{INSTALL} -t {newest} {names}");
        Root::of_suites(&step, &suites, "s390x")?.unpack(&arguments, &tree)?;
        let folder = tree.join("usr/bin");
        if let Some(program) = given {
            fs::copy(program, folder.join(name_of(program)))?;
        }
        let programs = self.names.iter().map(|name| folder.join(name));
        let mut files = closure(&step, &tree, programs.collect())?;
        files.extend(self.files.iter().map(|file| tree.join(file)));
        let partial = path.with_extension("partial");
        initramfs::pack_files(&partial, self.folder, &files)?;
        fs::rename(&partial, &path)?;
        fs::remove_dir_all(&tree)?;
        step.done(&format!("{} files packed", files.len()));
        Ok(path)
    }
}

/// Programs, their loader, and all libraries that they need.
fn closure(step: &Step, tree: &Path, programs: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open = programs;
    open.push(library(tree, LOADER)?);
    while let Some(path) = open.pop() {
        let name = name_of(&path);
        if found.contains_key(&name) {
            continue;
        }
        // NeededLibraries [ ... ]
        let readelf = step.llvm_tool("llvm-readelf");
        let mut command = command!(step, "{readelf} --needed-libs {path}");
        let text = step.output(&mut command, "read the log")?;
        for needed in text.split_whitespace().filter(|word| word.contains(".so")) {
            open.push(library(tree, needed)?);
        }
        found.insert(name, path);
    }
    Ok(found.into_values().collect())
}

fn library(tree: &Path, name: &str) -> Result<PathBuf> {
    let folders = LIBRARIES.split(' ');
    let mut paths = folders.map(|folder| tree.join(folder).join(name));
    paths
        .find(|path| path.is_file())
        .with_context(|| format!("no package brought the library {name}"))
}
