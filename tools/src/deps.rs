// SPDX-License-Identifier: GPL-2.0
//! What must be on the machine: looked for by what it provides, and on Debian
//! installed when missing.

use crate::{
    apt::{self, Root},
    project::{find_program, variable, Project, LLVM},
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest rustc that the kernel takes for s390x.
const RUSTC_MINIMUM: Version = Version(1, 96, 0);
/// The oldest bindgen that the kernel takes.
const BINDGEN_MINIMUM: Version = Version(0, 71, 1);
/// The bindgen that is built when there is none.
const BINDGEN_BUILT: &str = "0.72.1";
/// The first QEMU with an `igb`.
const QEMU_MINIMUM: Version = Version(8, 0, 0);

/// The gcc for s390x.
pub const GCC: &str = "s390x-linux-gnu-gcc";

/// The oldest meson that QEMU takes.
const MESON_MINIMUM: Version = Version(1, 5, 0);

/// Something that must be there.
struct Need {
    /// How to see that it is: the name of a program or the path of a file.
    sign: PathBuf,
    /// Debian's package that brings it.
    package: String,
    /// The variable that names another one.
    variable: Option<&'static str>,
}

impl Need {
    fn new(sign: impl Into<PathBuf>, package: impl Into<String>) -> Self {
        Self {
            sign: sign.into(),
            package: package.into(),
            variable: None,
        }
    }

    fn named_by(mut self, variable: &'static str) -> Self {
        self.variable = Some(variable);
        self
    }

    fn is_there(&self) -> bool {
        if self.sign.is_absolute() {
            self.sign.exists()
        } else {
            find_program(&self.sign).is_some()
        }
    }

    /// For a machine where nothing can be installed.
    fn describe(&self) -> String {
        match self.variable {
            Some(name) => format!("{} ({name}=)", self.sign.display()),
            None => self.sign.display().to_string(),
        }
    }
}

/// What every command needs that builds something.
fn needs(project: &Project) -> Vec<Need> {
    let simple = [
        ("gcc", "gcc"),
        // Builds the fuzzer.
        ("g++", "g++"),
        ("make", "make"),
        ("flex", "flex"),
        ("bison", "bison"),
        ("bc", "bc"),
        ("cpio", "cpio"),
        ("depmod", "kmod"),
        // The file system of a root on a drive.
        ("/sbin/mke2fs", "e2fsprogs"),
        ("rsync", "rsync"),
        ("git", "git"),
        ("patch", "patch"),
        ("xz", "xz-utils"),
        ("ccache", "ccache"),
        ("pkg-config", "pkg-config"),
        ("python3", "python3"),
        // A minimal Debian has a perl without the modules that the kernel's
        // scripts use; this comes with them.
        ("prove", "perl"),
        ("/usr/include/stdio.h", "libc6-dev"),
        ("/usr/include/libelf.h", "libelf-dev"),
        ("/usr/include/openssl/ssl.h", "libssl-dev"),
        ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
        // Links the guest's programs.
        ("s390x-linux-gnu-gcc", "gcc-s390x-linux-gnu"),
        ("/usr/s390x-linux-gnu/lib/libc.a", "libc6-dev-s390x-cross"),
    ];
    let mut list: Vec<Need> = simple
        .into_iter()
        .map(|(sign, package)| Need::new(sign, package))
        .collect();
    list.extend(rust_needs(project));
    list.extend(llvm_needs(project));
    list
}

fn rust_needs(project: &Project) -> Vec<Need> {
    let tool =
        |name: &str, package: &str| Need::new(project.rust_tool(name), package).named_by("RUSTC");
    let mut list = vec![
        Need::new(project.cargo.clone(), "cargo-web").named_by("CARGO"),
        tool("rustdoc", "rustc-web"),
        tool("rustfmt", "rustfmt-web"),
        tool("cargo-fmt", "rustfmt-web"),
        tool("clippy-driver", "rust-web-clippy"),
        tool("cargo-clippy", "rust-web-clippy"),
    ];
    // The sources of the standard library: there is none built for s390x.
    if let Some(sysroot) = sysroot(&project.rustc) {
        let library = sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml");
        list.push(Need::new(library, "rust-web-src"));
    }
    list
}

fn llvm_needs(project: &Project) -> Vec<Need> {
    let version = project.llvm.trim_start_matches('-').to_owned();
    let tool = |name: &str, package: &str| {
        Need::new(project.llvm_tool(name), format!("{package}-{version}")).named_by("LLVM")
    };
    let mut list = vec![
        tool("clang", "clang"),
        tool("ld.lld", "lld"),
        tool("llvm-objcopy", "llvm"),
    ];
    if project.llvm.starts_with('-') && variable("LIBCLANG_PATH").is_none() {
        let library = format!("/usr/lib/llvm-{version}/lib/libclang.so");
        let package = format!("libclang-{version}-dev");
        list.push(Need::new(library, package).named_by("LIBCLANG_PATH"));
    }
    list
}

/// Installs what is missing, or says what it is.
pub fn ensure(project: &Project) -> Result<()> {
    let missing = missing(project);
    if !missing.is_empty() {
        install(project, &missing)?;
    }
    let rustc = version_of(&project.rustc)?;
    if rustc < RUSTC_MINIMUM {
        bail!(
            "{} is {rustc}; the kernel needs {RUSTC_MINIMUM} for s390x: name one with RUSTC=",
            project.rustc.display()
        );
    }
    Ok(())
}

fn missing(project: &Project) -> Vec<Need> {
    let mut list: Vec<Need> = needs(project)
        .into_iter()
        .filter(|need| !need.is_there())
        .collect();
    // One that is too old is replaced where it is Debian's own.
    if version_of(&project.rustc).map_or(true, |version| version < RUSTC_MINIMUM) {
        let rustc = |package| Need::new(project.rustc.clone(), package).named_by("RUSTC");
        list.push(rustc("rustc-web"));
        list.push(rustc("cargo-web"));
        list.push(rustc("rust-web-src"));
    }
    list
}

fn install(project: &Project, missing: &[Need]) -> Result<()> {
    // A tool that the caller named himself is not ours to install.
    if let Some(need) = missing.iter().find(|need| {
        need.variable
            .is_some_and(|name| named_by_caller(project, name))
    }) {
        bail!(
            "{} is missing or too old; {}= names it, correct that",
            need.sign.display(),
            need.variable.unwrap_or_default()
        );
    }
    if !apt::may_install() {
        let names: Vec<String> = missing.iter().map(Need::describe).collect();
        let packages = package_names(missing).join(" ");
        bail!(
            "missing: {}; install them (Debian 12 and 13 do it by themselves as root, packages: \
             {packages}) or name them with CARGO= RUSTC= LLVM= BINDGEN= QEMU=",
            names.join(", ")
        );
    }
    let packages = package_names(missing);
    let step = Step::start(
        project,
        "install",
        &format!("apt-get install {}", packages.join(" ")),
    )?;
    Root::of_machine(project, &step)?.install(project, &step, &packages, None)?;
    if let Some(need) = missing.iter().find(|need| !need.is_there()) {
        bail!(
            "{} is still missing though {} was installed; install what brings it",
            need.sign.display(),
            need.package
        );
    }
    step.done("what was missing is there");
    Ok(())
}

/// Whether a variable was set to something other than Debian's own path.
fn named_by_caller(project: &Project, name: &str) -> bool {
    match name {
        // The Makefile passes these on always.
        "CARGO" => project.cargo != Path::new("/usr/bin/cargo"),
        "RUSTC" => project.rustc != Path::new("/usr/bin/rustc"),
        "LLVM" => project.llvm != LLVM,
        _ => false,
    }
}

fn package_names(needs: &[Need]) -> Vec<&str> {
    let mut names: Vec<&str> = needs.iter().map(|need| need.package.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A QEMU that has the devices, by `QEMU=`, `PATH` or Debian.
pub fn qemu(project: &Project) -> Result<PathBuf> {
    if let Some(path) = &project.qemu {
        let version = version_of(path)?;
        if version < QEMU_MINIMUM {
            bail!(
                "QEMU={} is {version}; {QEMU_MINIMUM} is needed",
                path.display()
            );
        }
        return Ok(path.clone());
    }
    let name = Path::new("qemu-system-s390x");
    let found = || {
        find_program(name)
            .filter(|path| version_of(path).is_ok_and(|version| version >= QEMU_MINIMUM))
    };
    if let Some(path) = found() {
        return Ok(path);
    }
    if !apt::may_install() {
        bail!("no qemu-system-s390x {QEMU_MINIMUM} or newer; install one or name it with QEMU=");
    }
    let step = Step::start(project, "qemu", "installing qemu-system-s390x")?;
    // bookworm's own is too old; its backports have the one of trixie.
    let suite = apt::codename()
        .filter(|name| name == "bookworm")
        .map(|name| format!("{name}-backports"));
    Root::of_machine(project, &step)?.install(
        project,
        &step,
        &["qemu-system-s390x"],
        suite.as_deref(),
    )?;
    let path = found().with_context(|| {
        format!("the package brought no qemu-system-s390x {QEMU_MINIMUM}; name one with QEMU=")
    })?;
    step.done("installed");
    Ok(path)
}

/// What QEMU is built with, beside what every command needs.
pub fn ensure_machine(project: &Project) -> Result<()> {
    ensure(project)?;
    let mut missing: Vec<Need> = [
        ("ninja", "ninja-build"),
        ("/usr/include/glib-2.0/glib.h", "libglib2.0-dev"),
        ("/usr/include/zlib.h", "zlib1g-dev"),
        // Its files are those of a version of Python.
        ("/var/lib/dpkg/info/python3-venv.list", "python3-venv"),
        // The firmware, which QEMU loads though it does not run it.
        ("/usr/share/qemu/s390-ccw.img", "qemu-system-data"),
    ]
    .map(|(sign, package)| Need::new(sign, package))
    .into_iter()
    .filter(|need| !need.is_there())
    .collect();
    let meson = Path::new("/usr/bin/meson");
    if version_of(meson).map_or(true, |version| version < MESON_MINIMUM) {
        let of_backports = apt::codename().is_some_and(|name| name == "bookworm");
        let suite = if of_backports {
            "/bookworm-backports"
        } else {
            ""
        };
        missing.push(Need::new(meson, format!("meson{suite}")));
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(project, &missing)
}

/// A program that only one command needs, and Debian's package of it.
pub fn program(project: &Project, name: &str, package: &str) -> Result<PathBuf> {
    let name = Path::new(name);
    if let Some(path) = find_program(name) {
        return Ok(path);
    }
    install(project, &[Need::new(name, package)])?;
    find_program(name).with_context(|| format!("{package} brought no {}", name.display()))
}

/// A bindgen that the kernel takes, by `BINDGEN=`, `PATH`, or built into the cache.
pub fn bindgen(project: &Project) -> Result<PathBuf> {
    let fits = |path: &PathBuf| version_of(path).is_ok_and(|version| version >= BINDGEN_MINIMUM);
    if let Some(path) = &project.bindgen {
        if !fits(path) {
            bail!(
                "BINDGEN={} is older than {BINDGEN_MINIMUM}; leave it out to have one built",
                path.display()
            );
        }
        return Ok(path.clone());
    }
    let folder = project.cache.join(format!("bindgen-{BINDGEN_BUILT}"));
    let built = folder.join("bin/bindgen");
    for path in [Some(built.clone()), find_program(Path::new("bindgen"))]
        .into_iter()
        .flatten()
    {
        if fits(&path) {
            return Ok(path);
        }
    }
    let step = Step::start(project, "bindgen", "building it, there is none")?;
    let target = project.cache.join("bindgen-build");
    step.run(
        project
            .command(&project.cargo)
            .args(["install", "bindgen-cli", "--version", BINDGEN_BUILT])
            .args(["--locked", "--root"])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", &target),
        "check the network, or name a bindgen with BINDGEN=",
    )?;
    let _ = std::fs::remove_dir_all(&target);
    step.done("built");
    Ok(built)
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The first thing in a text that looks like a version.
    pub fn find(text: &str) -> Option<Self> {
        let is_part = |c: char| c.is_ascii_digit() || c == '.';
        text.split(|c| !is_part(c)).find_map(|word| {
            let mut parts = word.split('.').map(|part| part.parse().ok());
            let (major, minor) = (parts.next()??, parts.next()??);
            Some(Self(major, minor, parts.next().flatten().unwrap_or(0)))
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// What a program says of itself.
pub fn version_of(program: &Path) -> Result<Version> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Version::find(&text).with_context(|| format!("{} --version says no version", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_programs_print_them() {
        let find = |text| Version::find(text).unwrap();
        assert_eq!(
            find("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            Version(1, 96, 0)
        );
        assert_eq!(find("bindgen 0.72.1"), Version(0, 72, 1));
        let qemu = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)";
        assert_eq!(find(qemu), Version(10, 0, 2));
        assert_eq!(find("7.3"), Version(7, 3, 0));
        assert_eq!(Version::find("none"), None);
        assert!(Version(8, 0, 0) < Version(10, 0, 2));
    }

    #[test]
    fn packages_are_named_once() {
        let needs = [
            Need::new("b", "two"),
            Need::new("a", "one"),
            Need::new("c", "two"),
        ];
        assert_eq!(package_names(&needs), ["one", "two"]);
    }
}
