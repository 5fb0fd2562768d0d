// SPDX-License-Identifier: GPL-2.0

//! A zPCI function of `arch/s390/pci`, and the driver's calls to that subsystem. The
//! instructions are in `zpci/insn.rs`.
//!
//! C headers: [`arch/s390/include/asm/pci.h`](srctree/arch/s390/include/asm/pci.h),
//! `integration/zpci_iommu.h`.

use core::{
    mem::offset_of,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    bindings,
    device::Device,
    prelude::*,
    sync::atomic::{
        atomic_load,
        atomic_store,
        Relaxed, //
    },
    types::Opaque, //
};

use crate::{
    atomic::{
        AtomicU32,
        AtomicU64,
        Ordering, //
    },
    dma_table::{
        Depth,
        Root, //
    },
    range::Range, //
};

mod insn;

pub(crate) use insn::{
    Outcome,
    Refusal,
    Registered, //
};

/// An I/O translation anchor: the origin of a table, its depth, and whether translation
/// is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Iota(u64);

impl Iota {
    /// No translation: an IOVA is a physical address plus `start_dma`.
    pub(crate) const IDENTITY: Iota = Iota(0);

    /// Translation is on. The storage key is 0, as `PAGE_DEFAULT_KEY`.
    const TRANSLATE: u64 = bindings::ZPCI_IOTA_IOT_ENABLED as u64;

    /// The designation type, as in the anchor.
    const fn kind(depth: Depth) -> u64 {
        depth as u64
    }

    /// The physical address of the table.
    pub(crate) fn origin(self) -> u64 {
        self.0 & !0xfff
    }

    /// The table, if it is of a type that the driver registers.
    pub(crate) fn depth(self) -> Option<Depth> {
        let kind = self.0 >> 2 & 3;
        [Depth::Third, Depth::Second, Depth::First]
            .into_iter()
            .find(|depth| Self::kind(*depth) == kind)
    }
}

impl From<Root> for Iota {
    fn from(root: Root) -> Self {
        Iota(root.origin.0 | Self::TRANSLATE | Self::kind(root.depth) << 2)
    }
}

/// The counters that `/sys/kernel/debug/pci/*/statistics` shows.
///
/// C: `struct zpci_iommu_ctrs`, five `atomic64_t`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Counters {
    /// Pages of 4 KiB that were mapped; a large page counts as 256.
    pub(crate) mapped_pages: AtomicU64,
    /// Pages of 4 KiB that were unmapped.
    pub(crate) unmapped_pages: AtomicU64,
    /// Refreshes by full flushes.
    pub(crate) global_rpcits: AtomicU64,
    /// Refreshes that made new mappings visible.
    pub(crate) sync_map_rpcits: AtomicU64,
    /// Refreshes that ended mappings.
    pub(crate) sync_rpcits: AtomicU64,
}

static_assert!(size_of::<Counters>() == size_of::<bindings::zpci_iommu_ctrs>());
static_assert!(
    offset_of!(Counters, sync_rpcits) == offset_of!(bindings::zpci_iommu_ctrs, sync_rpcits)
);

/// A function of the s390 PCI subsystem.
///
/// # Invariants
///
/// Points to a `struct zpci_dev` that lives for as long as this value is used:
/// the subsystem calls `zpci_destroy_iommu()` before it frees one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zdev(NonNull<bindings::zpci_dev>);

// SAFETY: All reads are of constants, or of a word with a single access. Each written
// field has one writer.
unsafe impl Send for Zdev {}
// SAFETY: As above.
unsafe impl Sync for Zdev {}

impl Zdev {
    /// # Safety
    ///
    /// `raw` is a function that the subsystem keeps until it has called
    /// `zpci_destroy_iommu()` for it.
    pub(crate) unsafe fn from_raw(raw: NonNull<bindings::zpci_dev>) -> Self {
        // INVARIANT: The caller's promise.
        Zdev(raw)
    }

    /// The function behind a device, if it is one.
    pub(crate) fn of(dev: &Device) -> Option<Self> {
        // `Device` is transparent over the C structure.
        let dev: *mut bindings::device = ptr::from_ref(dev).cast_mut().cast();
        // SAFETY: `dev` is valid; the bus is constant. A PCI device's `sysdata`
        // is a `struct zpci_bus` on this architecture, and it has an entry for
        // every device number.
        let zdev = unsafe {
            if (*dev).bus != &raw const bindings::pci_bus_type {
                return None;
            }
            let pdev = kernel::container_of!(dev, bindings::pci_dev, dev);
            let zbus: *const bindings::zpci_bus = (*pdev).sysdata.cast();
            (*zbus).function[(*pdev).devfn as usize & 0xff]
        };
        // INVARIANT: A device holds a reference to its function.
        NonNull::new(zdev).map(Zdev)
    }

    /// The pointer for C.
    pub(crate) fn as_raw(self) -> *mut bindings::zpci_dev {
        self.0.as_ptr()
    }

    /// The function identifier.
    pub(crate) fn fid(self) -> u32 {
        // SAFETY: By the invariant; constant.
        unsafe { (*self.as_raw()).fid }
    }

    /// The handle of the function for instructions. It changes when the function is enabled
    /// or disabled.
    pub(crate) fn handle(self) -> u32 {
        // SAFETY: By the invariant; C writes it in one piece.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.as_raw()).fh) }.load(Ordering::Relaxed)
    }

    /// The first and the last IOVA (inclusive) that the machine grants.
    pub(crate) fn dma_range(self) -> (u64, u64) {
        // SAFETY: By the invariant; written by `clamp_dma_range` only, before
        // anybody uses the function.
        unsafe { ((*self.as_raw()).start_dma, (*self.as_raw()).end_dma) }
    }

    /// Limits the range that the rest of the kernel uses to `window`. Once, when the
    /// function is set up.
    pub(crate) fn clamp_dma_range(self, window: Range) {
        // SAFETY: By the invariant; the subsystem has not shown the function to
        // anybody yet.
        unsafe { (*self.as_raw()).end_dma = window.last() }
    }

    /// The deepest table that the function's group supports. Region-third tables are always
    /// supported. The bits of the mask stand for designation types, from the most
    /// significant bit on.
    pub(crate) fn deepest(self) -> Depth {
        if self.takes(Depth::First) {
            Depth::First
        } else if self.takes(Depth::Second) {
            Depth::Second
        } else {
            Depth::Third
        }
    }

    /// Whether the function's group supports tables of a depth.
    pub(crate) fn takes(self, depth: Depth) -> bool {
        // SAFETY: By the invariant; constant.
        let mask = unsafe { (*self.as_raw()).dtsm };
        mask & (0x80 >> Iota::kind(depth)) != 0
    }

    /// Whether entries that become valid need a refresh.
    pub(crate) fn needs_refresh_to_map(self) -> bool {
        // SAFETY: By the invariant; constant.
        unsafe { (*self.as_raw()).tlb_refresh != 0 }
    }

    /// Whether the function may do DMA without translation.
    pub(crate) fn may_skip_translation(self) -> bool {
        // SAFETY: By the invariant. The bit is constant; C writes others of the
        // same word, so there is no reference to it.
        unsafe { bindings::zpci_dev::rtr_avail_raw(self.as_raw()) != 0 }
    }

    /// Whether this is an ISM device.
    pub(crate) fn is_ism(self) -> bool {
        // SAFETY: By the invariant; constant.
        u32::from(unsafe { (*self.as_raw()).pft }) == bindings::PCI_FUNC_TYPE_ISM
    }

    /// The IOMMU of the function; part of it.
    pub(crate) fn iommu(self) -> NonNull<bindings::iommu_device> {
        // SAFETY: By the invariant; the field's address is not null.
        unsafe { NonNull::new_unchecked(&raw mut (*self.as_raw()).iommu_dev) }
    }

    /// The driver data of the function.
    pub(crate) fn driver_data<T>(self) -> *mut T {
        // SAFETY: By the invariant; read in one piece.
        unsafe { atomic_load(&raw mut (*self.as_raw()).dma_table, Relaxed) }.cast()
    }

    /// Sets the driver data of the function.
    pub(crate) fn set_driver_data<T>(self, data: *mut T) {
        // SAFETY: By the invariant; one writer, at set-up and teardown.
        unsafe { atomic_store(&raw mut (*self.as_raw()).dma_table, data.cast(), Relaxed) }
    }

    /// Records what is attached, for the subsystem, which reads the counters of this domain
    /// under the lock that this takes.
    pub(crate) fn set_domain(self, domain: *mut bindings::iommu_domain) {
        // SAFETY: By the invariant.
        unsafe { zpci_iommu_set_domain(self.as_raw(), domain) }
    }

    /// The domain recorded last.
    pub(crate) fn domain(self) -> *mut bindings::iommu_domain {
        // SAFETY: By the invariant; read in one piece.
        unsafe { atomic_load(&raw mut (*self.as_raw()).s390_domain, Relaxed) }
    }

    /// Logs a refusal that the driver cannot make up for, if `limit` allows it now.
    pub(crate) fn log(self, limit: &LogLimit, text: &'static CStr, why: &'static CStr) {
        let (text, why) = (text.as_char_ptr(), why.as_char_ptr());
        // SAFETY: By the invariant; the limit is initialised, the texts are terminated.
        unsafe { zpci_iommu_err(self.as_raw(), limit.state.get(), text, why) }
    }
}

/// The rate limit for the log lines of one function, so that no other function hides them.
///
/// C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)
#[pin_data]
pub(crate) struct LogLimit {
    #[pin]
    state: Opaque<bindings::ratelimit_state>,
}

// SAFETY: A lock in it protects it.
unsafe impl Send for LogLimit {}
// SAFETY: A lock in it protects it.
unsafe impl Sync for LogLimit {}

impl LogLimit {
    /// The kernel's usual limit.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The slot is large enough and is pinned.
            state <- Opaque::ffi_init(|slot| unsafe { zpci_iommu_log_limit_init(slot) }),
        })
    }
}

/// The most bytes that one function may map, by the boot parameter `s390_iommu_aperture=`:
/// a multiple of the memory size, or all.
pub(crate) fn aperture_limit() -> u64 {
    // SAFETY: No requirements.
    unsafe { zpci_iommu_aperture() }
}

/// Whether the machine supports large pages of 1 MiB. KVM and QEMU do; for others this is
/// not known.
pub(crate) fn machine_takes_large_pages() -> bool {
    // SAFETY: No requirements.
    unsafe { zpci_iommu_machine_takes_large_pages() }
}

// Without lock debugging a part of these structures is empty, which C accepts.
#[allow(improper_ctypes)]
extern "C" {
    // integration/zpci_iommu.c
    fn zpci_iommu_set_domain(zdev: *mut bindings::zpci_dev, domain: *mut bindings::iommu_domain);
    fn zpci_iommu_aperture() -> u64;
    fn zpci_iommu_machine_takes_large_pages() -> bool;
    fn zpci_iommu_log_limit_init(limit: *mut bindings::ratelimit_state);
    fn zpci_iommu_err(
        zdev: *mut bindings::zpci_dev,
        limit: *mut bindings::ratelimit_state,
        text: *const c_char,
        why: *const c_char,
    );
}
