// SPDX-License-Identifier: GPL-2.0
//! The guest's root: our own /init, a busybox for the shell, test modules.

use crate::{
    apt::{self, Root},
    hash::{self, Stamp},
    kernel::{variable, Kernel},
    project::Project,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use cpio::{newc, NewcBuilder};
use flate2::{write::GzEncoder, Compression};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

/// What the guest's programs are built for.
pub const TARGET: &str = "s390x-unknown-linux-gnu";

/// The programs that are built for the guest, and what they are called there.
const PROGRAMS: [(&str, &str); 2] = [
    ("tests/guest", "init"),
    ("samples/vfio_identify", "bin/vfio_identify"),
];
/// The folders with modules that are built against the guest's kernel.
pub const MODULES: [&str; 2] = ["tests/modules", "samples/nvme_identify"];

/// What every guest has, parents first.
const FOLDERS: [&str; 17] = [
    "bin",
    "dev",
    "etc",
    "lib",
    "lib/modules",
    "lib/modules/external",
    "mnt",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/sbin",
    "var",
];

/// Whether a folder has a program for the guest, not for this machine.
pub fn is_for_guest(folder: &Path) -> bool {
    PROGRAMS.iter().any(|(name, _)| folder.ends_with(name))
}

/// A file of the guest's root: where it goes, and from where it comes.
pub type Extra = (String, PathBuf);

/// Builds the guest's root and returns the archive.
pub fn build(project: &Project, kernel: &Kernel, extra: &[Extra]) -> Result<PathBuf> {
    let step = Step::start(project, "guest", "building the guest's root")?;
    let mut files = vec![("bin/busybox".to_owned(), busybox(project, &step)?)];
    for (folder, name) in PROGRAMS {
        files.push((name.to_owned(), guest_program(project, &step, folder)?));
    }
    let mut modules = kernel_modules(kernel)?;
    for folder in MODULES {
        modules.extend(external_modules(project, kernel, &step, folder, &[])?);
    }
    for module in &modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        files.push((format!("lib/modules/{name}"), module.clone()));
    }
    files.extend_from_slice(extra);
    let path = project.build.join(format!("initrd-{}.gz", kernel.label()));
    pack(&path, &files).with_context(|| format!("cannot write {}", path.display()))?;
    step.done(&format!("root with {} modules packed", modules.len()));
    Ok(path)
}

/// Builds the root of a guest that needs nothing but our /init and some suites.
/// It is not compressed: unpacking costs a slow machine more than reading.
pub fn build_small(project: &Project, kernel: &Kernel, suites: &[&str], path: &Path) -> Result<()> {
    let step = Step::start(project, "guest-l2", "building the inner guest's root")?;
    let (program, name) = PROGRAMS[0];
    let init = guest_program(project, &step, program)?;
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for folder in ["dev", "lib", "lib/modules", "proc", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    archive.console()?;
    archive.file(name, &init)?;
    for module in external_modules(project, kernel, &step, MODULES[0], suites)? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("lib/modules/{name}"), &module)?;
    }
    newc::trailer(archive.output)?.flush()?;
    step.done("packed");
    Ok(())
}

/// Packs files into one folder of an archive that is not compressed. The kernel
/// takes it in front of another one.
pub fn pack_files(path: &Path, folder: &str, files: &[PathBuf]) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    archive.folder(folder)?;
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("{folder}/{name}"), file)?;
    }
    newc::trailer(archive.output)?.flush()?;
    Ok(())
}

/// Cargo for the guest: the standard library is built along, from source,
/// since none is there for s390x; `RUSTC_BOOTSTRAP` is what allows it.
pub fn guest_cargo(project: &Project, program: &Path) -> Command {
    let mut command = project.command(program);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Clinker=s390x-linux-gnu-gcc",
        )
        .env("CARGO_TARGET_DIR", guest_target(project));
    command
}

/// Where its objects go: with the checkout, as another one has another program.
fn guest_target(project: &Project) -> PathBuf {
    project.build.join("target/guest-s390x")
}

/// A program of the guest, which has the name of its folder.
fn program_path(project: &Project, folder: &str) -> PathBuf {
    let name = Path::new(folder).file_name().unwrap_or_default();
    let built = guest_target(project).join(TARGET);
    built.join("release").join(name)
}

/// The guest's /init, which [`build`] has built.
pub fn init_path(project: &Project) -> PathBuf {
    program_path(project, PROGRAMS[0].0)
}

/// What every call of [`guest_cargo`] names.
pub const GUEST_ARGUMENTS: [&str; 4] = [
    "--locked",
    "-Zbuild-std=std,panic_abort",
    "--target",
    TARGET,
];

fn guest_program(project: &Project, step: &Step, folder: &str) -> Result<PathBuf> {
    step.run(
        guest_cargo(project, &project.cargo)
            .args(["build", "--release", "--manifest-path"])
            .arg(project.root.join(folder).join("Cargo.toml"))
            .args(GUEST_ARGUMENTS),
        "correct what the compiler says",
    )?;
    Ok(program_path(project, folder))
}

/// Debian's static busybox of the guest's architecture.
pub fn busybox(project: &Project, step: &Step) -> Result<PathBuf> {
    let folder = project.cache.join("guest/busybox");
    let program = ["usr/bin/busybox", "bin/busybox"]
        .map(|path| folder.join(path))
        .into_iter()
        .find(|path| path.is_file());
    if let Some(path) = program {
        return Ok(path);
    }
    let Some(suite) = apt::codename() else {
        bail!(
            "the guest's busybox comes from Debian's packages; put a static s390x one at {}",
            folder.join("bin/busybox").display()
        );
    };
    let root = Root::of_suite(project, step, &suite, "s390x")?;
    let deb = root.download(project, step, "busybox-static", &project.cache.join("deb"))?;
    apt::unpack(project, step, &[deb], &folder)?;
    busybox(project, step)
}

/// The modules in a folder, built against this kernel: all, or some suites.
fn external_modules(
    project: &Project,
    kernel: &Kernel,
    step: &Step,
    folder: &str,
    suites: &[&str],
) -> Result<Vec<PathBuf>> {
    let source = project.root.join(folder);
    // Objects made for one kernel are none for another.
    let output = project
        .build
        .join("modules")
        .join(folder)
        .join(kernel.label());
    fs::create_dir_all(&output)?;
    let order = output.join("modules.order");
    let stamp = Stamp::new(
        output.join(".s390-iommu-built"),
        modules_key(&source, kernel)?,
    );
    if stamp.is_current() {
        return modules_in(&order, &output);
    }
    stamp.remove();
    step.run(
        kernel
            .make(project)
            .arg(variable("M", &source))
            .arg(variable("MO", &output))
            .arg(variable("SUITES", suites.join(" ")))
            .arg(format!("-j{}", project.jobs))
            .arg("modules"),
        "correct what the compiler says",
    )?;
    stamp.write()?;
    modules_in(&order, &output)
}

/// A key of what the modules are built from, if the kernel has one.
fn modules_key(source: &Path, kernel: &Kernel) -> Result<Option<String>> {
    let Some(key) = &kernel.key else {
        return Ok(None);
    };
    let objects = kernel.objects.as_os_str().as_encoded_bytes();
    let mut parts = vec![key.clone().into_bytes(), objects.to_owned()];
    let mut files: Vec<PathBuf> = fs::read_dir(source)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    for file in files.iter().filter(|path| path.is_file()) {
        parts.push(file.as_os_str().as_encoded_bytes().to_owned());
        parts.push(fs::read(file)?);
    }
    Ok(Some(hash::key(parts.iter().map(Vec::as_slice))))
}

/// The modules of the kernel itself (the driver, when it is one).
fn kernel_modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    modules_in(&kernel.objects.join("modules.order"), &kernel.objects)
}

/// `modules.order` names the objects of the modules, relative to the folder.
fn modules_in(order: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string(order).unwrap_or_default();
    Ok(text
        .lines()
        .map(|line| folder.join(line).with_extension("ko"))
        .collect())
}

/// Packs the files into the folders and links that every guest has.
fn pack(path: &Path, files: &[Extra]) -> Result<()> {
    let file = BufWriter::new(File::create(path)?);
    let mut archive = Archive::new(GzEncoder::new(file, Compression::fast()));
    for folder in FOLDERS {
        archive.folder(folder)?;
    }
    archive.console()?;
    archive.entry("bin/sh", 0o120_777, None, b"busybox")?;
    let mut folders = BTreeSet::new();
    for (name, from) in files {
        // Nearest last: a folder must come before what is in it.
        let above: Vec<&Path> = Path::new(name).ancestors().skip(1).collect();
        for folder in above.into_iter().rev() {
            let known = FOLDERS.iter().any(|name| folder == Path::new(name));
            if folder != Path::new("") && !known && folders.insert(folder) {
                archive.folder(&folder.to_string_lossy())?;
            }
        }
        archive.file(name, from)?;
    }
    let output = newc::trailer(archive.output)?;
    output.finish()?.flush()?;
    Ok(())
}

struct Archive<W: Write> {
    output: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn new(output: W) -> Self {
        Self { output, inode: 0 }
    }

    fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, None, &[])
    }

    /// The console must be there before /init can mount a /dev.
    fn console(&mut self) -> io::Result<()> {
        self.entry("dev/console", 0o020_600, Some((5, 1)), &[])
    }

    fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.entry(name, 0o100_755, None, &content)?;
        Ok(())
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: Option<(u32, u32)>,
        content: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        let (major, minor) = device.unwrap_or_default();
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut writer = NewcBuilder::new(name)
            .ino(self.inode)
            .mode(mode)
            .nlink(1)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.output, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["i", "b", "m.ko"] {
            fs::write(at(name), name).unwrap();
        }
        let file = |name: &str, from| (name.to_owned(), at(from));
        let files = [
            file("init", "i"),
            file("bin/busybox", "b"),
            file("lib/modules/m.ko", "m.ko"),
            file("a/b/x", "i"),
            file("a/b/y", "b"),
        ];
        pack(&at("out"), &files).unwrap();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(File::open(at("out")).unwrap())
            .read_to_end(&mut bytes)
            .unwrap();
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let name = reader.entry().name().to_owned();
            let (mode, rdev) = (reader.entry().mode(), reader.entry().rdev_minor());
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            found.push((name, mode, rdev, text));
            rest = reader.finish().unwrap();
        }
        let get = |name: &str| found.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!(get("init").3, "i");
        assert_eq!(get("lib/modules/m.ko").3, "m.ko");
        assert_eq!((get("dev/console").1, get("dev/console").2), (0o020_600, 1));
        assert_eq!(get("bin/sh").3, "busybox");
        let order: Vec<&str> = found.iter().map(|entry| entry.0.as_str()).collect();
        assert!(order.ends_with(&["a", "a/b", "a/b/x", "a/b/y"]));
    }
}
