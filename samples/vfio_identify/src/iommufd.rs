// SPDX-License-Identifier: GPL-2.0
//! An iommufd address space for devices: `/dev/iommu`.
//!
//! The structures are those of `<linux/iommufd.h>`. Newer kernels extend them at the
//! end; each begins with its size, which identifies the version.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::{ioctl_readwrite_bad, request_code_none};

use crate::memory::Memory;

const TYPE: u8 = b';';

#[repr(C)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

/// Usable IOVAs; both ends are inclusive.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Range {
    pub start: u64,
    pub last: u64,
}

#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

#[repr(C)]
struct IoasUnmap {
    size: u32,
    ioas_id: u32,
    iova: u64,
    length: u64,
}

ioctl_readwrite_bad!(ioas_alloc, request_code_none!(TYPE, 0x81), IoasAlloc);
ioctl_readwrite_bad!(ioas_iova_ranges, request_code_none!(TYPE, 0x84), IoasIovaRanges);
ioctl_readwrite_bad!(ioas_map, request_code_none!(TYPE, 0x85), IoasMap);
ioctl_readwrite_bad!(ioas_unmap, request_code_none!(TYPE, 0x86), IoasUnmap);

/// An address space. It is destroyed, with all its mappings, when it is dropped and
/// no device is attached any more.
pub struct AddressSpace {
    iommufd: File,
    id: u32,
}

impl AddressSpace {
    /// A new address space without mappings.
    pub fn new() -> Result<Self> {
        let path = "/dev/iommu";
        let iommufd = OpenOptions::new().read(true).write(true).open(path);
        let iommufd = iommufd.with_context(|| format!("open {path}"))?;
        let mut alloc = IoasAlloc { size: size_of::<IoasAlloc>() as u32, flags: 0, out_ioas_id: 0 };
        // SAFETY: the structure is the kernel's, and has its size in it.
        unsafe { ioas_alloc(iommufd.as_raw_fd(), &mut alloc) }.context("IOMMU_IOAS_ALLOC")?;
        Ok(Self { iommufd, id: alloc.out_ioas_id })
    }

    pub fn iommufd(&self) -> BorrowedFd<'_> {
        self.iommufd.as_fd()
    }

    /// The identifier of the address space in iommufd.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The IOVAs that every attached device can reach.
    pub fn ranges(&self) -> Result<Vec<Range>> {
        let mut list = vec![Range::default(); 16];
        let mut ranges = IoasIovaRanges {
            size: size_of::<IoasIovaRanges>() as u32,
            ioas_id: self.id,
            num_iovas: list.len() as u32,
            reserved: 0,
            allowed_iovas: list.as_mut_ptr().addr() as u64,
            out_iova_alignment: 0,
        };
        // SAFETY: the structure is the kernel's, and has a list and its length.
        unsafe { ioas_iova_ranges(self.iommufd.as_raw_fd(), &mut ranges) }
            .context("IOMMU_IOAS_IOVA_RANGES")?;
        list.truncate(ranges.num_iovas as usize);
        Ok(list)
    }

    /// Maps memory at an IOVA, so that devices can read and write it. The kernel pins
    /// the pages.
    pub fn map(&self, memory: &Memory, iova: u64) -> Result<()> {
        const FIXED_IOVA: u32 = 1 << 0;
        const WRITEABLE: u32 = 1 << 1;
        const READABLE: u32 = 1 << 2;
        let mut map = IoasMap {
            size: size_of::<IoasMap>() as u32,
            flags: FIXED_IOVA | WRITEABLE | READABLE,
            ioas_id: self.id,
            reserved: 0,
            user_va: memory.address() as u64,
            length: memory.size() as u64,
            iova,
        };
        // SAFETY: the structure is the kernel's. A device may write to the memory from
        // now on; the type `Memory` is made for this.
        unsafe { ioas_map(self.iommufd.as_raw_fd(), &mut map) }
            .with_context(|| format!("IOMMU_IOAS_MAP at {iova:#x}"))?;
        Ok(())
    }

    /// Unmaps the memory. No device reaches it when this returns.
    pub fn unmap(&self, iova: u64, length: usize) -> Result<()> {
        let mut unmap = IoasUnmap {
            size: size_of::<IoasUnmap>() as u32,
            ioas_id: self.id,
            iova,
            length: length as u64,
        };
        // SAFETY: the structure is the kernel's, and has its size in it.
        unsafe { ioas_unmap(self.iommufd.as_raw_fd(), &mut unmap) }
            .with_context(|| format!("IOMMU_IOAS_UNMAP at {iova:#x}"))?;
        Ok(())
    }
}
