// SPDX-License-Identifier: GPL-2.0
//! The guest's root: our own /init, a busybox for the shell, test modules.

use crate::{apt, prelude::*};
use cpio::NewcBuilder;
use flate2::{write::GzEncoder, Compression};
use std::io::{self, BufWriter, Cursor, Write};

pub const TARGET: &str = "s390x-unknown-linux-gnu";
/// The programs that are built for the guest, and what they are called there.
const PROGRAMS: [(&str, &str); 2] = [
    ("tests/guest", "init"),
    ("samples/vfio_identify", "bin/vfio_identify"),
];
/// The folders with modules that are built against the guest's kernel.
pub const MODULES: [&str; 2] = ["tests/modules", "samples/nvme_identify"];
/// The folders of every guest, besides those of its files.
const FOLDERS: &str = "bin dev etc lib/modules/external mnt proc root run sbin sys tmp usr/bin \
    usr/sbin var";
/// The folders of a small one.
const FEW_FOLDERS: &str = "dev proc sys tmp";

/// Whether a folder has a program for the guest, not for this machine.
pub fn is_for_guest(folder: &Path) -> bool {
    PROGRAMS.iter().any(|(name, _)| folder.ends_with(name))
}

/// A file of the guest's root: where it goes, and from where it comes.
pub type Extra = (String, PathBuf);

/// Builds the guest's root and returns the archive.
pub fn build(project: &Project, kernel: &Kernel, extra: &[Extra]) -> Result<PathBuf> {
    let step = Step::start(project, "guest", "building the guest's root")?;
    let mut files = vec![("bin/busybox".to_owned(), busybox(&step)?)];
    for (folder, name) in PROGRAMS {
        files.push((name.to_owned(), guest_program(&step, folder)?));
    }
    // The kernel's own: the driver, when it is one.
    let mut modules = modules_in(&kernel.objects);
    for folder in MODULES {
        modules.extend(external_modules(&step, kernel, folder, &[])?);
    }
    let count = modules.len();
    files.extend(modules.into_iter().map(in_modules));
    files.extend_from_slice(extra);
    let path = project.build.join(format!("initrd-{}.gz", kernel.label()));
    let output = GzEncoder::new(create(&path)?, Compression::fast());
    pack(output, FOLDERS, &files)?.finish()?.flush()?;
    step.done(&format!("root with {count} modules packed"));
    Ok(path)
}

/// Builds the root of a guest that needs nothing but our /init and some suites.
/// It is not compressed: unpacking costs a slow machine more than reading.
pub fn build_small(project: &Project, kernel: &Kernel, suites: &[&str], path: &Path) -> Result<()> {
    let step = Step::start(project, "guest-l2", "building the inner guest's root")?;
    let (program, name) = PROGRAMS[0];
    let mut files = vec![(name.to_owned(), guest_program(&step, program)?)];
    let modules = external_modules(&step, kernel, MODULES[0], suites)?;
    files.extend(modules.into_iter().map(in_modules));
    pack(create(path)?, FEW_FOLDERS, &files)?.flush()?;
    step.done("packed");
    Ok(())
}

/// Packs files into one folder of an archive that is not compressed. The kernel
/// takes it in front of another one.
pub fn pack_files(path: &Path, folder: &str, files: &[PathBuf]) -> Result<()> {
    let files = files.iter().cloned();
    let files: Vec<Extra> = files.map(|file| into_folder(folder, file)).collect();
    Ok(pack(create(path)?, "", &files)?.flush()?)
}

fn into_folder(folder: &str, file: PathBuf) -> Extra {
    (format!("{folder}/{}", name_of(&file)), file)
}

fn in_modules(module: PathBuf) -> Extra {
    into_folder("lib/modules", module)
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    Ok(BufWriter::new(File::create(path)?))
}

/// Packs folders and files.
fn pack<W: Write>(output: W, folders: &str, files: &[Extra]) -> Result<W> {
    const FOLDER: u32 = 0o040_755;
    const CONSOLE: u32 = 0o020_600;
    // In this order a folder comes before what is in it.
    let mut entries = BTreeMap::new();
    for (name, from) in files {
        entries.insert(Path::new(name), (0o100_755, fs::read(from)?));
    }
    let above = files
        .iter()
        .filter_map(|(name, _)| Path::new(name).parent());
    let folders = folders.split_whitespace().map(Path::new).chain(above);
    for folder in folders
        .flat_map(Path::ancestors)
        .filter(|folder| *folder != "")
    {
        entries.insert(folder, (FOLDER, Vec::new()));
        match folder.as_str() {
            "bin" => entries.insert(Path::new("bin/sh"), (0o120_777, b"busybox".to_vec())),
            // It must be there before /init can mount a /dev.
            "dev" => entries.insert(Path::new("dev/console"), (CONSOLE, Vec::new())),
            _ => None,
        };
    }
    let inputs = entries.into_iter().map(|(name, (mode, content))| {
        let (major, minor) = if mode == CONSOLE { (5, 1) } else { (0, 0) };
        let head = NewcBuilder::new(name.as_str()).mode(mode).nlink(1);
        let head = head.rdev_major(major).rdev_minor(minor);
        (head, Cursor::new(content))
    });
    Ok(cpio::write_cpio(inputs, output)?)
}

/// The kernel reads several archives in a row as one.
pub fn join(path: &Path, parts: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    let mut output = File::create(path)?;
    for part in parts {
        let length = io::copy(&mut File::open(part)?, &mut output)?;
        // The next one starts at a multiple of 4.
        let padding = usize::try_from(length.next_multiple_of(4) - length)?;
        io::copy(&mut &[0; 4][..padding], &mut output)?;
    }
    Ok(())
}

/// Cargo for the guest: the standard library is built along, from source,
/// since none is there for s390x; `RUSTC_BOOTSTRAP` is what allows it.
pub fn guest_cargo(project: &Project, program: &Path) -> Command {
    let mut command = command!(project, "{program}");
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-Ctarget-feature=+crt-static -Clinker=s390x-linux-gnu-gcc",
        )
        .env("CARGO_TARGET_DIR", guest_target(project));
    command
}

/// Where its objects go: in the checkout, as its source does.
fn guest_target(project: &Project) -> PathBuf {
    project.build.join("target/guest-s390x")
}

/// A program of the guest, which has the name of its folder.
fn program_path(project: &Project, folder: &str) -> PathBuf {
    let built = guest_target(project).join(TARGET).join("release");
    built.join(name_of(Path::new(folder)))
}

/// The guest's /init, which [`build`] has built.
pub fn init_path(project: &Project) -> PathBuf {
    program_path(project, PROGRAMS[0].0)
}

pub const GUEST_ARGUMENTS: [&str; 4] = [
    "--locked",
    "-Zbuild-std=std,panic_abort",
    "--target",
    TARGET,
];

fn guest_program(step: &Step, folder: &str) -> Result<PathBuf> {
    step.run(
        guest_cargo(step, &step.cargo)
            .args(["build", "--release", "--manifest-path"])
            .arg(step.root.join(folder).join("Cargo.toml"))
            .args(GUEST_ARGUMENTS),
        "correct what the compiler says",
    )?;
    Ok(program_path(step, folder))
}

/// Debian's static busybox of the guest's architecture.
pub fn busybox(step: &Step) -> Result<PathBuf> {
    let folder = apt::for_guest(step, "busybox", "busybox-static")?;
    let paths = ["usr/bin/busybox", "bin/busybox"].map(|path| folder.join(path));
    let path = paths.into_iter().find(|path| path.is_file());
    path.with_context(|| format!("{folder} has no busybox: remove it"))
}

/// The modules in a folder, built against this kernel: all, or some suites.
fn external_modules(
    step: &Step,
    kernel: &Kernel,
    folder: &str,
    suites: &[&str],
) -> Result<Vec<PathBuf>> {
    let source = step.root.join(folder);
    // Each kernel needs its own objects.
    let output = step.build.join("modules").join(folder);
    let output = output.join(kernel.label());
    fs::create_dir_all(&output)?;
    let key = modules_key(&source, kernel)?;
    hash::build_once(&output, &output.join("modules.order"), key.as_ref(), || {
        let (make, suites) = (&kernel.make, suites.join(" "));
        run!(
            step,
            "make {make...} M={source} MO={output} SUITES={suites} modules",
            "correct what the compiler says"
        )
    })?;
    Ok(modules_in(&output))
}

/// A key of what the modules are built from, if the kernel has one.
fn modules_key(source: &Path, kernel: &Kernel) -> Result<Option<String>> {
    let Some(of_kernel) = &kernel.key else {
        return Ok(None);
    };
    let mut files = paths_in(source)?;
    files.retain(|path| path.is_file());
    let texts = read_all(&files)?;
    Ok(Some(hash::key((of_kernel, &kernel.objects, files, texts))))
}

/// `modules.order` names the objects of the modules, relative to the folder.
fn modules_in(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(folder.join("modules.order")).unwrap_or_default();
    let objects = text.lines().map(|line| folder.join(line));
    objects.map(|path| path.with_extension("ko")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_reads_back() {
        let folder = camino_tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        let files = ["init", "a/b/x", "a/b/y"].map(|name| (name.to_owned(), file.clone()));
        let archive = pack(Vec::new(), "bin dev", &files).unwrap();
        let mut rest = &archive[..];
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            let entry = reader.entry();
            let head = (entry.name().to_owned(), entry.mode(), entry.rdev_minor());
            if entry.is_trailer() {
                break;
            }
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            found.push((head, text));
            rest = reader.finish().unwrap();
        }
        let at = |name: &str, mode, minor, text: &str| {
            let entry = ((name.to_owned(), mode, minor), text.to_owned());
            let place = found.iter().position(|found| *found == entry);
            place.unwrap_or_else(|| panic!("{entry:?} in {found:?}"))
        };
        at("dev/console", 0o020_600, 1, "");
        at("bin/sh", 0o120_777, 0, "busybox");
        at("init", 0o100_755, 0, "text");
        let (above, below) = (at("a", 0o040_755, 0, ""), at("a/b", 0o040_755, 0, ""));
        assert!(above < below && below < at("a/b/y", 0o100_755, 0, "text"));
        assert_eq!(found.iter().filter(|found| found.0 .0 == "a").count(), 1);
    }
}
