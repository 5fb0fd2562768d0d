// SPDX-License-Identifier: GPL-2.0
//! Configures and builds a kernel with the driver in it.

use crate::{
    deps::{self, Version},
    hash::{self, Stamp},
    integrate::{self, integrate},
    project::{find_program, Project},
    source::{self, Source},
    steps::{write_if_changed, Step},
};
use anyhow::{bail, Context, Result};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Space that a first build needs: source, objects and ccache, in bytes.
const SPACE: u64 = 7 << 30;

/// A kernel that was built.
pub struct Kernel {
    /// Its source, with the driver in it.
    pub source: Source,
    /// Its version.
    pub version: Version,
    /// The `O=` folder.
    pub objects: PathBuf,
    /// What QEMU boots.
    pub image: PathBuf,
    /// Changes when the kernel does; `None` for a tree of the caller's.
    pub key: Option<String>,
    bindgen: PathBuf,
    /// Nobody else builds in the cache as long as this is in use.
    _lock: File,
}

/// Which fragments of `tools/config/` are put on top of `base.config`, or on
/// nothing where the first is `l2`.
pub type Flavour = Vec<String>;

/// Builds the kernel; what is up to date is not built again.
pub fn build(project: &Project, flavour: &Flavour) -> Result<Kernel> {
    let lock = project.lock()?;
    deps::ensure(project)?;
    // Building a bindgen and fetching the source do not wait for each other.
    let (bindgen, source) = std::thread::scope(|scope| {
        let bindgen = scope.spawn(|| deps::bindgen(project));
        let source = prepare_source(project);
        (bindgen.join(), source)
    });
    let bindgen = bindgen.map_err(|_| anyhow::anyhow!("the thread for bindgen died"))??;
    let (source, version) = source?;

    let objects = match &project.kout {
        Some(path) => path.clone(),
        None => {
            let name = format!("{}-{}", source.name, flavour.join("+"));
            project.cache.join("objects").join(name)
        }
    };
    if !objects.join("vmlinux").exists() {
        check_space(project)?;
    }
    fs::create_dir_all(&objects).with_context(|| format!("cannot make {}", objects.display()))?;
    let wanted = wanted_config(project, flavour)?;
    let key = match source.pristine {
        Some(_) => Some(input_key(project, &source, &wanted, &bindgen)?),
        None => None,
    };
    let kernel = Kernel {
        image: objects.join("arch/s390/boot/bzImage"),
        source,
        version,
        objects,
        key,
        bindgen,
        _lock: lock,
    };
    let step = Step::start(
        project,
        "kernel",
        &format!("building Linux {version} ({})", flavour.join(", ")),
    )?;
    let stamp = Stamp::new(kernel.objects.join(".s390-iommu-built"), kernel.key.clone());
    if stamp.is_current() && kernel.image.is_file() {
        step.done("nothing changed");
        return Ok(kernel);
    }
    stamp.remove();
    kernel.configure(project, &step, &wanted)?;
    step.run(
        kernel
            .make(project)
            .arg(format!("-j{}", project.jobs))
            .args(["bzImage", "modules"]),
        "correct what the compiler says",
    )?;
    stamp.write()?;
    step.done("built");
    Ok(kernel)
}

/// The fragment of a kernel that is as small as it can be: nothing is under it.
const ALONE: &str = "l2";

/// The text of the fragments, a later one over an earlier.
fn wanted_config(project: &Project, flavour: &Flavour) -> Result<String> {
    let folder = project.root.join("tools/config");
    let names = flavour.iter().map(String::as_str);
    let base = (names.clone().next() != Some(ALONE)).then_some("base");
    let mut text = String::new();
    for name in base.into_iter().chain(names) {
        let path = folder.join(format!("{name}.config"));
        text += &fs::read_to_string(&path)
            .with_context(|| format!("no configuration {}", path.display()))?;
    }
    Ok(text)
}

/// A key of all that a kernel of a tree in the cache is built from.
fn input_key(project: &Project, source: &Source, wanted: &str, bindgen: &Path) -> Result<String> {
    let mut parts = vec![source.name.clone().into_bytes(), wanted.into()];
    for patch in integrate::patches(&project.root)? {
        parts.push(patch.text.into_bytes());
    }
    for file in integrate::driver_files(&project.root)? {
        parts.push(fs::read(project.root.join(&file))?);
        parts.push(file.into_bytes());
    }
    for tool in [&project.llvm_tool("clang"), &project.rustc, bindgen] {
        parts.push(hash::of_program(tool));
    }
    Ok(hash::key(parts.iter().map(Vec::as_slice)))
}

/// Finds the source and puts the driver in.
pub fn prepare_source(project: &Project) -> Result<(Source, Version)> {
    let source = source::find(project)?;
    if project.kdir.is_some() && source.tree.join("include/config/auto.conf").exists() {
        bail!(
            "KDIR={} was built in place, which O= folders do not take; run make mrproper there",
            source.tree.display()
        );
    }
    if project.as_it_is {
        let version = integrate::tree_version(&source.tree)?;
        return Ok((source, version));
    }
    let report = integrate(&project.root, &source)?;
    if project.kdir.is_some() && report.edited + report.copied > 0 {
        println!(
            "           integrate: {} of the tree's files patched, {} of the driver's files \
             copied in KDIR={}",
            report.edited,
            report.copied,
            source.tree.display()
        );
    }
    Ok((source, report.version))
}

fn check_space(project: &Project) -> Result<()> {
    let info = rustix::fs::statvfs(&project.cache)?;
    let free = info.f_bavail * info.f_frsize;
    if free < SPACE {
        bail!(
            "only {} GiB free in {}, a first build needs {}: free some, or name another folder \
             with S390_IOMMU_CACHE=",
            free >> 30,
            project.cache.display(),
            SPACE >> 30
        );
    }
    Ok(())
}

impl Kernel {
    /// A name for files that are made for this kernel.
    pub fn label(&self) -> String {
        let name = self.objects.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The kernel's own `make` for this source and these objects.
    pub fn make(&self, project: &Project) -> Command {
        let mut command = kernel_make(project, &self.bindgen);
        command
            .arg("-C")
            .arg(&self.source.tree)
            .arg(variable("O", &self.objects));
        command
    }

    fn configure(&self, project: &Project, step: &Step, wanted: &str) -> Result<()> {
        let config = self.objects.join(".config");
        let stamp = self.objects.join(".s390-iommu-config");
        if config.exists() && !stamp.exists() {
            // A folder of the caller's, with a configuration of the caller's.
            return check_foreign(&config, wanted);
        }
        let mut parts = vec![
            wanted.to_owned(),
            fs::read_to_string(project.root.join("Kconfig"))?,
        ];
        parts.extend(
            integrate::patches(&project.root)?
                .into_iter()
                .map(|patch| patch.text),
        );
        let key = hash::key(parts.iter().map(String::as_bytes));
        if config.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
            return Ok(());
        }
        let all = self.objects.join("wanted.config");
        write_if_changed(&all, wanted.as_bytes())?;
        step.run(
            self.make(project)
                .env("KCONFIG_ALLCONFIG", &all)
                .arg("allnoconfig"),
            "check tools/config and the driver's Kconfig",
        )?;
        let made = fs::read_to_string(&config)?;
        // What did not become ours must not look like the caller's.
        check_config(wanted, &made).inspect_err(|_| drop(fs::remove_file(&config)))?;
        fs::write(stamp, key)?;
        Ok(())
    }
}

/// `make` with the tools that were checked, as variables of its command line.
pub fn kernel_make(project: &Project, bindgen: &Path) -> Command {
    let clang = project.llvm_tool("clang");
    let mut cc = OsString::new();
    if find_program(Path::new("ccache")).is_some() {
        cc.push("ccache ");
    }
    let mut command = project.command("make");
    command.arg("ARCH=s390");
    if project.gcc {
        cc.push(deps::GCC);
        command.arg(variable("CROSS_COMPILE", deps::GCC.trim_end_matches("gcc")));
    } else {
        cc.push(&clang);
        command.arg(format!("LLVM={}", project.llvm));
    }
    command
        .arg(variable("CC", cc))
        // One word: rust/Makefile hands it on unquoted.
        .arg(variable("HOSTCC", clang))
        .arg(variable("RUSTC", &project.rustc))
        .arg(variable("RUSTDOC", project.rust_tool("rustdoc")))
        .arg(variable("RUSTFMT", project.rust_tool("rustfmt")))
        .arg(variable(
            "CLIPPY_DRIVER",
            project.rust_tool("clippy-driver"),
        ))
        .arg(variable("BINDGEN", bindgen))
        .env("CCACHE_DIR", project.cache.join("ccache"))
        // The same input gives the same image.
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "s390-iommu")
        .env("KBUILD_BUILD_HOST", "build");
    if let Some(version) = project.llvm.strip_prefix('-') {
        if std::env::var_os("LIBCLANG_PATH").is_none() {
            command.env("LIBCLANG_PATH", format!("/usr/lib/llvm-{version}/lib"));
        }
    }
    command
}

/// `NAME=value` for `make`.
pub fn variable(name: &str, value: impl Into<OsString>) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value.into());
    text
}

/// The options of a configuration; a later line counts more than an earlier.
fn parse_config(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The options that are not as wanted.
fn unmet(wanted: &str, made: &str) -> Vec<String> {
    let made = parse_config(made);
    parse_config(wanted)
        .into_iter()
        .filter(|(name, value)| made.get(name).map_or("n", String::as_str) != value)
        .map(|(name, value)| format!("CONFIG_{name}={value}"))
        .collect()
}

fn check_config(wanted: &str, made: &str) -> Result<()> {
    let unmet = unmet(wanted, made);
    if unmet.is_empty() {
        return Ok(());
    }
    bail!(
        "kernel: the tree does not take {}; see what these depend on and correct tools/config",
        unmet.join(" ")
    )
}

fn check_foreign(config: &Path, wanted: &str) -> Result<()> {
    let driver: Vec<String> = unmet(wanted, &fs::read_to_string(config)?)
        .into_iter()
        .filter(|line| line.contains("S390_IOMMU_RUST") || line.starts_with("CONFIG_RUST="))
        .collect();
    if !driver.is_empty() {
        bail!(
            "{} is not ours and lacks {}; set it there, or name an empty KOUT=",
            config.display(),
            driver.join(" ")
        );
    }
    println!(
        "           kernel: using the configuration {}",
        config.display()
    );
    Ok(())
}

/// The last lines of `make kernel`.
pub fn print_places(kernel: &Kernel) {
    println!("image={}", kernel.image.display());
    println!("source={}", kernel.source.tree.display());
    println!("objects={}", kernel.objects.display());
}

/// `make integrate`.
pub fn integrate_only(project: &Project) -> Result<()> {
    // A tree of the caller's is not in the cache.
    let _lock = match project.kdir {
        Some(_) => None,
        None => Some(project.lock()?),
    };
    deps::program(project, "patch", "patch")?;
    let source = source::find(project)?;
    let report = integrate::integrate(&project.root, &source)?;
    println!(
        "integrate: Linux {} in {}, {} of its files patched, {} of the driver's files copied",
        report.version,
        source.tree.display(),
        report.edited,
        report.copied
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmet_options_are_named() {
        let wanted = "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=m\nCONFIG_D=8\n";
        let made = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_D=8\n";
        assert_eq!(unmet(wanted, made), ["CONFIG_C=m"]);
        assert_eq!(unmet(wanted, "").len(), 3);
        assert!(check_config(wanted, made).is_err());
    }

    #[test]
    fn a_later_fragment_counts_more() {
        let wanted = "CONFIG_A=y\nCONFIG_A=m\n";
        assert!(unmet(wanted, "CONFIG_A=m\n").is_empty());
    }

    #[test]
    fn an_option_that_does_not_exist_is_off() {
        assert!(unmet("CONFIG_NEW=n\n", "").is_empty());
    }
}
