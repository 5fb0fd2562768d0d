// SPDX-License-Identifier: GPL-2.0
//! iommufd address spaces and VFIO devices of this program.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{c_ulong, ioctl};

use crate::function::Function;
use crate::sysfs;

/// A range of IOVAs; both ends are inclusive.
pub type Range = (u64, u64);

/// ioctl numbers are `_IO(';', n)`; those of VFIO start at 100.
pub const TYPE: c_ulong = 0x3b00;
const GET_REGION_INFO: c_ulong = TYPE + 108;
const BIND_IOMMUFD: c_ulong = TYPE + 118;
const ATTACH_IOMMUFD_PT: c_ulong = TYPE + 119;
const IOAS_ALLOC: c_ulong = TYPE + 0x81;
const IOAS_IOVA_RANGES: c_ulong = TYPE + 0x84;
const IOAS_MAP: c_ulong = TYPE + 0x85;
const IOAS_UNMAP: c_ulong = TYPE + 0x86;

/// Calls an ioctl that takes a pointer to a structure.
pub fn call<T: ?Sized>(file: &impl AsRawFd, number: c_ulong, argument: *mut T) -> Result<i32> {
    // SAFETY: each caller passes the structure that belongs to the number.
    let result = unsafe { ioctl(file.as_raw_fd(), number, argument) };
    Errno::result(result).with_context(|| format!("ioctl {number:#x}"))
}

/// Calls an ioctl that takes a number.
pub fn call_with(file: &impl AsRawFd, number: c_ulong, argument: c_ulong) -> Result<i32> {
    // SAFETY: the kernel does not use the argument as a pointer.
    let result = unsafe { ioctl(file.as_raw_fd(), number, argument) };
    Errno::result(result).with_context(|| format!("ioctl {number:#x}"))
}

pub fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

/// An I/O address space (IOAS) in its own iommufd.
pub struct Space {
    iommufd: File,
    id: u32,
}

impl Space {
    pub fn new() -> Result<Self> {
        let iommufd = open("/dev/iommu")?;
        // Size, flags, the returned ID
        let mut alloc = [12_u32, 0, 0];
        call(&iommufd, IOAS_ALLOC, &mut alloc)?;
        Ok(Self { iommufd, id: alloc[2] })
    }

    /// Attaches a function that is bound to vfio-pci, until the returned file is closed.
    pub fn attach(&self, function: &Function) -> Result<File> {
        let folders = sysfs::list(function.path().join("vfio-dev"));
        let name = sysfs::name(folders.first().context("no character device")?);
        let device = open(Path::new("/dev/vfio/devices").join(name))?;
        // Size, flags, iommufd, the returned ID
        let mut bind = [16, 0, self.iommufd.as_raw_fd() as u32, 0];
        call(&device, BIND_IOMMUFD, &mut bind)?;
        let mut attach = [12, 0, self.id];
        call(&device, ATTACH_IOMMUFD_PT, &mut attach)?;
        Ok(device)
    }

    /// The IOVA ranges that can be mapped.
    pub fn ranges(&self) -> Result<Vec<Range>> {
        #[repr(C)]
        struct Answer {
            size: u32,
            space: u32,
            count: u32,
            reserved: u32,
            list: u64,
            alignment: u64,
        }
        let mut list = [[0_u64; 2]; 16];
        let mut ranges = Answer {
            size: size_of::<Answer>() as u32,
            space: self.id,
            count: list.len() as u32,
            reserved: 0,
            list: list.as_mut_ptr().addr() as u64,
            alignment: 0,
        };
        call(&self.iommufd, IOAS_IOVA_RANGES, &mut ranges)?;
        let list = list[..ranges.count as usize].iter();
        Ok(list.map(|range| (range[0], range[1])).collect())
    }

    /// Maps memory at this IOVA, readable and writable.
    pub fn map(&self, memory: &[u8], iova: u64) -> Result<()> {
        #[repr(C)]
        struct Map {
            size: u32,
            flags: u32,
            space: u32,
            reserved: u32,
            memory: u64,
            length: u64,
            iova: u64,
        }
        let mut map = Map {
            size: size_of::<Map>() as u32,
            flags: 7,
            space: self.id,
            reserved: 0,
            memory: memory.as_ptr().addr() as u64,
            length: memory.len() as u64,
            iova,
        };
        call(&self.iommufd, IOAS_MAP, &mut map).map(drop)
    }

    /// Unmaps a range that was mapped with one call.
    pub fn unmap(&self, iova: u64, length: u64) -> Result<()> {
        #[repr(C)]
        struct Unmap {
            size: u32,
            space: u32,
            iova: u64,
            length: u64,
        }
        let size = size_of::<Unmap>() as u32;
        let mut unmap = Unmap { size, space: self.id, iova, length };
        call(&self.iommufd, IOAS_UNMAP, &mut unmap).map(drop)
    }
}

/// The offset of a region in a device's file.
pub fn region(device: &File, index: u32) -> Result<u64> {
    #[repr(C)]
    struct Info {
        size: u32,
        flags: u32,
        index: u32,
        capabilities: u32,
        length: u64,
        offset: u64,
    }
    let size = size_of::<Info>() as u32;
    let mut info = Info { size, flags: 0, index, capabilities: 0, length: 0, offset: 0 };
    call(device, GET_REGION_INFO, &mut info)?;
    Ok(info.offset)
}
