// SPDX-License-Identifier: GPL-2.0

//! What the s390 PCI subsystem calls: a function appears, goes, is disabled,
//! enabled, recovers; its counters are read.
//!
//! Until a function's `init` has succeeded nobody else sees it, and nothing is
//! called for it after `destroy`.
//!
//! C header: `integration/zpci_iommu.h`.

use core::ptr::{self, NonNull};

use kernel::{
    bindings,
    prelude::*, //
};

use crate::{
    config,
    debugfs::Entry,
    domain::Domain,
    function::Function,
    iommu::{
        Ops,
        Registration, //
    },
    seen,
    zpci::{Counters, SubsystemOps, Zdev},
    S390Iommu,
    BLOCKED, //
};

/// The table of what is called.
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

/// What the driver keeps for a function: the function, and that the core knows
/// its IOMMU. Fields are dropped in this order.
#[pin_data]
struct Served {
    registration: Option<Registration>,
    /// Its file in debugfs.
    shown: Option<Entry<()>>,
    #[pin]
    function: Function,
}

/// The function behind a [`Zdev`], if it is served.
pub(crate) fn served(zdev: Zdev) -> Option<&'static Function> {
    // SAFETY: Set by `init` and cleared by `destroy`, before and after all that
    // could ask.
    let served = unsafe { zdev.driver_data::<Served>().as_ref() };
    served.map(|served| &served.function)
}

/// Serves a function from now on.
fn serve(zdev: Zdev) -> Result {
    let config = config()?;
    let function =
        Function::new(zdev, |depth| config.empty(depth), config.limit).inspect_err(|_| {
            let (start, end) = zdev.dma_range();
            pr_err!(
                "function {:#010x}: no usable IOVAs in {:#x} to {:#x}\n",
                zdev.fid(),
                start,
                end
            );
        })?;
    let served = KBox::pin_init(
        try_pin_init!(Served {
            registration: None,
            shown: None,
            function <- function,
        }? Error),
        GFP_KERNEL,
    )?;
    // SAFETY: Stays pinned: only `destroy` and the failure below touch the box.
    let served = KBox::into_raw(unsafe { Pin::into_inner_unchecked(served) });
    zdev.set_domain(BLOCKED.as_raw());
    zdev.set_driver_data(served);
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
                (*served).registration = Some(registration);
                (*served).shown = seen::show_function(&(*served).function);
            }
            Ok(())
        }
        Err(error) => {
            end(zdev, served);
            Err(error)
        }
    }
}

/// Serves a function no longer.
fn end(zdev: Zdev, served: *mut Served) {
    // SAFETY: `served` came from `serve`, and is used for the last time. The
    // core forgets the IOMMU before the function goes.
    let mut served = unsafe { KBox::from_raw(served) };
    served.registration = None;
    served.shown = None;
    served.function.retire();
    zdev.set_driver_data(ptr::null_mut::<Served>());
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
    kernel::error::from_result(|| serve(zdev.ok_or(EINVAL)?).map(|()| 0))
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.destroy`.
unsafe extern "C" fn destroy(zdev: *mut bindings::zpci_dev) {
    // SAFETY: The subsystem's promise.
    if let Some(zdev) = unsafe { zdev_from(zdev) } {
        let served = zdev.driver_data::<Served>();
        if !served.is_null() {
            end(zdev, served);
        }
    }
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.disabled`.
unsafe extern "C" fn disabled(zdev: *mut bindings::zpci_dev) {
    // SAFETY: The subsystem's promise.
    if let Some(function) = unsafe { zdev_from(zdev) }.and_then(served) {
        function.disabled();
    }
}

/// # Safety
///
/// The subsystem calls it, as `zpci_iommu_ops.register_ioat`.
unsafe extern "C" fn register_ioat(zdev: *mut bindings::zpci_dev, status: *mut u8) -> c_int {
    // SAFETY: The subsystem's promise.
    let Some(function) = unsafe { zdev_from(zdev) }.and_then(served) else {
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
    match unsafe { zdev_from(zdev) }.and_then(served) {
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
    // SAFETY: What is recorded lives until something else was recorded, under
    // the lock that the subsystem holds now.
    match unsafe { NonNull::new(zdev.domain()).and_then(|raw| Domain::try_from_raw(raw.as_ptr())) }
    {
        Some(domain) => ptr::from_ref(domain.space().counters()).cast_mut(),
        None => ptr::null_mut(),
    }
}
