// SPDX-License-Identifier: GPL-2.0
//! Memory that is plugged after functions were attached, used for DMA, and unplugged.
//!
//! With `memhp_default_state=online_movable` the kernel prefers it for programs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::fcntl::OFlag;

use crate::block::{Buffer, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::host;
use crate::ktap::Suite;
use crate::pattern::Stream;
use crate::sysfs;

const MORE: u64 = 512 << 20;
const BYTES: usize = 16 * MIB;
const REQUEST: usize = MIB;
const PAGE: usize = 4096;
/// How long the kernel may take to plug memory, or to unplug it
const PATIENCE: Duration = Duration::from_secs(60);

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let drives = Function::of_driver("nvme");
    ensure!(!drives.is_empty(), "there is no drive");
    suite.test("memory is plugged", || change(MORE));
    for (drive, seed) in drives.iter().zip(900..) {
        suite.test(&format!("DMA by {} there", drive.address), || transfer(&drive.disk()?, seed));
    }
    suite.test("memory is unplugged", || change(0));
    for (drive, seed) in drives.iter().zip(910..) {
        suite.test(&format!("{} works afterwards", drive.address), || {
            Transfer::new(seed, 2 * MIB).verify(&drive.disk()?).map(drop)
        });
    }
    Ok(())
}

/// Plugs or unplugs memory until this much is plugged.
fn change(bytes: u64) -> Result<()> {
    host::memory(bytes)?;
    let is_done = || (plugged().ok()? == bytes).then_some(());
    let result = sysfs::wait_for("the memory", PATIENCE, is_done);
    say!("# memory: {} bytes later, {:x?}", plugged()?, ranges()?);
    result
}

/// The ranges of plugged memory; both ends are inclusive.
fn ranges() -> Result<Vec<(u64, u64)>> {
    let map = sysfs::read("/proc/iomem")?;
    let lines = map.lines().filter(|line| line.ends_with(": System RAM (virtio_mem)"));
    let range = |line: &str| {
        let (first, last) = line.trim_start().split_once(' ')?.0.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(first)?, number(last)?))
    };
    Ok(lines.filter_map(range).collect())
}

fn plugged() -> Result<u64> {
    Ok(ranges()?.iter().map(|(first, last)| last + 1 - first).sum())
}

/// Verifies a transfer in which the device reads from and writes to plugged memory.
fn transfer(disk: &Path, seed: u64) -> Result<()> {
    let flags = OFlag::O_DIRECT.bits();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(disk)?;
    let (mut written, mut read) = (Buffer::new(BYTES, 0), Buffer::new(BYTES, 0));
    Stream::new(seed).fill(&mut written);
    Stream::new(seed + 1).fill(&mut read);
    for at in (0..BYTES).step_by(REQUEST) {
        let (part, at) = (at..at + REQUEST, at as u64);
        check_place(&written[part.clone()])?;
        check_place(&read[part.clone()])?;
        file.write_all_at(&written[part.clone()], at)?;
        file.read_exact_at(&mut read[part.clone()], at)?;
        ensure!(read[part.clone()] == written[part], "at {at:#x}: data differs");
    }
    Ok(())
}

/// Checks that all pages of a buffer are in plugged memory.
fn check_place(buffer: &[u8]) -> Result<()> {
    const PRESENT: u64 = 1 << 63;
    const NUMBER: u64 = (1 << 55) - 1;
    let ranges = ranges()?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut entries = vec![0; buffer.len() / PAGE * 8];
    pagemap.read_exact_at(&mut entries, (buffer.as_ptr().addr() / PAGE * 8) as u64)?;
    for entry in entries.chunks_exact(8) {
        let entry = u64::from_ne_bytes(entry.try_into().expect("eight"));
        let at = (entry & NUMBER) * PAGE as u64;
        let is_later = ranges.iter().any(|(first, last)| (*first..=*last).contains(&at));
        ensure!(entry & PRESENT != 0 && is_later, "a page at {at:#x} is not in {ranges:x?}");
    }
    Ok(())
}
