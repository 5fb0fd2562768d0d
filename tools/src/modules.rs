// SPDX-License-Identifier: GPL-2.0
//! The driver as an external module, for a prepared tree of the caller's.

use crate::{
    integrate,
    kernel::{arguments, make_arguments},
    prelude::*,
    source::{OLDEST, TOO_NEW},
};
use std::{collections::HashSet, ffi::OsString};

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

/// Does both for a kernel of `make test`, away from the checkout. Returns the
/// installed module.
pub fn build_for_tests(kernel: &Kernel, step: &Step) -> Result<PathBuf> {
    check(step, &kernel.objects)?;
    let output = step.build.join("external-module");
    let installed = step.build.join("installed");
    let _ = fs::remove_dir_all(&installed);
    fs::create_dir_all(&output)?;
    let arguments = arguments_for(step, &kernel.objects)?;
    for target in ["modules", "modules_install"] {
        let arguments = &arguments;
        run!(
            step,
            "make {arguments...} {target} MO={output} INSTALL_MOD_PATH={installed}",
            "correct what it says"
        )?;
    }
    let release = fs::read_to_string(kernel.objects.join("include/config/kernel.release"))?;
    let folder = installed.join("lib/modules").join(release.trim());
    Ok(folder.join("updates/s390_iommu.ko"))
}

/// Arguments for the `make` of a tree that builds this checkout.
fn arguments_for(project: &Project, tree: &Path) -> Result<Vec<OsString>> {
    let (make, root) = (
        make_arguments(project, &deps::bindgen(project)?),
        &project.root,
    );
    Ok(arguments(&command!(
        project,
        "make {make...} -C {tree} M={root}"
    )))
}

fn make(project: &Project, target: &str) -> Result<()> {
    let Some(tree) = &project.kdir else {
        bail!("name the prepared tree (or its objects folder) with KDIR=");
    };
    check(project, tree)?;
    let _lock = project.lock()?;
    deps::ensure(project)?;
    let arguments = arguments_for(project, tree)?;
    // The caller decides where it is installed.
    let names = ["INSTALL_MOD_PATH", "INSTALL_MOD_DIR", "V"].into_iter();
    let more = names.filter_map(|name| Some(format!("{name}={}", text(name)?)));
    let mut command = command!(project, "make {arguments...} {target} {more...}");
    let status = command.status().context("cannot start make")?;
    if !status.success() {
        bail!("make {target} failed; correct what it says");
    }
    Ok(())
}

/// Refuses a tree that cannot build the module, or not one that it would load.
fn check(project: &Project, tree: &Path) -> Result<()> {
    let symbols = needed_symbols(project)?;
    // A compiler that is not installed yet will be new enough.
    let rustc = deps::version_of(&project.rustc).ok();
    let lacking = lacking(tree, rustc, &symbols);
    if lacking.is_empty() {
        return Ok(());
    }
    bail!(
        "KDIR={} cannot build the module, it lacks {}",
        tree,
        lacking.join(", ")
    )
}

/// The functions of the subsystem that the driver calls.
fn needed_symbols(project: &Project) -> Result<Vec<String>> {
    let mut list = Vec::new();
    for file in integrate::driver_files(&project.root)? {
        if file.ends_with(".rs") {
            list.extend(declared(&fs::read_to_string(project.root.join(&file))?));
        }
    }
    Ok(list)
}

/// The `zpci_` functions in the `extern` blocks of a source.
fn declared(text: &str) -> Vec<String> {
    let blocks = text.split("\nextern \"C\" {\n").skip(1);
    let lines = blocks.flat_map(|block| block.lines().take_while(|line| *line != "}"));
    let names = lines.filter_map(|line| Some(line.split_once("fn ")?.1.split_once('(')?.0));
    let ours = names.filter(|name| name.starts_with("zpci_"));
    ours.map(str::to_owned).collect()
}

/// What a tree must provide and does not.
fn lacking(tree: &Path, rustc: Option<Version>, symbols: &[String]) -> Vec<String> {
    let read = |file: &str| fs::read_to_string(tree.join(file)).ok();
    let mut list = Vec::new();
    let release = read("include/config/kernel.release").unwrap_or_default();
    match Version::find(&release) {
        Some(version) if (OLDEST..TOO_NEW).contains(&version) => {}
        Some(version) => list.push(format!("Linux {OLDEST} or a newer 7.x (it is {version})")),
        None => list.push("include/config/kernel.release (run make modules_prepare there)".into()),
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
    list.extend(other_rustc(&config, rustc));
    match read("Module.symvers") {
        None => list.push("Module.symvers (run make modules there)".into()),
        Some(text) => list.extend(unexported(&text, symbols)),
    }
    list
}

/// A crate cannot use what another version of the compiler has built.
fn other_rustc(config: &str, ours: Option<Version>) -> Option<String> {
    let line = config.lines();
    let mut values = line.filter_map(|line| line.strip_prefix("CONFIG_RUSTC_VERSION="));
    let number: u32 = values.next()?.trim().parse().ok()?;
    let theirs = Version(number / 100_000, number / 100 % 1000, number % 100);
    let ours = ours.filter(|ours| *ours != theirs)?;
    Some(format!(
        "a build with rustc {ours} (it was built with {theirs}: name that with RUSTC=)"
    ))
}

/// The symbols that `Module.symvers` lacks, as one message.
fn unexported(symvers: &str, symbols: &[String]) -> Option<String> {
    let lines = symvers.lines();
    let exported: HashSet<&str> = lines.filter_map(|line| line.split('\t').nth(1)).collect();
    let mut missing: Vec<&str> = symbols.iter().map(String::as_str).collect();
    missing.retain(|name| !exported.contains(name));
    let text = format!(
        "{} in Module.symvers (integrate the tree with make integrate, set CONFIG_S390_IOMMU_RUST=m \
         and build it)",
        missing.join(" ")
    );
    (!missing.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("include/config/kernel.release", "7.3.4-test\n"),
        ("include/generated/autoconf.h", "#define X\n"),
        (
            "include/config/auto.conf",
            "CONFIG_S390=y\nCONFIG_PCI=y\nCONFIG_MODULES=y\nCONFIG_RUST=y\n\
             CONFIG_RUSTC_VERSION=109600\n",
        ),
        (
            "Module.symvers",
            "0x0\tzpci_a\tvmlinux\n0x0\tzpci_b\tvmlinux\n",
        ),
    ];

    /// What a tree lacks with these files.
    fn lacks(files: &[(&str, &str)]) -> Vec<String> {
        let tree = camino_tempfile::tempdir().unwrap();
        for (file, text) in files {
            write_if_changed(&tree.path().join(file), text).unwrap();
        }
        let symbols = ["zpci_a".to_owned(), "zpci_b".to_owned()];
        lacking(tree.path(), Some(Version(1, 96, 0)), &symbols)
    }

    #[test]
    fn the_driver_says_what_it_needs() {
        let text = "fn zpci_no(\nextern \"C\" {\n    fn zpci_a(x: u8);\n    \
                    pub(crate) fn zpci_b(\n    fn other();\n}\nfn zpci_c(\n";
        assert_eq!(declared(text), ["zpci_a", "zpci_b"]);
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        assert!(lacks(&GOOD).is_empty());
        assert_eq!(lacks(&[]).len(), 7);
        for (index, from, to, word) in [
            (0, "7.3.4", "7.1.0", "it is 7.1.0"),
            (0, "7.3.4", "8.0.0", "it is 8.0.0"),
            (0, "7.3.4", "", "kernel.release"),
            (2, "CONFIG_RUST=y", "", "CONFIG_RUST=y"),
            (2, "109600", "109701", "1.97.1"),
            (3, "zpci_a", "zpci_abc", "zpci_a in"),
            (3, "zpci_", "", "zpci_a zpci_b in"),
        ] {
            let text = GOOD[index].1.replace(from, to);
            let mut files = GOOD;
            files[index].1 = &text;
            let list = lacks(&files);
            assert!(list.len() == 1 && list[0].contains(word), "{list:?}");
        }
    }
}
