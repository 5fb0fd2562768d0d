// SPDX-License-Identifier: GPL-2.0
//! `make passthrough`: boots a guest (L1) on this driver, which gives NVMe
//! drives to a QEMU of its own, whose guest (L2) has this driver as well. Each
//! checks what the other wrote, and in the end the drives' files are checked
//! here. The guests' side is `tests/guest/src/passthrough/`.

use crate::{initramfs, inner, machine, prelude::*, project::is_set, qemu::EVERYTHING};
use std::{io, os::unix::fs::FileExt};
use xxhash_rust::xxh64::xxh64;

/// How long all of L1 may take.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// How long one L2 may take, in seconds.
const INNER_LIMIT: u64 = 10 * 60;
/// The suites that L2 can run, and what it needs for large requests.
const MODULES: [&str; 3] = ["remap", "dma", "mapping_size"];
/// How long the guests' output may go unshown.
const SILENCE: Duration = Duration::from_secs(15);

/// What `make test` boots: one L2, for less than a minute.
const SHORT: &str = "guest.rounds=legacy guest.suite=remap guest.only=4K,1M,2M";

pub fn run(project: &Project) -> Result<()> {
    let start = Instant::now();
    let count = rounds(project, &more_arguments())?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "passthrough: {} passed, {} failed, {} skipped ({seconds:.1} s)",
        count.passed, count.failed, count.skipped
    );
    let failed = count.failed + count.skipped;
    Count { failed, ..count }.exit_if_bad();
    Ok(())
}

/// The part of it that `make test` runs.
pub fn short(project: &Project) -> Result<Count> {
    rounds(project, SHORT)
}

fn rounds(project: &Project, append: &str) -> Result<Count> {
    project.ensure_no_kout("passthrough")?;
    let inner = inner_guest(project)?;
    let mut machine = Machine::prepare(project, &project.flavour)?;
    if is_corrected() {
        machine = machine.corrected(project)?;
    }
    let machine = machine.with_archives(project, "passthrough", inner)?;
    let (mut count, claims, files) = boot(project, &machine, append)?;
    if claims.is_empty() {
        println!("    | no guest reported what it wrote");
        count.failed += 1;
    }
    for claim in &claims {
        let checked = claim.check(&files);
        count += Count::one(checked.is_ok());
        if let Err(error) = checked {
            println!("    | {error:#}");
        }
    }
    let bytes: usize = claims.iter().map(|claim| claim.length).sum();
    println!(
        "           drives: {bytes} bytes in {} places looked at in their files",
        claims.len()
    );
    Ok(count)
}

/// What the guests reported and claim, and the drives' files.
fn boot(
    project: &Project,
    machine: &Machine,
    append: &str,
) -> Result<(Count, Vec<Claim>, Vec<File>)> {
    let step = Step::start(project, "passthrough", "booting a guest in a guest")?;
    let append = format!(
        "guest.mode=passthrough guest.limit={INNER_LIMIT} guest.inner={} \
         guest.machine={} {append}",
        inner_driver(),
        u8::from(is_corrected())
    );
    let boot = Boot {
        plugged: EVERYTHING,
        // Requests of 2 MiB at most, not of 512 KiB: newer versions of QEMU take no more.
        arguments: "-global nvme.mdts=9",
        ..machine.boot("passthrough", append, LIMIT)
    };
    let mut claims = Vec::new();
    let mut shown = Instant::now();
    let see = |line: &str| {
        claims.extend(Claim::parse(line));
        if is_result(line) || shown.elapsed() > SILENCE {
            println!("[{:>7.1} s] {line}", step.seconds());
            shown = Instant::now();
        }
    };
    // Open files can be read after they are removed.
    let (report, files) = boot.run_and(project, see, |drives| {
        let files = drives.iter().map(File::open);
        Ok(files.collect::<io::Result<Vec<_>>>()?)
    })?;
    let count = report.judge(&step, None);
    let console = project.console("passthrough");
    step.done(&format!("both consoles are in {console}"));
    Ok((count, claims, files))
}

/// Whether a line is always shown to the caller.
fn is_result(line: &str) -> bool {
    ["ok ", "not ok ", "# ", "guest: "]
        .iter()
        .any(|start| line.starts_with(start))
}

/// `INNER=c`: the inner guest has the driver in C.
fn inner_driver() -> String {
    text("INNER").unwrap_or("rust".into())
}

/// `MACHINE=1`: both emulators are the one of `make machine`, not Debian's.
fn is_corrected() -> bool {
    is_set("MACHINE")
}

/// What L1 starts L2 with, as an archive: a QEMU, a kernel, a root.
fn inner_guest(project: &Project) -> Result<Vec<PathBuf>> {
    let folder = project.build.join(inner::QEMU.folder);
    fs::create_dir_all(&folder)?;
    let (image, root) = (folder.join("image"), folder.join("root.cpio"));
    let is_c = inner_driver() == "c";
    let kernel = kernel::build(project, if is_c { "l2,c" } else { "l2" })?;
    fs::copy(&kernel.image, &image)?;
    initramfs::build_small(project, &kernel, &MODULES, &root)?;
    // The archives below need the cache.
    drop(kernel);
    let guest = project.build.join("l2.cpio");
    initramfs::pack_files(&guest, inner::QEMU.folder, &[image, root])?;
    let qemu = is_corrected().then(|| machine::build_for_guest(project));
    let qemu = qemu.transpose()?;
    Ok(vec![inner::QEMU.archive(project, qemu.as_deref())?, guest])
}

/// What a guest says that it wrote:
/// `bytes: drive xN start BYTES length BYTES sum XXH64`.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    drive: usize,
    start: u64,
    length: usize,
    sum: u64,
}

impl Claim {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.strip_prefix("bytes: ")?.split_whitespace().collect();
        let ["drive", drive, "start", start, "length", length, "sum", sum] = fields[..] else {
            return None;
        };
        Some(Self {
            drive: drive.strip_prefix('x')?.parse().ok()?,
            start: start.parse().ok()?,
            length: length.parse().ok()?,
            sum: u64::from_str_radix(sum, 16).ok()?,
        })
    }

    /// Whether the drive's file holds that.
    fn check(&self, files: &[File]) -> Result<()> {
        let file = files.get(self.drive);
        let file = file.with_context(|| format!("drive x{}: no such drive", self.drive))?;
        let mut bytes = vec![0; self.length];
        file.file().read_exact_at(&mut bytes, self.start)?;
        let found = xxh64(&bytes, 0);
        ensure!(
            found == self.sum,
            "drive x{}: {} bytes at {} have the sum {found:016x}, {:016x} were written",
            self.drive,
            self.length,
            self.start,
            self.sum
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_read_and_checked() {
        let folder = camino_tempfile::tempdir().unwrap();
        let path = folder.path().join("drive");
        fs::write(&path, b"..abc").unwrap();
        let files = [File::open(&path).unwrap()];
        let line = |sum| format!("bytes: drive x0 start 2 length 3 sum {sum:016x}");
        let claim = |sum| Claim::parse(&line(sum)).unwrap();
        assert!(claim(xxh64(b"abc", 0)).check(&files).is_ok());
        assert!(claim(xxh64(b"abd", 0)).check(&files).is_err());
        assert!(claim(0).check(&[]).is_err());
        assert_eq!(Claim::parse("bytes: drive 0 start 2"), None);
        assert_eq!(Claim::parse("l2| bytes: drive x0 start 2"), None);
    }
}
