// SPDX-License-Identifier: GPL-2.0
//! kexec during I/O: the machine is not reset, so the next kernel finds the functions as
//! the previous one left them. The kernels are files on the first drive
//! (`tools/src/suite/torture.rs`). Or the kernel crashes, and the crash kernel writes a
//! dump to a drive.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};

use super::{Campaign, work};
use crate::block::{Buffer, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::kmsg;
use crate::ktap::Suite;
use crate::pattern::Stream;
use crate::sysfs;

/// `kexec_file_load` on s390, which the libc crate lacks
const SYS_KEXEC_FILE_LOAD: libc::c_long = 381;
const MOUNT: &str = "/mnt";
/// The kernels, in the order in which they are booted
const KERNELS: [&str; 3] = ["rust", "c", "rust"];
const FILE_BYTES: usize = 4 * MIB;
/// How much of the dump is written and compared
const DUMPED: usize = 64 * MIB;
/// `KEXEC_FILE_ON_CRASH`
const ON_CRASH: libc::c_ulong = 2;
/// Offset of a part of the drive that is not written during the kexec
const QUIET: u64 = 128 * MIB as u64;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "kexec", 10)?;
    let hop = cmdline.number_or("guest.hop", 0)?;
    let mut result = arrive(hop);
    if result.is_ok() && hop < campaign.rounds {
        let Err(error) = leave(&mut campaign, hop + 1);
        result = Err(error);
    }
    let name = format!("from kernel to kernel under I/O, {} times", campaign.rounds);
    suite.test(&name, || result.with_context(|| format!("kernel {hop}")));
    Ok(())
}

/// Crashes during I/O and writes the dump to a drive. Both kernels run this.
pub fn crash(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let hop = cmdline.number_or("guest.hop", 0)?;
    let result = match hop {
        0 => die(cmdline).map(|never| match never {}),
        _ => arrive(hop).and_then(|()| dump()),
    };
    suite.test("a crash under I/O, and its dump on the NVMe", || result);
    Ok(())
}

/// Crashes the kernel. Returns only on failure.
fn die(cmdline: &Cmdline) -> Result<Infallible> {
    let mut campaign = Campaign::new(cmdline, "crash", 1)?;
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() == 2, "{} drives", drives.len());
    work_in_flight(&mut campaign, &drives, KERNELS[0], 1, ON_CRASH, || {
        sysfs::write("/proc/sysrq-trigger", "c")
    })
}

/// Writes the memory of the crashed kernel to the second drive and reads it back.
fn dump() -> Result<()> {
    let mut memory = File::open("/proc/vmcore").context("open the dump")?;
    let disk = Function::of_driver("nvme")[1].disk()?;
    let open =
        || OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&disk);
    let (written, read) = (open()?, open()?);
    let mut bytes = Buffer::new(MIB, 0);
    let mut again = Buffer::new(MIB, 0);
    for part in 0..DUMPED / MIB {
        let start = (part * MIB) as u64;
        memory.read_exact(&mut bytes).with_context(|| format!("read {start} of the dump"))?;
        ensure!(part > 0 || bytes.starts_with(b"\x7fELF"), "the dump is not an ELF file");
        written.write_all_at(&bytes, start)?;
        read.read_exact_at(&mut again, start)?;
        ensure!(bytes[..] == again[..], "MiB {part} of the dump differs when read back");
    }
    Ok(())
}

/// Checks what the previous kernel wrote, and this kernel's log.
fn arrive(hop: u64) -> Result<()> {
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() == 2, "{} drives", drives.len());
    if hop > 0 {
        quiet(hop).read(&drives[1].disk()?)?;
        with_files(&drives[0], || check_file(hop))?;
    }
    let messages = kmsg::messages()?;
    let bad = kmsg::bad(&messages);
    ensure!(bad.is_empty(), "bad kernel message: {}", bad[0]);
    Ok(())
}

fn quiet(hop: u64) -> Transfer {
    Transfer { start: QUIET, ..Transfer::new(1800 + hop, 2 * MIB) }
}

fn with_files<T>(drive: &Function, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let disk = drive.disk()?;
    let none = None::<&str>;
    mount(Some(&disk), MOUNT, Some("ext2"), MsFlags::empty(), none)
        .with_context(|| format!("mount {}", disk.display()))?;
    let result = work();
    umount2(MOUNT, MntFlags::empty()).context("unmount")?;
    result
}

fn file_data(hop: u64) -> Vec<u8> {
    let mut data = vec![0; FILE_BYTES];
    Stream::new(1900 + hop).fill(&mut data);
    data
}

fn check_file(hop: u64) -> Result<()> {
    let mut data = Vec::new();
    File::open(Path::new(MOUNT).join("data"))?.read_to_end(&mut data)?;
    ensure!(data == file_data(hop), "the file written for kernel {hop} differs");
    Ok(())
}

/// Starts the next kernel. Returns only on failure.
fn leave(campaign: &mut Campaign, next: u64) -> Result<Infallible> {
    let drives = Function::of_driver("nvme");
    let kernel = KERNELS[(next as usize - 1) % KERNELS.len()];
    say!("# kexec: kernel {next}: {kernel}");
    work_in_flight(campaign, &drives, kernel, next, 0, || {
        let done = reboot(RebootMode::RB_KEXEC);
        bail!("kexec: {done:?}")
    })
}

/// Writes what the next kernel checks, loads that kernel, and calls `leave` during
/// transfers. Returns only on failure.
fn work_in_flight(
    campaign: &mut Campaign,
    drives: &[Function],
    kernel: &str,
    next: u64,
    flags: libc::c_ulong,
    leave: impl FnOnce() -> Result<()>,
) -> Result<Infallible> {
    quiet(next).verify(&drives[1].disk()?)?;
    with_files(&drives[0], || {
        let mut file = File::create(Path::new(MOUNT).join("data"))?;
        file.write_all(&file_data(next))?;
        file.sync_all()?;
        load(kernel, next, flags)
    })?;
    let (files, other) = (drives[0].disk()?, drives[1].disk()?);
    let pause = Duration::from_millis(campaign.rng.u64(0..300));
    let over = Default::default();
    work::beside_packets(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| work::read_to_its_end(&files, &over));
            work::beside_transfers(&other, 2000 + 100 * next, || {
                std::thread::sleep(pause);
                let done = leave();
                over.store(true, std::sync::atomic::Ordering::Relaxed);
                done?;
                bail!("this kernel is still running")
            })
        })
    })
}

/// Loads a kernel with the command line of this one.
fn load(kernel: &str, hop: u64, flags: libc::c_ulong) -> Result<()> {
    let open = |name: &str| {
        let path = Path::new(MOUNT).join(name);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    };
    let (image, initrd) = (open(kernel)?, open("initrd")?);
    let args = sysfs::read("/proc/cmdline")?;
    let args = CString::new(format!("{args} guest.hop={hop}"))?;
    let length = args.as_bytes_with_nul().len();
    // SAFETY: two open files, and a NUL-terminated string with its length, NUL included.
    let done = unsafe {
        let (image, initrd) = (image.as_raw_fd(), initrd.as_raw_fd());
        libc::syscall(SYS_KEXEC_FILE_LOAD, image, initrd, length, args.as_ptr(), flags)
    };
    Errno::result(done).map(drop).context("kexec_file_load")
}
