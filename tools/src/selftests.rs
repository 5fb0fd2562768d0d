// SPDX-License-Identifier: GPL-2.0
//! Cross-builds selftests: the kernel's own, out of the tree in use and with
//! the changes in `integration/selftests`, and ours.
//!
//! Everything happens in a copy, since the tree may be the caller's.

use crate::{
    apt,
    deps::GCC,
    initramfs::Extra,
    integrate,
    patches::{self, Patch},
    prelude::*,
};
use std::os::unix::fs::PermissionsExt;

/// The folders of `tools/testing/selftests` to build.
pub const TARGETS: [&str; 3] = ["vfio", "iommu", "s390_iommu"];

/// Changes to the kernel's selftests, in the checkout.
const PATCHES: &str = "integration/selftests";

/// What the selftests are built from, relative to the kernel tree.
const SOURCES: &str = "scripts/subarch.include include/linux/pci_ids.h tools/arch tools/include \
    tools/scripts drivers/iommu/iommufd/iommufd_test.h";
/// The folder of all selftests, and their common files there.
const FOLDER: &str = "tools/testing/selftests";
const COMMON: [&str; 4] = ["lib.mk", "kselftest.h", "kselftest_harness.h", "Makefile"];

/// Debian's packages with the static libraries that the programs link.
const LIBRARIES: &str = "uuid-dev libcap-dev";

/// On an emulated machine nearly all time goes into faulting pages in.
const SMALLER: &str = "-O2 -DMEMCPY_REGION_SIZE=SZ_32M -DTEST_TIMEOUT_DEFAULT=300";

/// Builds the programs, as files of the guest's root: `kselftest/vfio/vfio_pci_device_test`.
pub fn build(project: &Project, kernel: &Kernel) -> Result<Vec<Extra>> {
    let step = Step::start(project, "selftests", "building the selftests")?;
    let folder = project.build.join("selftests");
    let out = folder.join("out");
    let patches = patches::read(&project.root.join(PATCHES))?;
    let key = key(project, kernel, &patches)?;
    let is_new = hash::build_once(&folder, &out, key.as_ref(), || {
        build_in(&step, kernel, &patches, &folder, &out)
    })?;
    let programs = programs(&out)?;
    step.done(&match is_new {
        true => format!("{} programs", programs.len()),
        false => "nothing changed".to_owned(),
    });
    Ok(programs)
}

fn build_in(
    step: &Step,
    kernel: &Kernel,
    patches: &[Patch],
    folder: &Path,
    out: &Path,
) -> Result<()> {
    make_anew(folder)?;
    let libraries = apt::for_guest(step, "libraries", LIBRARIES)?;
    let tree = folder.join("tree");
    copy(step, &kernel.source.tree, &tree)?;
    patches::apply(patches, &tree)
        .context("this kernel's selftests are not those that the patches are for")?;
    let (make, headers) = (&kernel.make, folder.join("usr"));
    run!(
        step,
        "make {make...} headers_install INSTALL_HDR_PATH={headers}",
        "read the log"
    )?;
    let jobs = step.jobs.to_string();
    for target in TARGETS {
        let (from, out) = (tree.join(FOLDER).join(target), out.join(target));
        fs::create_dir_all(&out)?;
        // The packages have headers that the cross compiler brings as well: -idirafter.
        run!(
            step,
            "make -j{jobs} -C {from} ARCH=s390 CROSS_COMPILE=s390x-linux-gnu- OUTPUT={out}
                    'KHDR_INCLUDES=-isystem '{headers}/include
                    'CPPFLAGS=-idirafter '{libraries}/usr/include
                    EXTRA_CFLAGS={SMALLER}
                    'LDFLAGS=-static -L'{libraries}/usr/lib/s390x-linux-gnu",
            "correct what the compiler says"
        )?;
    }
    programs(out).map(drop)
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

/// Copies what is needed, and the targets of links: most are headers elsewhere in the
/// kernel tree.
fn copy(step: &Step, from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let sources = SOURCES.split(' ').map(|path| from.join(".").join(path));
    let folder = from.join(".").join(FOLDER);
    let folders = COMMON.iter().chain(&TARGETS).map(|name| folder.join(name));
    run!(
        step,
        "rsync --recursive --relative --copy-links --times {sources...} {folders...} {to}",
        "the kernel tree lacks what the selftests need"
    )
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
