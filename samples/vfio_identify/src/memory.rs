// SPDX-License-Identifier: GPL-2.0
//! Memory that a device reads and writes.

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Whole pages of this program. A device may change them at any time, so they are
/// read and written byte by byte, and never borrowed.
pub struct Memory {
    base: NonNull<u8>,
    size: usize,
}

impl Memory {
    /// New, zeroed pages.
    pub fn new(size: usize) -> Result<Self> {
        let length = NonZeroUsize::new(size).context("no memory asked for")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel picks.
        let base = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }
            .context("allocate memory")?;
        Ok(Self { base: base.cast(), size })
    }

    /// The address in this program.
    pub fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// A copy of a part.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.size);
        let byte = |at| {
            // SAFETY: inside, as was checked.
            unsafe { self.base.add(at).read_volatile() }
        };
        (offset..offset + length).map(byte).collect()
    }

    /// Sets a part.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.size);
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: inside, as was checked; bytes of this type are never borrowed.
            unsafe { self.base.add(offset + at).write_volatile(*byte) };
        }
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        self.write(0, &vec![byte; self.size]);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // If it is still mapped for a device, the kernel keeps the pages.
        //
        // SAFETY: mapped in `new` with this size, and nobody borrows it.
        let _ = unsafe { munmap(self.base.cast(), self.size) };
    }
}
