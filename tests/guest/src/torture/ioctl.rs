// SPDX-License-Identifier: GPL-2.0
//! Raw ioctls of iommufd and VFIO with arbitrary arguments.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::request_code_none;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::sysfs;

/// The argument structure of an ioctl, field by field. It begins with its size.
pub struct Arguments(Vec<u8>);

impl Arguments {
    /// Starts a structure with this value in its size field.
    pub fn new(size: u32) -> Self {
        Self(size.to_ne_bytes().to_vec())
    }

    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// Reads a field that the kernel has written.
    pub fn get_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    pub fn get_u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// An ioctl number of iommufd or VFIO.
pub const fn number(nr: u8) -> libc::Ioctl {
    request_code_none!(b';', nr) as libc::Ioctl
}

/// Calls an ioctl. The structure is padded, so that there is enough memory for any value
/// in the size field.
pub fn call(file: &File, nr: u8, arguments: &mut Arguments) -> nix::Result<()> {
    /// No caller uses a larger size.
    const SIZE: usize = 4096;
    let length = arguments.0.len();
    arguments.0.resize(SIZE, 0);
    // SAFETY: the kernel accesses no more bytes than the size field says, and no caller
    // sets it to more than the length of the buffer.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), number(nr), arguments.0.as_mut_ptr()) };
    arguments.0.truncate(length.max(64));
    Errno::result(done).map(drop)
}

/// Anonymous memory.
pub struct Pages {
    base: NonNull<libc::c_void>,
    pub size: usize,
}

impl Pages {
    pub fn new(size: usize) -> Result<Self> {
        let length = NonZeroUsize::new(size).context("the size is 0")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { base, size })
    }

    pub fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size, and there are no references to it.
        let _ = unsafe { munmap(self.base, self.size) };
    }
}

/// An IOAS of iommufd with an attached function. Dropping it closes both.
pub struct AddressSpace {
    // Dropped before the iommufd that it is bound to
    pub device: File,
    pub iommufd: File,
    pub id: u32,
}

pub mod nr {
    pub const IOAS_ALLOC: u8 = 0x81;
    pub const IOAS_ALLOW: u8 = 0x82;
    pub const IOAS_COPY: u8 = 0x83;
    pub const IOAS_RANGES: u8 = 0x84;
    pub const IOAS_MAP: u8 = 0x85;
    pub const IOAS_UNMAP: u8 = 0x86;
    pub const OPTION: u8 = 0x87;
    pub const HWPT_ALLOC: u8 = 0x89;
    pub const DEVICE_BIND: u8 = 118;
    pub const DEVICE_ATTACH: u8 = 119;
    pub const DEVICE_DETACH: u8 = 120;
}

pub const FIXED: u32 = 1;
pub const WRITEABLE: u32 = 2;
pub const READABLE: u32 = 4;

fn open(path: &str) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {path}"))
}

impl AddressSpace {
    /// Creates an IOAS and attaches a function that is bound to vfio-pci.
    pub fn new(address: &str) -> Result<Self> {
        let folder = format!("/sys/bus/pci/devices/{address}/vfio-dev");
        let entries = sysfs::list(&folder);
        let entry = entries.first().with_context(|| format!("{address} is not on vfio-pci"))?;
        let device = open(&format!("/dev/vfio/devices/{}", sysfs::name(entry)))?;
        let iommufd = open("/dev/iommu")?;
        let mut bind = Arguments::new(16).u32(0).u32(iommufd.as_raw_fd() as u32).u32(0);
        call(&device, nr::DEVICE_BIND, &mut bind).context("VFIO_DEVICE_BIND_IOMMUFD")?;
        let mut alloc = Arguments::new(12).u32(0).u32(0);
        call(&iommufd, nr::IOAS_ALLOC, &mut alloc).context("IOMMU_IOAS_ALLOC")?;
        let space = Self { device, iommufd, id: alloc.get_u32(8) };
        space.attach().context("VFIO_DEVICE_ATTACH_IOMMUFD_PT")?;
        Ok(space)
    }

    pub fn attach(&self) -> nix::Result<()> {
        call(&self.device, nr::DEVICE_ATTACH, &mut Arguments::new(12).u32(0).u32(self.id))
    }

    pub fn detach(&self) -> nix::Result<()> {
        call(&self.device, nr::DEVICE_DETACH, &mut Arguments::new(8).u32(0))
    }

    /// The IOVA ranges that can be mapped, with inclusive ends.
    pub fn ranges(&self) -> Result<Vec<(u64, u64)>> {
        const MOST: usize = 16;
        let mut list = [0_u64; 2 * MOST];
        let address = list.as_mut_ptr().addr() as u64;
        let mut ranges =
            Arguments::new(32).u32(self.id).u32(MOST as u32).u32(0).u64(address).u64(0);
        call(&self.iommufd, nr::IOAS_RANGES, &mut ranges).context("IOMMU_IOAS_IOVA_RANGES")?;
        let count = ranges.get_u32(8) as usize;
        Ok(list[..2 * count].chunks(2).map(|range| (range[0], range[1])).collect())
    }

    pub fn map(&self, flags: u32, memory: u64, length: u64, iova: u64) -> nix::Result<()> {
        let mut map =
            Arguments::new(40).u32(flags).u32(self.id).u32(0).u64(memory).u64(length).u64(iova);
        call(&self.iommufd, nr::IOAS_MAP, &mut map)
    }

    /// Returns how many bytes were unmapped.
    pub fn unmap(&self, iova: u64, length: u64) -> nix::Result<u64> {
        let mut unmap = Arguments::new(24).u32(self.id).u64(iova).u64(length);
        call(&self.iommufd, nr::IOAS_UNMAP, &mut unmap)?;
        Ok(unmap.get_u64(16))
    }

    /// A new address space with a few maps: of one page, and of several page tables.
    pub fn with_maps(address: &str) -> Result<Self> {
        let space = Self::new(address)?;
        let (first, _) = *space.ranges()?.first().context("nothing can be mapped")?;
        let pages = Pages::new(4 << 20)?;
        let flags = FIXED | WRITEABLE | READABLE;
        space.map(flags, pages.address(), 4096, first).context("map a page")?;
        let far = first + (1 << 30);
        space.map(flags, pages.address(), pages.size as u64, far).context("map 4 MiB")?;
        space.unmap(first, 4096).context("unmap a page")?;
        Ok(space)
    }
}
