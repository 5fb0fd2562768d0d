// SPDX-License-Identifier: GPL-2.0

//! The calls of the s390 PCI subsystem: a function appears, goes away, is disabled,
//! is enabled, or recovers; its counters are read.
//!
//! Nobody else uses a function before its `init` has succeeded, and the subsystem makes no
//! call for it after `destroy`.
//!
//! C header: `integration/zpci_iommu.h`.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    bindings,
    device::Device,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

use crate::{
    config,
    debugfs,
    domain::Domain,
    function::Function,
    iommu::{
        Ops,
        Registration, //
    },
    seq_file::Entry,
    zpci::{
        Counters,
        Zdev, //
    },
    S390Iommu,
    BLOCKED, //
};

/// The operations that the subsystem calls.
///
/// C: `struct zpci_iommu_ops` in `integration/zpci_iommu.h`.
#[repr(C)]
pub(crate) struct SubsystemOps {
    /// The module with the operations; it stays loaded while the driver has functions.
    pub(crate) owner: *mut bindings::module,
    /// A function appears. Nobody else uses it before this has succeeded.
    pub(crate) init: unsafe extern "C" fn(*mut bindings::zpci_dev) -> c_int,
    /// A function goes away. Nobody uses it any more.
    pub(crate) destroy: unsafe extern "C" fn(*mut bindings::zpci_dev),
    /// A function was disabled: its registration is lost.
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

    /// Makes the subsystem search for the functions that it refused so far. The functions
    /// that it finds hold the driver's module, so the start of the driver must not fail
    /// after this has succeeded.
    ///
    /// # Errors
    ///
    /// The error of the search; the driver then has no function.
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

/// Counts a new domain, which may outlive all functions. Its `free` operation must be
/// [`zpci_iommu_domain_free`].
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
}

/// The table of the operations.
pub(crate) const fn ops(owner: &ThisModule) -> SubsystemOps {
    SubsystemOps {
        owner: owner.as_ptr(),
        init,
        destroy,
        disabled,
        register_ioat,
        resume,
        counters,
        free_domain: Ops::<S390Iommu>::free,
    }
}

/// The driver data of a function: the function, and the registration of its IOMMU with
/// the core. Fields are dropped in this order.
struct DriverData {
    registration: Option<Registration>,
    /// Its file in debugfs.
    shown: Option<Entry<()>>,
    function: Arc<Function>,
}

/// The function behind a device, if the driver has it. A device holds a reference to its
/// [`Zdev`], which the driver keeps until the last reference is gone.
pub(crate) fn function_of(dev: &Device) -> Option<ArcBorrow<'_, Function>> {
    // SAFETY: The device outlives the result.
    unsafe { find(Zdev::of(dev)?) }
}

/// The function behind a [`Zdev`], if the driver has it.
///
/// # Safety
///
/// `destroy` is not called for it before `'a` ends.
unsafe fn find<'a>(zdev: Zdev) -> Option<ArcBorrow<'a, Function>> {
    let data = NonNull::new(zdev.driver_data::<DriverData>())?;
    // SAFETY: `init` set it before anybody else could use the function; `destroy` is not
    // called. This field is constant, others may still be written.
    Some(unsafe { &(*data.as_ptr()).function }.as_arc_borrow())
}

/// Sets up a function.
fn add(zdev: Zdev) -> Result {
    let config = config()?;
    let function = Function::new(zdev, &BLOCKED, |depth| config.empty(depth), config.limit);
    let Ok(function) = function else {
        // The function exists but does no DMA: its device gets no IOMMU.
        let (start, end) = zdev.dma_range();
        pr_warn!(
            "function {:08x}: no usable IOVAs in {:#x} to {:#x}\n",
            zdev.fid(),
            start,
            end
        );
        zdev.set_domain(BLOCKED.as_raw());
        return Ok(());
    };
    let function = Arc::pin_init(function, GFP_KERNEL)?;
    let data = DriverData {
        registration: None,
        shown: None,
        function: function.clone(),
    };
    let data = KBox::into_raw(KBox::new(data, GFP_KERNEL)?);
    zdev.set_domain(BLOCKED.as_raw());
    zdev.set_driver_data(data);
    // From here on the core may probe devices.
    // SAFETY: The IOMMU is a part of the function, which outlives its driver
    // data. The format has one conversion.
    let registration = unsafe {
        Registration::new(
            zdev.iommu(),
            &config.iommu_ops,
            c"s390-iommu.%08x",
            zdev.fid(),
        )
    };
    match registration {
        Ok(registration) => {
            // SAFETY: Nobody else uses these fields; the file goes before the
            // function, see `end`.
            unsafe {
                (*data).registration = Some(registration);
                (*data).shown = debugfs::show_function(&function);
            }
            Ok(())
        }
        Err(error) => {
            remove(zdev, data);
            Err(error)
        }
    }
}

/// Tears down a function.
fn remove(zdev: Zdev, data: *mut DriverData) {
    // SAFETY: `data` came from `add`, and is used for the last time. The core forgets the
    // IOMMU before the function is freed.
    let mut data = unsafe { KBox::from_raw(data) };
    data.registration = None;
    data.shown = None;
    data.function.remove();
    zdev.set_driver_data(ptr::null_mut::<DriverData>());
}

/// # Safety
///
/// `zdev` is valid until `destroy` was called for it, if this succeeds.
unsafe fn zdev_from(zdev: *mut bindings::zpci_dev) -> Option<Zdev> {
    // SAFETY: The caller's promise.
    NonNull::new(zdev).map(|zdev| unsafe { Zdev::from_raw(zdev) })
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.init`.
unsafe extern "C" fn init(zdev: *mut bindings::zpci_dev) -> c_int {
    // SAFETY: The subsystem's promise.
    let zdev = unsafe { zdev_from(zdev) };
    kernel::error::from_result(|| add(zdev.ok_or(EINVAL)?).map(|()| 0))
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.destroy`.
unsafe extern "C" fn destroy(zdev: *mut bindings::zpci_dev) {
    // SAFETY: The subsystem's promise.
    if let Some(zdev) = unsafe { zdev_from(zdev) } {
        let data = zdev.driver_data::<DriverData>();
        if !data.is_null() {
            remove(zdev, data);
        }
    }
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.disabled`.
unsafe extern "C" fn disabled(zdev: *mut bindings::zpci_dev) {
    // SAFETY: The subsystem's promise.
    if let Some(function) = unsafe { zdev_from(zdev).and_then(|zdev| find(zdev)) } {
        function.disabled();
    }
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.register_ioat`.
unsafe extern "C" fn register_ioat(zdev: *mut bindings::zpci_dev, status: *mut u8) -> c_int {
    // SAFETY: The subsystem's promise.
    let Some(function) = (unsafe { zdev_from(zdev).and_then(|zdev| find(zdev)) }) else {
        return 0;
    };
    let outcome = function.register_recorded();
    // SAFETY: The subsystem passes a place for the status.
    unsafe { *status = outcome.status };
    outcome.cc.into()
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.resume`.
unsafe extern "C" fn resume(zdev: *mut bindings::zpci_dev) -> c_int {
    // SAFETY: The subsystem's promise.
    match unsafe { zdev_from(zdev).and_then(|zdev| find(zdev)) } {
        Some(function) => kernel::error::from_result(|| function.resume().map(|()| 0)),
        None => 0,
    }
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.counters`.
unsafe extern "C" fn counters(zdev: *mut bindings::zpci_dev) -> *mut Counters {
    // SAFETY: The subsystem's promise.
    let Some(zdev) = (unsafe { zdev_from(zdev) }) else {
        return ptr::null_mut();
    };
    // SAFETY: A recorded domain lives until another one is recorded, under the lock that
    // the subsystem holds now.
    match unsafe { NonNull::new(zdev.domain()).and_then(|raw| Domain::try_from_raw(raw.as_ptr())) }
    {
        Some(domain) => ptr::from_ref(domain.space().counters()).cast_mut(),
        None => ptr::null_mut(),
    }
}
