// SPDX-License-Identifier: GPL-2.0
//! A PCI function in user space: VFIO's character device.

use std::fs::{File, OpenOptions, read_dir};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc::{SYS_s390_pci_mmio_read, SYS_s390_pci_mmio_write, c_long, syscall};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::{ioctl_none_bad, ioctl_readwrite_bad, request_code_none};
use vfio_bindings::bindings::vfio as kernel;

/// An event arrives within milliseconds; one that takes longer will not arrive.
const EVENT_LIMIT_MS: u16 = 10_000;
/// How long a reset may be delayed.
const RESET_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);

/// `struct vfio_irq_set` with the file descriptor that follows it.
#[repr(C)]
struct IrqSet {
    header: kernel::vfio_irq_set,
    eventfd: i32,
}

/// The number of an ioctl, as in `<linux/vfio.h>`.
macro_rules! number {
    ($offset:literal) => {
        request_code_none!(kernel::VFIO_TYPE, kernel::VFIO_BASE + $offset)
    };
}

ioctl_readwrite_bad!(get_region_info, number!(8), kernel::vfio_region_info);
ioctl_readwrite_bad!(set_irqs, number!(10), IrqSet);
ioctl_none_bad!(reset, number!(11));
ioctl_readwrite_bad!(hot_reset, number!(13), kernel::vfio_pci_hot_reset);
ioctl_readwrite_bad!(bind_iommufd, number!(18), kernel::vfio_device_bind_iommufd);
ioctl_readwrite_bad!(attach_pt, number!(19), kernel::vfio_device_attach_iommufd_pt);

/// An open function. When it is dropped the kernel resets it.
pub struct Device {
    file: File,
    path: String,
}

impl Device {
    /// Opens the function at a PCI address, which the driver vfio-pci must have.
    pub fn open(address: &str) -> Result<Self> {
        let folder = format!("/sys/bus/pci/devices/{address}/vfio-dev");
        let entry = read_dir(&folder).ok().and_then(|mut entries| entries.next()?.ok());
        let entry = entry.with_context(|| format!("{address} has not the driver vfio-pci"))?;
        let path = format!("/dev/vfio/devices/{}", entry.file_name().to_string_lossy());
        let file = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("open {path}"))?, path })
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Binds the function to an iommufd: DMA is blocked, and nothing is attached.
    pub fn bind(&self, iommufd: BorrowedFd<'_>) -> Result<()> {
        let mut bind = kernel::vfio_device_bind_iommufd {
            argsz: size_of::<kernel::vfio_device_bind_iommufd>() as u32,
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        // SAFETY: the structure is the kernel's, and has its size in it.
        unsafe { bind_iommufd(self.file.as_raw_fd(), &mut bind) }
            .context("VFIO_DEVICE_BIND_IOMMUFD")?;
        Ok(())
    }

    /// Attaches the function to an address space of that iommufd.
    pub fn attach(&self, space: u32) -> Result<()> {
        let mut attach = kernel::vfio_device_attach_iommufd_pt {
            argsz: size_of::<kernel::vfio_device_attach_iommufd_pt>() as u32,
            pt_id: space,
            ..Default::default()
        };
        // SAFETY: the structure is the kernel's, and has its size in it.
        unsafe { attach_pt(self.file.as_raw_fd(), &mut attach) }
            .context("VFIO_DEVICE_ATTACH_IOMMUFD_PT")?;
        Ok(())
    }

    fn region(&self, index: u32) -> Result<kernel::vfio_region_info> {
        let mut info = kernel::vfio_region_info {
            argsz: size_of::<kernel::vfio_region_info>() as u32,
            index,
            ..Default::default()
        };
        // SAFETY: the structure is the kernel's, and has its size in it.
        unsafe { get_region_info(self.file.as_raw_fd(), &mut info) }
            .with_context(|| format!("VFIO_DEVICE_GET_REGION_INFO of {index}"))?;
        Ok(info)
    }

    /// Sets the two bits of the configuration space without which neither
    /// registers nor DMA work.
    pub fn enable_dma(&self) -> Result<()> {
        const COMMAND: u64 = 4;
        const MEMORY: u16 = 1 << 1;
        const MASTER: u16 = 1 << 2;
        let config = self.region(kernel::VFIO_PCI_CONFIG_REGION_INDEX)?.offset;
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, config + COMMAND).context("read PCI_COMMAND")?;
        let command = u16::from_le_bytes(bytes) | MEMORY | MASTER;
        let bytes = command.to_le_bytes();
        self.file.write_all_at(&bytes, config + COMMAND).context("write PCI_COMMAND")
    }

    /// Maps the registers of a BAR.
    pub fn map_bar(&self, index: u32) -> Result<Bar> {
        let info = self.region(kernel::VFIO_PCI_BAR0_REGION_INDEX + index)?;
        ensure!(info.flags & kernel::VFIO_REGION_INFO_FLAG_MMAP != 0, "BAR {index}: no mmap");
        let size = NonZeroUsize::new(info.size as usize).context("an empty BAR")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = info.offset as i64;
        // SAFETY: a new mapping, at an address that the kernel picks.
        let base = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &self.file, offset) }
            .with_context(|| format!("mmap BAR {index}"))?;
        Ok(Bar { base, size: size.get() })
    }

    /// Requests notification of errors.
    pub fn error_events(&self) -> Result<ErrorEvents> {
        let eventfd = EventFd::new().context("make an eventfd")?;
        let mut set = IrqSet {
            header: kernel::vfio_irq_set {
                argsz: size_of::<IrqSet>() as u32,
                flags: kernel::VFIO_IRQ_SET_DATA_EVENTFD | kernel::VFIO_IRQ_SET_ACTION_TRIGGER,
                index: kernel::VFIO_PCI_ERR_IRQ_INDEX,
                start: 0,
                count: 1,
                ..Default::default()
            },
            eventfd: eventfd.as_fd().as_raw_fd(),
        };
        // SAFETY: the structure is the kernel's, with one descriptor behind it.
        unsafe { set_irqs(self.file.as_raw_fd(), &mut set) }.context("VFIO_DEVICE_SET_IRQS")?;
        Ok(ErrorEvents { eventfd })
    }

    /// Resets the function, which also takes it out of the error state.
    pub fn reset(&self) -> Result<()> {
        let end = Instant::now() + RESET_LIMIT;
        loop {
            // SAFETY: it has no argument.
            match unsafe { reset(self.file.as_raw_fd()) } {
                // The kernel is still handling the error.
                Err(Errno::EAGAIN) if Instant::now() < end => sleep(PAUSE),
                // A kernel that leaves recovery to us (VFIO_PCI_ZDEV_KVM) leaves
                // the function blocked as well, and the function cannot be
                // asked to reset itself.
                Err(Errno::ENOTTY) => return self.hot_reset(),
                done => return done.map(drop).context("VFIO_DEVICE_RESET"),
            }
        }
    }

    /// Makes the slot reset the function. The settings in its configuration space are
    /// lost.
    fn hot_reset(&self) -> Result<()> {
        // No group proves ownership: the function is opened directly.
        let argsz = size_of::<kernel::vfio_pci_hot_reset>() as u32;
        let mut request = kernel::vfio_pci_hot_reset { argsz, ..Default::default() };
        // SAFETY: the structure is the kernel's, and has its size in it.
        unsafe { hot_reset(self.file.as_raw_fd(), &mut request) }
            .context("VFIO_DEVICE_PCI_HOT_RESET")?;
        self.enable_dma()
    }
}

/// Reports errors of one function.
pub struct ErrorEvents {
    eventfd: EventFd,
}

impl ErrorEvents {
    /// Waits for an error; false if none comes.
    pub fn wait(&self) -> Result<bool> {
        let mut list = [PollFd::new(self.eventfd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut list, PollTimeout::from(EVENT_LIMIT_MS))? == 0 {
            return Ok(false);
        }
        self.eventfd.read()?;
        Ok(true)
    }
}

/// The registers behind a BAR.
///
/// On s390 they are not memory. Mapping them returns addresses for two system calls,
/// which execute the PCI instructions. (CPUs with MIO have such instructions for user
/// space; the calls work everywhere.)
pub struct Bar {
    base: NonNull<std::ffi::c_void>,
    size: usize,
}

impl Bar {
    /// Reads a register of 32 bits, little endian.
    pub fn read(&self, offset: usize) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        self.transfer(SYS_s390_pci_mmio_read, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes such a register.
    pub fn write(&self, offset: usize, value: u32) -> Result<(), Errno> {
        self.transfer(SYS_s390_pci_mmio_write, offset, &mut value.to_le_bytes())
    }

    fn transfer(&self, call: c_long, offset: usize, bytes: &mut [u8; 4]) -> Result<(), Errno> {
        if offset + bytes.len() > self.size {
            return Err(Errno::EINVAL);
        }
        let address = self.base.as_ptr().addr() + offset;
        // SAFETY: the call reads or writes the bytes, and checks the address.
        Errno::result(unsafe { syscall(call, address, bytes.as_mut_ptr(), bytes.len()) })?;
        Ok(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: mapped in `map_bar` with this size; nothing points into it.
        let _ = unsafe { munmap(self.base, self.size) };
    }
}
