// SPDX-License-Identifier: GPL-2.0
//! Verified transfers to and from a block device.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;

use crate::pattern::{Stream, Sum};
use crate::sysfs;

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// A page-aligned buffer for direct I/O, used from an offset on.
pub struct Buffer {
    base: *mut u8,
    layout: Layout,
    offset: usize,
    length: usize,
}

// SAFETY: the memory belongs to the buffer alone.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Allocates `length` bytes that start `offset` bytes into a page.
    pub fn new(length: usize, offset: usize) -> Self {
        let layout = Layout::from_size_align(offset + length, 4096).expect("a sane size");
        // SAFETY: no caller asks for 0 bytes, so the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            handle_alloc_error(layout);
        }
        Self { base, layout, offset, length }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base, self.layout) };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is inside the allocation, initialized with zeros, and
        // borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.base.add(self.offset), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is inside the allocation, initialized with zeros, and
        // borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(self.offset), self.length) }
    }
}

/// What to write and read back.
#[derive(Clone, Copy)]
pub struct Transfer {
    /// Selects the pattern. Each transfer has its own, so that it cannot pass with stale
    /// data of an earlier one.
    pub seed: u64,
    /// Offset on the disk, in bytes.
    pub start: u64,
    pub bytes: usize,
    /// Size of one request.
    pub request: usize,
    /// Offset of the buffer in its page.
    pub offset: usize,
}

/// The checksums and times of a transfer.
pub struct Outcome {
    pub written: u64,
    pub read: u64,
    pub write_time: Duration,
    pub read_time: Duration,
}

impl Transfer {
    /// A transfer at the start of the disk, in requests of 1 MiB.
    pub const fn new(seed: u64, bytes: usize) -> Self {
        Self { seed, start: 0, bytes, request: MIB, offset: 0 }
    }

    /// Writes, drops caches, reads back, and compares checksums and bytes.
    pub fn verify(&self, disk: &Path) -> Result<Outcome> {
        let (written, write_time) = self.write(disk)?;
        sysfs::write("/proc/sys/vm/drop_caches", "3")?;
        let (read, read_time) = self.read(disk)?;
        ensure!(
            written == read,
            "{}: checksum written {written:016x}, read back {read:016x}",
            disk.display()
        );
        Ok(Outcome { written, read, write_time, read_time })
    }

    fn open(&self, disk: &Path) -> Result<File> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(OFlag::O_DIRECT.bits());
        options.open(disk).with_context(|| format!("open {}", disk.display()))
    }

    fn offsets(&self) -> impl Iterator<Item = u64> {
        (self.start..self.start + self.bytes as u64).step_by(self.request)
    }

    fn write(&self, disk: &Path) -> Result<(u64, Duration)> {
        let file = self.open(disk)?;
        let (mut stream, mut sum) = (Stream::new(self.seed), Sum::new());
        let mut buffer = Buffer::new(self.request, self.offset);
        let mut spent = Duration::ZERO;
        for offset in self.offsets() {
            stream.fill(&mut buffer);
            sum.add(&buffer);
            let start = Instant::now();
            file.write_all_at(&buffer, offset)
                .with_context(|| format!("write at {offset:#x} of {}", disk.display()))?;
            spent += start.elapsed();
        }
        file.sync_all().with_context(|| format!("flush {}", disk.display()))?;
        Ok((sum.value(), spent))
    }

    /// Reads data that was written before and compares it with the pattern.
    pub fn read(&self, disk: &Path) -> Result<(u64, Duration)> {
        let file = self.open(disk)?;
        let (mut stream, mut sum) = (Stream::new(self.seed), Sum::new());
        let mut buffer = Buffer::new(self.request, self.offset);
        let mut expected = Buffer::new(self.request, 0);
        let mut spent = Duration::ZERO;
        for offset in self.offsets() {
            let start = Instant::now();
            file.read_exact_at(&mut buffer, offset)
                .with_context(|| format!("read at {offset:#x} of {}", disk.display()))?;
            spent += start.elapsed();
            sum.add(&buffer);
            stream.fill(&mut expected);
            self.compare(&buffer, &expected, offset)?;
        }
        Ok((sum.value(), spent))
    }

    /// Reports the first byte that differs, which a checksum cannot.
    fn compare(&self, got: &[u8], expected: &[u8], offset: u64) -> Result<()> {
        let differs = got.iter().zip(expected).position(|(a, b)| a != b);
        let Some(at) = differs.filter(|_| got != expected) else {
            return Ok(());
        };
        anyhow::bail!("byte {:#x} of the disk is not what was written", offset + at as u64)
    }
}

/// The rate in MiB/s.
pub fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / MIB as f64 / time.as_secs_f64().max(1e-9)
}
