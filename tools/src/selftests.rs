// SPDX-License-Identifier: GPL-2.0
//! Cross-builds selftests: the kernel's own, out of the tree in use and with
//! the changes in `integration/selftests`, and ours.
//!
//! Everything happens in a copy, since the tree may be the caller's.

use crate::{
    apt::{self, Root},
    hash::{self, Stamp},
    integrate,
    kernel::{variable, Kernel},
    patches::{self, Patch},
    project::Project,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folders of `tools/testing/selftests` to build.
pub const TARGETS: [&str; 3] = ["vfio", "iommu", "s390_iommu"];

/// Changes to the kernel's selftests, in the checkout.
const PATCHES: &str = "integration/selftests";

/// What the selftests are built from, relative to the kernel tree.
const SOURCES: [&str; 10] = [
    "scripts/subarch.include",
    "include/linux/pci_ids.h",
    "drivers/iommu/iommufd/iommufd_test.h",
    "tools/arch",
    "tools/include",
    "tools/scripts",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/Makefile",
];

/// Debian's packages with the static libraries that the programs link.
const LIBRARIES: [&str; 2] = ["uuid-dev", "libcap-dev"];

/// On an emulated machine nearly all time goes into faulting pages in.
const SMALLER: &str = "-O2 -DMEMCPY_REGION_SIZE=SZ_32M -DTEST_TIMEOUT_DEFAULT=300";

/// A program and its name below the folder of selftests, `vfio/vfio_pci_device_test`.
pub type Program = (String, PathBuf);

/// Builds all of them, static and for s390x.
pub fn build(project: &Project, kernel: &Kernel) -> Result<Vec<Program>> {
    let step = Step::start(project, "selftests", "building the selftests")?;
    let folder = project.build.join("selftests");
    let out = folder.join("out");
    let patches = patches::read(&project.root.join(PATCHES))?;
    let key = key(project, kernel, &patches)?;
    let stamp = Stamp::new(folder.join(".s390-iommu-built"), key);
    if stamp.is_current() {
        let programs = programs(&out)?;
        step.done("nothing changed");
        return Ok(programs);
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&out)?;
    let libraries = libraries(project, &step)?;
    let tree = folder.join("tree");
    copy(project, &step, &kernel.source.tree, &tree)?;
    for patch in &patches {
        patch
            .apply(&tree)
            .context("this kernel's selftests are not those that the patches are for")?;
    }
    let headers = folder.join("usr");
    step.run(
        kernel
            .make(project)
            .arg("headers_install")
            .arg(variable("INSTALL_HDR_PATH", &headers)),
        "read the log",
    )?;
    for target in TARGETS {
        fs::create_dir_all(out.join(target))?;
        let include = |folder: &Path| folder.join("include").display().to_string();
        let library = libraries.join("usr/lib/s390x-linux-gnu");
        step.run(
            project
                .command("make")
                .arg(format!("-j{}", project.jobs))
                .arg("-C")
                .arg(tree.join("tools/testing/selftests").join(target))
                .args(["ARCH=s390", "CROSS_COMPILE=s390x-linux-gnu-"])
                .arg(variable("OUTPUT", out.join(target)))
                .arg(format!("KHDR_INCLUDES=-isystem {}", include(&headers)))
                // Behind the compiler's own: the packages have headers that
                // the cross compiler brings as well.
                .arg(format!(
                    "CPPFLAGS=-idirafter {}",
                    include(&libraries.join("usr"))
                ))
                .arg(format!("EXTRA_CFLAGS={SMALLER}"))
                .arg(format!("LDFLAGS=-static -L{}", library.display())),
            "correct what the compiler says",
        )?;
    }
    let programs = programs(&out)?;
    stamp.write()?;
    step.done(&format!("{} programs", programs.len()));
    Ok(programs)
}

/// A key of what the programs are built from; none for a tree of the caller's.
fn key(project: &Project, kernel: &Kernel, patches: &[Patch]) -> Result<Option<String>> {
    if kernel.source.pristine.is_none() {
        return Ok(None);
    }
    let mut parts = vec![kernel.source.name.clone().into_bytes(), SMALLER.into()];
    for patch in patches {
        parts.push(patch.text.clone().into_bytes());
    }
    for file in integrate::selftest_files(&project.root)? {
        parts.push(fs::read(&file)?);
        parts.push(file.into_os_string().into_encoded_bytes());
    }
    parts.push(hash::of_program(Path::new("s390x-linux-gnu-gcc")));
    parts.push(project.build.as_os_str().as_encoded_bytes().to_owned());
    Ok(Some(hash::key(parts.iter().map(Vec::as_slice))))
}

/// Copies what is needed, links as what they point at: most point at headers
/// elsewhere in the kernel tree.
fn copy(project: &Project, step: &Step, from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut command = project.command("rsync");
    command
        .args(["--recursive", "--relative", "--copy-links", "--times"])
        .args(SOURCES.iter().map(|path| from.join(".").join(path)))
        .args(
            TARGETS
                .iter()
                .map(|target| from.join("./tools/testing/selftests").join(target)),
        )
        .arg(to);
    step.run(
        &mut command,
        "the kernel tree lacks what the selftests need",
    )
}

/// The executable files, those of each target sorted by name.
fn programs(out: &Path) -> Result<Vec<Program>> {
    use std::os::unix::fs::PermissionsExt;
    let mut list = Vec::new();
    for target in TARGETS {
        let before = list.len();
        let folder = out.join(target);
        for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
            let entry = entry?;
            let data = entry.metadata()?;
            if data.is_file() && data.permissions().mode() & 0o100 != 0 {
                let name = entry.file_name().to_string_lossy().into_owned();
                list.push((format!("{target}/{name}"), entry.path()));
            }
        }
        if list.len() == before {
            bail!("the selftests in {target} built no program");
        }
    }
    list.sort();
    Ok(list)
}

/// The libraries of the guest's architecture, unpacked.
fn libraries(project: &Project, step: &Step) -> Result<PathBuf> {
    let folder = project.cache.join("guest/libraries");
    if folder.join("usr/include").is_dir() {
        return Ok(folder);
    }
    let Some(suite) = apt::codename() else {
        bail!(
            "the static libraries uuid and cap for s390x come from Debian's packages {}; \
             unpack them into {}",
            LIBRARIES.join(" "),
            folder.display()
        );
    };
    let root = Root::of_suite(project, step, &suite, "s390x")?;
    let mut packages = Vec::new();
    for package in LIBRARIES {
        packages.push(root.download(project, step, package, &project.cache.join("deb"))?);
    }
    apt::unpack(project, step, &packages, &folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_what_can_be_executed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for target in TARGETS {
            let at = folder.path().join(target);
            fs::create_dir_all(at.join("objects")).unwrap();
            fs::write(at.join("test.o"), "").unwrap();
        }
        assert!(programs(folder.path()).is_err());
        for target in TARGETS {
            let path = folder.path().join(target).join("test");
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let names: Vec<String> = programs(folder.path())
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["iommu/test", "s390_iommu/test", "vfio/test"]);
    }
}
