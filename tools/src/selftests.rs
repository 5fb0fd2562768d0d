// SPDX-License-Identifier: GPL-2.0
//! Cross-builds selftests: the kernel's own, out of the tree in use and with
//! the changes in `integration/selftests`, and ours.
//!
//! Everything happens in a copy, since the tree may be the caller's.

use crate::{
    apt,
    deps::GCC,
    files::{make_anew, name_of, paths_in, read_all},
    hash::{self, Stamp},
    initramfs::Extra,
    integrate,
    kernel::{variable, Kernel},
    patches::{self, Patch},
    project::Project,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use fs_err as fs;
use std::{os::unix::fs::PermissionsExt, path::Path};

/// The folders of `tools/testing/selftests` to build.
pub const TARGETS: [&str; 3] = ["vfio", "iommu", "s390_iommu"];

/// Changes to the kernel's selftests, in the checkout.
const PATCHES: &str = "integration/selftests";

/// What the selftests are built from, relative to the kernel tree.
const SOURCES: [&str; 6] = [
    "scripts/subarch.include",
    "include/linux/pci_ids.h",
    "drivers/iommu/iommufd/iommufd_test.h",
    "tools/arch",
    "tools/include",
    "tools/scripts",
];
/// The folder of all selftests, and what all of them use there.
const FOLDER: &str = "tools/testing/selftests";
const COMMON: [&str; 4] = ["lib.mk", "kselftest.h", "kselftest_harness.h", "Makefile"];

/// Debian's packages with the static libraries that the programs link.
const LIBRARIES: [&str; 2] = ["uuid-dev", "libcap-dev"];

/// On an emulated machine nearly all time goes into faulting pages in.
const SMALLER: &str = "-O2 -DMEMCPY_REGION_SIZE=SZ_32M -DTEST_TIMEOUT_DEFAULT=300";

/// Builds the programs, as files of the guest's root.
pub fn build(project: &Project, kernel: &Kernel) -> Result<Vec<Extra>> {
    let step = Step::start(project, "selftests", "building the selftests")?;
    let folder = project.build.join("selftests");
    let out = folder.join("out");
    let patches = patches::read(&project.root.join(PATCHES))?;
    let stamp = Stamp::new(&folder, key(project, kernel, &patches)?);
    let is_new = stamp.build(true, || {
        compile(&step, kernel, &patches, &folder, &out)?;
        programs(&out).map(drop)
    })?;
    let programs = programs(&out)?;
    match is_new {
        true => step.done(&format!("{} programs", programs.len())),
        false => step.done("nothing changed"),
    }
    Ok(programs)
}

fn compile(
    step: &Step,
    kernel: &Kernel,
    patches: &[Patch],
    folder: &Path,
    out: &Path,
) -> Result<()> {
    let project = step.project;
    make_anew(folder)?;
    let libraries = apt::for_guest(step, "libraries", &LIBRARIES)?;
    let tree = folder.join("tree");
    copy(step, &kernel.source.tree, &tree)?;
    patches::apply(patches, &tree)
        .context("this kernel's selftests are not those that the patches are for")?;
    let headers = folder.join("usr");
    let mut command = kernel.make(project);
    command.arg("headers_install");
    command.arg(variable("INSTALL_HDR_PATH", &headers));
    step.run(&mut command, "read the log")?;
    let (headers, libraries) = (headers.display(), libraries.join("usr"));
    let libraries = libraries.display();
    for target in TARGETS {
        fs::create_dir_all(out.join(target))?;
        let mut command = step.command("make");
        command
            .arg(format!("-j{}", project.jobs))
            .arg("-C")
            .arg(tree.join(FOLDER).join(target))
            .args(["ARCH=s390", "CROSS_COMPILE=s390x-linux-gnu-"])
            .arg(variable("OUTPUT", out.join(target)))
            .arg(format!("KHDR_INCLUDES=-isystem {headers}/include"))
            // Behind the compiler's own: the packages have headers that
            // the cross compiler brings as well.
            .arg(format!("CPPFLAGS=-idirafter {libraries}/include"))
            .arg(format!("EXTRA_CFLAGS={SMALLER}"))
            .arg(format!("LDFLAGS=-static -L{libraries}/lib/s390x-linux-gnu"));
        step.run(&mut command, "correct what the compiler says")?;
    }
    Ok(())
}

/// A key of what the programs are built from; none for a tree of the caller's.
fn key(project: &Project, kernel: &Kernel, patches: &[Patch]) -> Result<Option<String>> {
    if kernel.source.pristine.is_none() {
        return Ok(None);
    }
    let patches: Vec<&String> = patches.iter().map(|patch| &patch.text).collect();
    let files = integrate::selftest_files(&project.root)?;
    let texts = read_all(&files)?;
    let gcc = hash::of_program(Path::new(GCC));
    let name = &kernel.source.name;
    let key = hash::key((name, SMALLER, patches, files, texts, gcc, &project.build));
    Ok(Some(key))
}

/// Copies what is needed, links as what they point at: most point at headers
/// elsewhere in the kernel tree.
fn copy(step: &Step, from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut command = step.command("rsync");
    command.args(["--recursive", "--relative", "--copy-links", "--times"]);
    command.args(SOURCES.map(|path| from.join(".").join(path)));
    let folder = from.join(".").join(FOLDER);
    command.args(COMMON.iter().chain(&TARGETS).map(|name| folder.join(name)));
    let advice = "the kernel tree lacks what the selftests need";
    step.run(command.arg(to), advice)
}

/// The executable files, sorted by name; each target must have some.
fn programs(out: &Path) -> Result<Vec<Extra>> {
    let mut list = Vec::new();
    for target in TARGETS {
        let before = list.len();
        for path in paths_in(&out.join(target))? {
            let data = fs::metadata(&path)?;
            if data.is_file() && data.permissions().mode() & 0o100 != 0 {
                list.push((format!("kselftest/{target}/{}", name_of(&path)), path));
            }
        }
        if list.len() == before {
            bail!("the selftests in {target} built no program");
        }
    }
    list.sort();
    Ok(list)
}
