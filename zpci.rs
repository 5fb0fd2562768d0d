// SPDX-License-Identifier: GPL-2.0

//! A zPCI function and the instructions that concern its translation.
//!
//! *Modify PCI Function Controls* registers, re-registers and deregisters a
//! table; *Store PCI Function Controls* says what is registered; *Refresh PCI
//! Translations* makes the machine forget what it knows of a range, and a
//! hypervisor read it anew. Nothing here knows what is in a table.
//!
//! C headers: [`arch/s390/include/asm/pci.h`](srctree/arch/s390/include/asm/pci.h),
//! [`arch/s390/include/asm/pci_insn.h`](srctree/arch/s390/include/asm/pci_insn.h),
//! [`arch/s390/include/asm/pci_dma.h`](srctree/arch/s390/include/asm/pci_dma.h).

use core::{
    arch::asm,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64, //
};

use kernel::{
    bindings,
    device::Device,
    prelude::*,
    time::{
        delay::udelay,
        Delta, //
    },
    types::Opaque, //
};

use crate::{
    aperture::Range,
    dma_table::{Depth, Root}, //
};

/// An I/O translation anchor: the origin of a table, its depth, and that
/// translation is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Iota(u64);

impl Iota {
    /// No translation: an IOVA is a physical address plus `start_dma`.
    pub(crate) const IDENTITY: Iota = Iota(0);

    /// Translation is on (`ZPCI_IOTA_IOT_ENABLED`). The storage key is 0, as
    /// `PAGE_DEFAULT_KEY`.
    const TRANSLATE: u64 = 0x800;

    /// The designation type, as it stands in the anchor.
    const fn kind(depth: Depth) -> u64 {
        depth as u64
    }

    /// The physical address of the table.
    pub(crate) fn origin(self) -> u64 {
        self.0 & !0xfff
    }

    /// Which table it is, if it is one of those that the driver registers.
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

/// Why the machine refused an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The function is gone, or disabled: its handle is not valid (any more).
    Gone,
    /// The function is in the error state, until it is reset or recovered.
    InError,
    /// The hypervisor has not enough resources to keep what is mapped.
    Resources,
    /// Anything else.
    Other,
}

impl Refusal {
    /// Whether the function cannot do any DMA, so that it does not matter what
    /// it would translate with. Whoever brings it back registers its table.
    pub(crate) fn is_harmless(self) -> bool {
        matches!(self, Refusal::Gone | Refusal::InError)
    }

    /// For the log.
    pub(crate) fn as_str(self) -> &'static CStr {
        match self {
            Refusal::Gone => c"it is gone",
            Refusal::InError => c"it is in the error state",
            Refusal::Resources => c"no resources",
            Refusal::Other => c"no reason given",
        }
    }

    /// The condition code that stands behind it.
    pub(crate) fn condition_code(self) -> u8 {
        match self {
            Refusal::Gone => 3,
            Refusal::InError | Refusal::Resources | Refusal::Other => 1,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Gone => ENODEV,
            Refusal::Resources => ENOSPC,
            Refusal::InError | Refusal::Other => EIO,
        }
    }
}

/// A condition code and a status, as an instruction left them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The condition code: 0 done, 1 refused, 3 handle not valid.
    pub(crate) cc: u8,
    /// Why, if the condition code is 1.
    pub(crate) status: u8,
}

impl Outcome {
    /// Done.
    pub(crate) const DONE: Outcome = Outcome { cc: 0, status: 0 };

    /// `ZPCI_CC_BUSY`: to be tried again.
    const BUSY: u8 = 2;
    /// Of *Modify PCI Function Controls*: the function is not enabled
    /// (`ZPCI_PCI_ST_FUNC_NOT_ENABLED`).
    const NOT_ENABLED: u8 = 4;
    /// `ZPCI_PCI_ST_FUNC_IN_ERR`.
    const FUNCTION_IN_ERROR: u8 = 8;
    /// `ZPCI_PCI_ST_BLOCKED`.
    const BLOCKED: u8 = 12;
    /// `ZPCI_PCI_ST_INSUF_RES`.
    pub(crate) const RESOURCES: u8 = 16;
    /// `ZPCI_PCI_ST_FUNC_NOT_AVAIL`.
    const FUNCTION_NOT_AVAILABLE: u8 = 40;

    /// Why it was refused, for the log.
    pub(crate) fn as_str(self) -> &'static CStr {
        match (self.cc, self.status) {
            (3, _) => c"it is gone",
            (1, Self::NOT_ENABLED) => c"it is not enabled",
            (1, Self::FUNCTION_IN_ERROR) => c"it is in the error state",
            (1, Self::BLOCKED) => c"its DMA is blocked after an error",
            (1, Self::RESOURCES) => c"the machine has not enough resources",
            (1, 20 | 28 | 36) => c"the machine does not know the address space",
            (1, Self::FUNCTION_NOT_AVAILABLE) => c"it is not available",
            (1, 24) => c"it is out of sequence: something is registered, or nothing is",
            (1, 44) => c"the machine says that it is in that state already",
            _ => c"no reason given",
        }
    }

    /// As a result.
    pub(crate) fn check(self) -> Result<(), Refusal> {
        match (self.cc, self.status) {
            (0, _) => Ok(()),
            (3, _) | (1, Self::NOT_ENABLED) => Err(Refusal::Gone),
            (1, Self::FUNCTION_IN_ERROR | Self::BLOCKED | Self::FUNCTION_NOT_AVAILABLE) => {
                Err(Refusal::InError)
            }
            _ => Err(Refusal::Other),
        }
    }
}

/// What the machine says of a function's translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Registered {
    /// No table: DMA is blocked.
    Nothing,
    /// This table, or identity.
    This(Iota),
}

/// How often a busy machine is asked again for a function's state, a microsecond
/// apart.
const BUSY_RETRIES: u32 = 1000;

/// The counters that `/sys/kernel/debug/pci/*/statistics` shows.
///
/// C: `struct zpci_iommu_ctrs`, five times `atomic64_t`.
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

/// Function information block: the operand of the two instructions. As the
/// machine reads it, in doublewords.
#[repr(C, align(8))]
struct Fib([u64; 10]);

impl Fib {
    const CONTROLS: usize = 1;
    const BASE: usize = 2;
    const LIMIT: usize = 3;
    const ANCHOR: usize = 4;
    const GISA: usize = 9;

    /// In the function controls: the function is enabled.
    const ENABLED: u64 = 0x80 << 56;
    /// In the function controls: a table or identity is registered.
    const DMA_ENABLED: u64 = 0x10 << 56;
}

/// A function of the s390 PCI subsystem.
///
/// # Invariants
///
/// Points to a `struct zpci_dev` that lives for as long as this value is used:
/// the subsystem calls `zpci_destroy_iommu()` before it frees one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zdev(NonNull<bindings::zpci_dev>);

// SAFETY: What is read here is constant, or a word that is read in one piece;
// what is written has one writer.
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

    /// As C sees it.
    pub(crate) fn as_raw(self) -> *mut bindings::zpci_dev {
        self.0.as_ptr()
    }

    /// The function identifier.
    pub(crate) fn fid(self) -> u32 {
        // SAFETY: By the invariant; constant.
        unsafe { (*self.as_raw()).fid }
    }

    /// The handle by which instructions name the function. It changes when the
    /// function is enabled or disabled.
    pub(crate) fn handle(self) -> u32 {
        // SAFETY: By the invariant; read in one piece.
        unsafe { ptr::read_volatile(&raw const (*self.as_raw()).fh) }
    }

    /// The first and the last IOVA (inclusive) that the machine grants.
    pub(crate) fn dma_range(self) -> (u64, u64) {
        // SAFETY: By the invariant; written by `clamp_dma_range` only, before
        // anybody uses the function.
        unsafe { ((*self.as_raw()).start_dma, (*self.as_raw()).end_dma) }
    }

    /// Makes the range that everybody sees the one that can be used. Once, when
    /// the function is set up.
    pub(crate) fn clamp_dma_range(self, window: Range) {
        // SAFETY: By the invariant; the subsystem has not shown the function to
        // anybody yet.
        unsafe { (*self.as_raw()).end_dma = window.last() }
    }

    /// The deepest table that the function's group takes. Region-third tables
    /// are always taken; the mask numbers designation types from its most
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

    /// Whether the function's group says that it takes tables of a depth.
    pub(crate) fn takes(self, depth: Depth) -> bool {
        // SAFETY: By the invariant; constant.
        let mask = unsafe { (*self.as_raw()).dtsm };
        mask & (0x80 >> Iota::kind(depth)) != 0
    }

    /// Whether entries that turned valid need a refresh.
    pub(crate) fn needs_refresh_to_map(self) -> bool {
        // SAFETY: By the invariant; constant.
        unsafe { (*self.as_raw()).tlb_refresh != 0 }
    }

    /// Whether the function may do DMA without translation. To be asked when the
    /// function is set up: later, C writes other bits of the same word.
    pub(crate) fn may_skip_translation(self) -> bool {
        // SAFETY: By the invariant; nobody writes the word yet.
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

    /// What the driver keeps for the function.
    pub(crate) fn driver_data<T>(self) -> *mut T {
        // SAFETY: By the invariant; read in one piece.
        unsafe { ptr::read_volatile(&raw const (*self.as_raw()).dma_table) }.cast()
    }

    /// Sets what the driver keeps for the function, in a field that is the
    /// driver's.
    pub(crate) fn set_driver_data<T>(self, data: *mut T) {
        // SAFETY: By the invariant; one writer, at set-up and teardown.
        unsafe { ptr::write_volatile(&raw mut (*self.as_raw()).dma_table, data.cast()) }
    }

    /// Records what is attached, where the subsystem looks for it: counters are
    /// read from it under the lock that this takes.
    pub(crate) fn set_domain(self, domain: *mut bindings::iommu_domain) {
        // SAFETY: By the invariant.
        unsafe { zpci_iommu_set_domain(self.as_raw(), domain) }
    }

    /// What was recorded last.
    pub(crate) fn domain(self) -> *mut bindings::iommu_domain {
        // SAFETY: By the invariant; read in one piece.
        unsafe { ptr::read_volatile(&raw const (*self.as_raw()).s390_domain) }
    }

    /// Registers a table for IOVAs in `window`. Nothing may be registered.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn register(self, window: Range, table: Iota) -> Outcome {
        let mut status = 0;
        // SAFETY: By the invariant. The core knows how each function wants it.
        let cc = unsafe {
            bindings::zpci_register_ioat(
                self.as_raw(),
                0,
                window.start(),
                window.last(),
                table.0,
                &mut status,
            )
        };
        Outcome {
            cc: cc as u8,
            status,
        }
    }

    /// Registers a table in place of the one that is registered, without a
    /// moment between.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn reregister(self, window: Range, table: Iota) -> Outcome {
        let mut fib = Fib([0; 10]);
        fib.0[Fib::BASE] = window.start();
        // ISM devices take the limit as exclusive, as `zpci_register_ioat()`
        // knows too.
        fib.0[Fib::LIMIT] = if self.is_ism() && window.last() > window.start() {
            window.last().wrapping_add(crate::dma_table::PAGE_SIZE)
        } else {
            window.last()
        };
        fib.0[Fib::ANCHOR] = table.0;
        fib.0[Fib::GISA] = self.gisa();
        let outcome = self.modify(bindings::ZPCI_MOD_FC_REREG_IOAT, &mut fib);
        self.log_refusal(c"rereg ioat", outcome);
        outcome
    }

    /// The guest that the function's requests are for.
    fn gisa(self) -> u64 {
        // SAFETY: By the invariant; read in one piece.
        u64::from(unsafe { ptr::read_volatile(&raw const (*self.as_raw()).gisa) })
    }

    /// *Modify PCI Function Controls*.
    fn modify(self, operation: u32, fib: &mut Fib) -> Outcome {
        let mut status = 0;
        let fib: *mut Fib = fib;
        // SAFETY: `Fib` has the layout of `struct zpci_fib`.
        let cc = unsafe { bindings::zpci_mod_fc(self.request(operation), fib.cast(), &mut status) };
        Outcome { cc, status }
    }

    /// Takes the table away: DMA is blocked.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn deregister(self) -> Outcome {
        let mut fib = Fib([0; 10]);
        fib.0[Fib::GISA] = self.gisa();
        let outcome = self.modify(bindings::ZPCI_MOD_FC_DEREG_IOAT, &mut fib);
        self.log_refusal(c"unreg ioat", outcome);
        outcome
    }

    /// Asks the machine what is registered.
    ///
    /// # Errors
    ///
    /// [`Refusal::Gone`] mostly: a function in the error state answers.
    pub(crate) fn registered(self) -> Result<Registered, Refusal> {
        let fib = self.store_controls()?;
        let controls = fib.0[Fib::CONTROLS];
        Ok(
            if controls & Fib::ENABLED == 0 || controls & Fib::DMA_ENABLED == 0 {
                Registered::Nothing
            } else {
                Registered::This(Iota(fib.0[Fib::ANCHOR]))
            },
        )
    }

    /// *Store PCI Function Controls*. A machine that is busy is asked again for a
    /// while.
    fn store_controls(self) -> Result<Fib, Refusal> {
        for _ in 0..BUSY_RETRIES {
            let mut fib = Fib([0; 10]);
            let mut request = self.request(0);
            let cc: u64;
            // SAFETY: The instruction writes a function information block to
            // the address, which is that of a local of this size.
            unsafe {
                asm!(
                    ".insn rxy,0xe300000000d4,{request},0({fib})",
                    "ipm {cc}",
                    "srl {cc},28",
                    request = inout(reg) request,
                    fib = in(reg_addr) &raw mut fib,
                    cc = out(reg) cc,
                    options(nostack),
                );
            }
            let outcome = Outcome {
                // `ipm` leaves the upper half of the register alone.
                cc: (cc as u32) as u8,
                status: (request >> 24) as u8,
            };
            if outcome.cc != Outcome::BUSY {
                return outcome.check().map(|()| fib);
            }
            udelay(Delta::from_micros(1));
        }
        Err(Refusal::Other)
    }

    /// Makes the machine forget a range, which must lie in the registered
    /// window, and a hypervisor read it anew.
    ///
    /// # Context
    ///
    /// Any.
    pub(crate) fn refresh(self, range: Range) -> Result<(), Refusal> {
        if range == Range::ALL {
            // More than the instruction can be given.
            let [low, high] = Range::HALVES;
            return self.refresh(low).and_then(|()| self.refresh(high));
        }
        let function = u64::from(self.handle()) << 32;
        // SAFETY: No requirements.
        match unsafe { bindings::zpci_refresh_trans(function, range.start(), range.size()) } {
            0 => Ok(()),
            error if error == ENOMEM.to_errno() => Err(Refusal::Resources),
            error if error == ENODEV.to_errno() => Err(Refusal::Gone),
            error if error == -(bindings::ESHUTDOWN as c_int) => Err(Refusal::InError),
            _ => Err(Refusal::Other),
        }
    }

    /// Logs that the machine refused something that it must not refuse, if `limit`
    /// allows it now.
    pub(crate) fn log(self, limit: &LogLimit, text: &'static CStr, why: &'static CStr) {
        let (text, why) = (text.as_char_ptr(), why.as_char_ptr());
        // SAFETY: By the invariant; the limit is initialised, the texts are terminated.
        unsafe { zpci_iommu_err(self.as_raw(), limit.state.get(), text, why) }
    }

    fn request(self, operation: u32) -> u64 {
        u64::from(self.handle()) << 32 | u64::from(operation)
    }

    fn log_refusal(self, what: &'static CStr, outcome: Outcome) {
        if outcome.cc != 0 {
            let (cc, status) = (outcome.cc.into(), outcome.status.into());
            // SAFETY: By the invariant; the text is terminated.
            unsafe { zpci_iommu_log_refusal(self.as_raw(), what.as_char_ptr(), cc, status) }
        }
    }
}

/// How often the refusals of one function are logged: no other function's hide them.
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
            // SAFETY: The slot is large enough, and stays where it is.
            state <- Opaque::ffi_init(|slot| unsafe { zpci_iommu_log_limit_init(slot) }),
        })
    }
}

/// Bytes that one function may map at most, as the `s390_iommu_aperture=` boot
/// parameter says: a multiple of the memory size, or all.
pub(crate) fn aperture_limit() -> u64 {
    // SAFETY: No requirements.
    unsafe { zpci_iommu_aperture() }
}

/// Whether the machine takes large pages of 1 MiB: KVM and QEMU do; of others it is
/// not known.
pub(crate) fn machine_takes_large_pages() -> bool {
    // SAFETY: No requirements.
    unsafe { zpci_iommu_machine_takes_large_pages() }
}

/// What the subsystem calls.
///
/// C: `struct zpci_iommu_ops` in `integration/zpci_iommu.h`.
#[repr(C)]
pub(crate) struct SubsystemOps {
    /// The module that holds the operations; kept while the driver has functions.
    pub(crate) owner: *mut bindings::module,
    /// A function appears. It is not shown to anybody before this succeeded.
    pub(crate) init: unsafe extern "C" fn(*mut bindings::zpci_dev) -> c_int,
    /// A function goes. Nothing uses it any more.
    pub(crate) destroy: unsafe extern "C" fn(*mut bindings::zpci_dev),
    /// A function was disabled: what was registered is lost.
    pub(crate) disabled: unsafe extern "C" fn(*mut bindings::zpci_dev),
    /// A function was enabled: registers what is attached. Returns a condition
    /// code.
    pub(crate) register_ioat: unsafe extern "C" fn(*mut bindings::zpci_dev, *mut u8) -> c_int,
    /// A function is about to leave the error state without a reset.
    pub(crate) resume: unsafe extern "C" fn(*mut bindings::zpci_dev) -> c_int,
    /// The counters of what is attached, or null. Called under the lock that
    /// guards it.
    pub(crate) counters: unsafe extern "C" fn(*mut bindings::zpci_dev) -> *mut Counters,
    /// The last user of a domain is gone.
    pub(crate) free_domain: unsafe extern "C" fn(*mut bindings::iommu_domain),
}

// SAFETY: Never written; the functions may be called from any thread.
unsafe impl Sync for SubsystemOps {}
// SAFETY: As above.
unsafe impl Send for SubsystemOps {}

/// The registration with the subsystem: the driver has functions while it lives.
pub(crate) struct Service(&'static SubsystemOps);

impl Service {
    /// Registers the operations.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the machine has no zPCI or it is off, `EBUSY` if there is
    /// another driver.
    pub(crate) fn register(ops: &'static SubsystemOps) -> Result<Self> {
        // SAFETY: `ops` has the layout of the C structure and is static.
        kernel::error::to_result(unsafe { zpci_iommu_driver_register(ops) })?;
        Ok(Service(ops))
    }

    /// Has the subsystem look for the functions that it refused so far. Those
    /// that it finds hold the driver's module, so the driver must not fail any
    /// more when this has succeeded.
    ///
    /// # Errors
    ///
    /// What the search says; the driver has no function then.
    pub(crate) fn start(&self) -> Result {
        // SAFETY: The operations are registered.
        kernel::error::to_result(unsafe { zpci_iommu_driver_start() })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // SAFETY: The operations were registered. The driver has no function: it would hold
        // the module.
        unsafe { zpci_iommu_driver_unregister(self.0) }
    }
}

/// Says that there is a domain more, which may outlive all functions. Its `free`
/// operation has to be [`zpci_iommu_domain_free`].
pub(crate) fn domain_made() {
    // SAFETY: No requirements.
    unsafe { zpci_iommu_domain_made() }
}

// Without lock debugging a part of these structures is empty, which C accepts.
#[allow(improper_ctypes)]
extern "C" {
    // integration/zpci_iommu.c
    fn zpci_iommu_driver_register(ops: *const SubsystemOps) -> c_int;
    fn zpci_iommu_driver_start() -> c_int;
    fn zpci_iommu_driver_unregister(ops: *const SubsystemOps);
    fn zpci_iommu_domain_made();
    /// Frees a domain through the subsystem's operations.
    pub(crate) fn zpci_iommu_domain_free(domain: *mut bindings::iommu_domain);
    fn zpci_iommu_set_domain(zdev: *mut bindings::zpci_dev, domain: *mut bindings::iommu_domain);
    fn zpci_iommu_aperture() -> u64;
    fn zpci_iommu_machine_takes_large_pages() -> bool;
    fn zpci_iommu_log_refusal(
        zdev: *mut bindings::zpci_dev,
        what: *const c_char,
        cc: c_int,
        status: c_int,
    );
    fn zpci_iommu_log_limit_init(limit: *mut bindings::ratelimit_state);
    fn zpci_iommu_err(
        zdev: *mut bindings::zpci_dev,
        limit: *mut bindings::ratelimit_state,
        text: *const c_char,
        why: *const c_char,
    );
}
