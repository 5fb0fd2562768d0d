// SPDX-License-Identifier: GPL-2.0
//! What must be on the machine: looked for by what it provides, and on Debian
//! installed when missing.

use crate::{
    apt::{self, Root},
    prelude::*,
    project::LLVM,
};
use std::ops::Range;

const RUSTC_MINIMUM: Version = Version(1, 96, 0);
/// The oldest bindgen that the kernel takes, and the one that is built when there is none.
const BINDGEN_MINIMUM: Version = Version(0, 71, 1);
const BINDGEN_BUILT: &str = "0.72.1";
/// The first QEMU with an `igb`.
const QEMU_MINIMUM: Version = Version(8, 0, 0);
pub const GCC: &str = "s390x-linux-gnu-gcc";
const MESON_MINIMUM: Version = Version(1, 5, 0);
/// Packages that are too old in bookworm itself; its backports have those of trixie.
const BACKPORTED: [&str; 2] = ["meson", "qemu-system-s390x"];

/// The programs that every command needs which builds something. Their packages have the
/// same names. The fuzzer needs g++.
const PROGRAMS: &str =
    "gcc g++ make flex bison bc cpio rsync git patch ccache pkg-config python3 sparse";
/// Other needs: a program or a file, and Debian's package that has it.
const OTHERS: [(&str, &str); 10] = [
    ("depmod", "kmod"),
    // The file system of a root on a drive.
    ("/sbin/mke2fs", "e2fsprogs"),
    ("xz", "xz-utils"),
    // A minimal Debian has a perl without the modules that the kernel's
    // scripts use; this comes with them.
    ("prove", "perl"),
    ("/usr/include/stdio.h", "libc6-dev"),
    ("/usr/include/libelf.h", "libelf-dev"),
    ("/usr/include/openssl/ssl.h", "libssl-dev"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    // Links the guest's programs.
    (GCC, "gcc-s390x-linux-gnu"),
    ("/usr/s390x-linux-gnu/lib/libc.a", "libc6-dev-s390x-cross"),
];

/// What QEMU is built with, beside these.
const MACHINE: [(&str, &str); 5] = [
    ("ninja", "ninja-build"),
    ("/usr/include/glib-2.0/glib.h", "libglib2.0-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    // Its files are those of a version of Python.
    ("/var/lib/dpkg/info/python3-venv.list", "python3-venv"),
    // The firmware, which QEMU loads though it does not run it.
    ("/usr/share/qemu/s390-ccw.img", "qemu-system-data"),
];

struct Need {
    /// What shows that it is there: the name of a program or the path of a file.
    sign: PathBuf,
    package: String,
    /// The variable with which the caller names another one.
    variable: Option<&'static str>,
    minimum: Option<Version>,
}

impl Need {
    fn new(sign: impl Into<PathBuf>, package: impl Into<String>) -> Self {
        Self {
            sign: sign.into(),
            package: package.into(),
            variable: None,
            minimum: None,
        }
    }

    fn named_by(mut self, variable: &'static str) -> Self {
        self.variable = Some(variable);
        self
    }

    fn since(mut self, minimum: Version) -> Self {
        self.minimum = Some(minimum);
        self
    }

    fn find(&self) -> Option<PathBuf> {
        let is_new = |path: &PathBuf| {
            let is_enough = |minimum| version_of(path).is_ok_and(|version| version >= minimum);
            self.minimum.is_none_or(is_enough)
        };
        find_program(&self.sign).filter(is_new)
    }

    /// For a machine where nothing can be installed.
    fn describe(&self) -> String {
        let minimum = self.minimum.map(|minimum| format!(" {minimum} or newer"));
        let variable = self.variable.map(|name| format!(" ({name}=)"));
        let sign = self.sign.to_string();
        sign + &minimum.unwrap_or_default() + &variable.unwrap_or_default()
    }
}

/// What every command needs that builds something.
fn needs(project: &Project) -> Vec<Need> {
    let programs = PROGRAMS.split(' ').map(|name| (name, name));
    let always = programs.chain(OTHERS);
    let mut list = Vec::from_iter(always.map(|(sign, package)| Need::new(sign, package)));
    for (name, package) in [
        ("rustdoc", "rustc-web"),
        ("rustfmt", "rustfmt-web"),
        ("cargo-fmt", "rustfmt-web"),
        ("clippy-driver", "rust-web-clippy"),
        ("cargo-clippy", "rust-web-clippy"),
    ] {
        list.push(Need::new(project.rust_tool(name), package).named_by("RUSTC"));
    }
    list.push(Need::new(&project.cargo, "cargo-web").named_by("CARGO"));
    // All of one version.
    for package in ["rustc-web", "cargo-web", "rust-web-src"] {
        let rustc = Need::new(&project.rustc, package).named_by("RUSTC");
        list.push(rustc.since(RUSTC_MINIMUM));
    }
    // The sources of the standard library: there is none built for s390x.
    if let Some(sysroot) = sysroot(&project.rustc) {
        let library = sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml");
        list.push(Need::new(library, "rust-web-src"));
    }
    let version = project.llvm.trim_start_matches('-');
    let programs = [
        ("clang", "clang"),
        ("ld.lld", "lld"),
        ("llvm-objcopy", "llvm"),
    ];
    for (name, package) in programs {
        let package = format!("{package}-{version}");
        list.push(Need::new(project.llvm_tool(name), package).named_by("LLVM"));
    }
    if let Some(folder) = project.libclang() {
        let package = format!("libclang-{version}-dev");
        list.push(Need::new(folder.join("libclang.so"), package).named_by("LIBCLANG_PATH"));
    }
    list
}

/// Installs what is missing, or says what it is.
pub fn ensure(project: &Project) -> Result<()> {
    install(project, needs(project))
}

/// The same for a build of QEMU.
pub fn ensure_machine(project: &Project) -> Result<()> {
    let mut list = needs(project);
    list.extend(MACHINE.map(|(sign, package)| Need::new(sign, package)));
    list.push(Need::new("/usr/bin/meson", "meson").since(MESON_MINIMUM));
    install(project, list)
}

fn install(project: &Project, mut missing: Vec<Need>) -> Result<()> {
    missing.retain(|need| need.find().is_none());
    if missing.is_empty() {
        return Ok(());
    }
    // A tool that the caller named himself is not ours to install.
    let by_caller = |need: &&Need| need.variable.is_some_and(|name| is_named(project, name));
    if let Some(need) = missing.iter().find(by_caller) {
        bail!(
            "missing or too old: {}; correct what names it",
            need.describe()
        );
    }
    let packages: BTreeSet<&str> = missing.iter().map(|need| &*need.package).collect();
    let (backported, plain): (Vec<_>, Vec<_>) =
        packages.iter().partition(|name| BACKPORTED.contains(name));
    let all = [&plain[..], &backported].concat().join(" ");
    if !apt::may_install() {
        let names: Vec<String> = missing.iter().map(Need::describe).collect();
        bail!(
            "missing: {}; install them (Debian 12 and 13 do it by themselves as root, packages: \
             {all}) or name them with CARGO= RUSTC= LLVM= BINDGEN= QEMU=",
            names.join(", ")
        );
    }
    let step = Step::start(project, "install", &format!("apt-get install {all}"))?;
    let root = Root::of_machine(&step)?;
    let backports = apt::codename().filter(|name| name == "bookworm");
    let backports = backports.map(|name| format!("{name}-backports"));
    for (packages, suite) in [(plain, None), (backported, backports.as_deref())] {
        if !packages.is_empty() {
            root.install(&packages, suite)?;
        }
    }
    if let Some(need) = missing.iter().find(|need| need.find().is_none()) {
        bail!(
            "{} is still missing though {} was installed; install what brings it",
            need.describe(),
            need.package
        );
    }
    step.done("what was missing is there");
    Ok(())
}

/// Whether a variable was set to something other than Debian's own path.
fn is_named(project: &Project, name: &str) -> bool {
    match name {
        // The Makefile passes these on always.
        "CARGO" => project.cargo != Path::new("/usr/bin/cargo"),
        "RUSTC" => project.rustc != Path::new("/usr/bin/rustc"),
        "LLVM" => project.llvm != LLVM,
        _ => false,
    }
}

/// The program or file of a need, which is installed if it is missing.
fn provide(project: &Project, need: Need) -> Result<PathBuf> {
    if let Some(path) = need.find() {
        return Ok(path);
    }
    let sign = need.sign.clone();
    install(project, vec![need])?;
    find_program(&sign).with_context(|| format!("there is no {sign}"))
}

/// A program that only one command needs, and Debian's package of it.
pub fn program(project: &Project, name: &str, package: &str) -> Result<PathBuf> {
    provide(project, Need::new(name, package))
}

/// A QEMU that has the devices, by `QEMU=`, `PATH` or Debian.
pub fn qemu(project: &Project) -> Result<PathBuf> {
    if let Some(path) = &project.qemu {
        return named(path, "QEMU", QEMU_MINIMUM);
    }
    let need = Need::new("qemu-system-s390x", "qemu-system-s390x").named_by("QEMU");
    provide(project, need.since(QEMU_MINIMUM))
}

/// A program that the caller named.
fn named(path: &Path, variable: &str, minimum: Version) -> Result<PathBuf> {
    let found = Need::new(path, "").since(minimum).find();
    found.with_context(|| format!("{variable}={path} is older than {minimum}"))
}

/// A bindgen that the kernel takes, by `BINDGEN=`, `PATH`, or built into the cache.
pub fn bindgen(project: &Project) -> Result<PathBuf> {
    if let Some(path) = &project.bindgen {
        return named(path, "BINDGEN", BINDGEN_MINIMUM)
            .context("leave BINDGEN= out to have one built");
    }
    let folder = project.cache.join(format!("bindgen-{BINDGEN_BUILT}"));
    let built = folder.join("bin/bindgen");
    let found = [built.as_path(), Path::new("bindgen")]
        .into_iter()
        .find_map(|path| Need::new(path, "").since(BINDGEN_MINIMUM).find());
    if let Some(path) = found {
        return Ok(path);
    }
    let step = Step::start(project, "bindgen", "building it, there is none")?;
    let target = project.cache.join("bindgen-build");
    let cargo = &project.cargo;
    step.run(
        command!(
            step,
            "{cargo} install bindgen-cli --version {BINDGEN_BUILT} --locked --root {folder}
                --no-default-features --features runtime"
        )
        .env("CARGO_TARGET_DIR", &target)
        // It runs for seconds: what counts is how soon it is built.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        "check the network, or name a bindgen with BINDGEN=",
    )?;
    let _ = fs_err::remove_dir_all(&target);
    step.done("built");
    Ok(built)
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let text = said(rustc, &["--print", "sysroot"]).ok()?;
    Some(PathBuf::from(text.trim()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// The newest of texts whose versions fit.
    pub fn newest<T: AsRef<str> + Ord>(
        texts: impl IntoIterator<Item = T>,
        fitting: Range<Self>,
    ) -> Option<(Self, T)> {
        let texts = texts.into_iter();
        let all = texts.filter_map(|text| Some((Self::find(text.as_ref())?, text)));
        all.filter(|(version, _)| fitting.contains(version)).max()
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

fn said(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a program says of itself.
pub fn version_of(program: &Path) -> Result<Version> {
    let text = said(program, &["--version"])?;
    Version::find(&text).with_context(|| format!("{program} --version says no version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_programs_print_them() {
        for (text, version) in [
            ("rustc 1.96.0 (ac68faa20 2026-05-25)", Version(1, 96, 0)),
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)",
                Version(10, 0, 2),
            ),
            ("7.3", Version(7, 3, 0)),
        ] {
            assert_eq!(Version::find(text), Some(version));
        }
        assert_eq!(Version::find("none"), None);
        assert!(Version(8, 0, 0) < Version(10, 0, 2));
    }
}
