// SPDX-License-Identifier: GPL-2.0

//! A spin lock that is taken in any context: it keeps interrupts off while it
//! is held, and restores them.
//!
//! C: `spin_lock_irqsave()`. The kernel crate has no such lock in all versions
//! that this driver supports.

use kernel::{
    bindings,
    prelude::*,
    sync::lock::{
        Backend,
        Lock, //
    }, //
};

/// A lock around a `T`.
pub(crate) type IrqLock<T> = Lock<T, IrqSave>;

/// How it is locked; the guard keeps the interrupt state.
pub(crate) struct IrqSave;

// SAFETY: `spinlock_t` excludes others, and with interrupts off the processor
// that holds it cannot be interrupted by somebody who wants it.
unsafe impl Backend for IrqSave {
    type State = bindings::spinlock_t;
    type GuardState = c_ulong;

    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: The caller's promise.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    unsafe fn lock(ptr: *mut Self::State) -> c_ulong {
        // SAFETY: The caller's promise.
        unsafe { zpci_iommu_lock_irqsave(ptr) }
    }

    unsafe fn try_lock(ptr: *mut Self::State) -> Option<c_ulong> {
        let mut flags = 0;
        // SAFETY: The caller's promise; `flags` is a place for the state.
        unsafe { zpci_iommu_trylock_irqsave(ptr, &mut flags) }.then_some(flags)
    }

    unsafe fn unlock(ptr: *mut Self::State, flags: &c_ulong) {
        // SAFETY: The caller's promise.
        unsafe { zpci_iommu_unlock_irqrestore(ptr, *flags) }
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The caller's promise.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}

// Without lock debugging a part of the structure is empty, which C accepts.
#[allow(improper_ctypes)]
extern "C" {
    // integration/zpci_iommu.c
    fn zpci_iommu_lock_irqsave(lock: *mut bindings::spinlock_t) -> c_ulong;
    fn zpci_iommu_trylock_irqsave(lock: *mut bindings::spinlock_t, flags: &mut c_ulong) -> bool;
    fn zpci_iommu_unlock_irqrestore(lock: *mut bindings::spinlock_t, flags: c_ulong);
}
