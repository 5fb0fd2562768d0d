// SPDX-License-Identifier: GPL-2.0
//! The driver as an external module, for a prepared tree of the caller's.

use crate::{
    deps::{self, Version},
    kernel::{kernel_make, variable},
    project::Project,
    source::{OLDEST, TOO_NEW},
};
use anyhow::{bail, Context, Result};
use std::{fs, path::Path, process::Stdio};

/// The built-in glue's registration point.
const REGISTRATION: &str = "zpci_iommu_driver_register";

/// `make KDIR=... modules`.
pub fn build(project: &Project) -> Result<()> {
    make(project, "modules")
}

/// `make KDIR=... modules_install`.
pub fn install(project: &Project) -> Result<()> {
    if !project.root.join("s390_iommu.ko").is_file() {
        bail!("there is no s390_iommu.ko; run make KDIR=... modules first");
    }
    make(project, "modules_install")
}

fn make(project: &Project, target: &str) -> Result<()> {
    let Some(tree) = &project.kdir else {
        bail!("name the prepared tree (or its objects folder) with KDIR=");
    };
    let lacking = lacking(tree)?;
    if !lacking.is_empty() {
        bail!(
            "KDIR={} cannot build the module, it lacks {}",
            tree.display(),
            lacking.join(", ")
        );
    }
    let _lock = project.lock()?;
    deps::ensure(project)?;
    let bindgen = deps::bindgen(project)?;
    let mut command = kernel_make(project, &bindgen);
    command
        .arg("-C")
        .arg(tree)
        .arg(variable("M", &project.root))
        .arg(format!("-j{}", project.jobs))
        .arg(target)
        .stdin(Stdio::null());
    // What an installation goes by is the caller's to say.
    for name in ["INSTALL_MOD_PATH", "INSTALL_MOD_DIR", "V"] {
        if let Some(value) = crate::project::variable(name) {
            command.arg(variable(name, value));
        }
    }
    let status = command.status().context("cannot start make")?;
    if !status.success() {
        bail!("make {target} failed; correct what it says");
    }
    Ok(())
}

/// What a tree must provide and does not.
fn lacking(tree: &Path) -> Result<Vec<String>> {
    let read = |file: &str| fs::read_to_string(tree.join(file)).ok();
    let mut list = Vec::new();
    match read("include/config/kernel.release")
        .as_deref()
        .map(Version::find)
    {
        Some(Some(version)) if version >= OLDEST && version < TOO_NEW => {}
        Some(Some(version)) => {
            list.push(format!("Linux {OLDEST} or a newer 7.x (it is {version})"))
        }
        _ => list.push("include/config/kernel.release (run make modules_prepare there)".into()),
    }
    if read("include/generated/autoconf.h").is_none() {
        list.push("include/generated/autoconf.h (run make modules_prepare there)".into());
    }
    let config = read("include/config/auto.conf").unwrap_or_default();
    for (option, why) in [
        ("CONFIG_S390", "a kernel for s390x"),
        ("CONFIG_PCI", "zPCI"),
        ("CONFIG_MODULES", "loadable modules"),
        ("CONFIG_RUST", "Rust"),
    ] {
        if !config.lines().any(|line| line == format!("{option}=y")) {
            list.push(format!("{option}=y ({why})"));
        }
    }
    match read("Module.symvers") {
        None => list.push("Module.symvers (run make modules there)".into()),
        Some(text) if !text.split_whitespace().any(|word| word == REGISTRATION) => list.push(
            format!("{REGISTRATION} in Module.symvers (integrate the tree with make integrate, set CONFIG_S390_IOMMU_RUST=m and build it)"),
        ),
        Some(_) => {}
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::write_if_changed;

    fn prepared() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("include/config/kernel.release", "7.3.4-test\n"),
            ("include/generated/autoconf.h", "#define X\n"),
            (
                "include/config/auto.conf",
                "CONFIG_S390=y\nCONFIG_PCI=y\nCONFIG_MODULES=y\nCONFIG_RUST=y\n",
            ),
            (
                "Module.symvers",
                "0x0\tzpci_iommu_driver_register\tvmlinux\tEXPORT_SYMBOL_GPL\t\n",
            ),
        ] {
            write_if_changed(&folder.path().join(file), text.as_bytes()).unwrap();
        }
        folder
    }

    #[test]
    fn a_prepared_tree_lacks_nothing() {
        assert!(lacking(prepared().path()).unwrap().is_empty());
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        for (file, text, word) in [
            ("include/config/kernel.release", "7.1.0\n", "it is 7.1.0"),
            ("include/config/kernel.release", "8.0.0\n", "it is 8.0.0"),
            ("include/config/kernel.release", "", "kernel.release"),
            (
                "include/config/auto.conf",
                "CONFIG_S390=y\nCONFIG_PCI=y\nCONFIG_MODULES=y\n",
                "CONFIG_RUST=y",
            ),
            ("Module.symvers", "0x0\tprintk\n", REGISTRATION),
        ] {
            let folder = prepared();
            write_if_changed(&folder.path().join(file), text.as_bytes()).unwrap();
            let list = lacking(folder.path()).unwrap();
            assert_eq!(list.len(), 1, "{list:?}");
            assert!(list[0].contains(word), "{list:?}");
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(lacking(empty.path()).unwrap().len(), 7);
    }
}
