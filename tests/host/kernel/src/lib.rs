// SPDX-License-Identifier: GPL-2.0

//! The parts of the kernel crate that the driver's flush protocol needs, built on the
//! model checker's atomics. The driver's own files are compiled against it. Names and
//! memory orderings are those of `rust/kernel`. RCU is a reader-writer lock: a grace
//! period takes it for writing.

#![cfg(loom)]

/// `kernel::prelude`.
pub mod prelude {
    pub use crate::{Error, Flags, KBox, Result, GFP_KERNEL};
}

/// `kernel::error::Error`; never constructed, because allocations do not fail here.
#[derive(Debug)]
pub struct Error;

/// `kernel::error::Result`.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

/// `kernel::alloc::Flags`.
pub struct Flags;

/// `kernel::alloc::flags::GFP_KERNEL`.
pub const GFP_KERNEL: Flags = Flags;

/// `kernel::alloc::KBox`.
pub struct KBox<T>(Box<T>);

impl<T> KBox<T> {
    /// As in the kernel.
    pub fn new(value: T, _: Flags) -> Result<Self> {
        Ok(KBox(Box::new(value)))
    }

    /// As in the kernel.
    pub fn into_raw(this: Self) -> *mut T {
        Box::into_raw(this.0)
    }

    /// # Safety
    ///
    /// `raw` came from [`KBox::into_raw`].
    pub unsafe fn from_raw(raw: *mut T) -> Self {
        // SAFETY: By the safety requirements.
        KBox(unsafe { Box::from_raw(raw) })
    }
}

impl<T> core::ops::Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// `kernel::sync`.
pub mod sync {
    use std::{marker::PhantomData, ops::Deref};

    /// `kernel::sync::Arc`.
    pub struct Arc<T>(std::sync::Arc<T>);

    impl<T> Arc<T> {
        /// Takes no flags, unlike the kernel's.
        pub fn new(value: T) -> Self {
            Arc(std::sync::Arc::new(value))
        }

        /// As in the kernel.
        pub fn into_raw(this: Self) -> *const T {
            std::sync::Arc::into_raw(this.0)
        }

        /// # Safety
        ///
        /// `raw` came from [`Arc::into_raw`].
        pub unsafe fn from_raw(raw: *const T) -> Self {
            // SAFETY: By the safety requirements.
            Arc(unsafe { std::sync::Arc::from_raw(raw) })
        }

        /// As in the kernel.
        pub fn as_arc_borrow(&self) -> ArcBorrow<'_, T> {
            ArcBorrow(std::sync::Arc::as_ptr(&self.0), PhantomData)
        }
    }

    impl<T> Deref for Arc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    /// `kernel::sync::ArcBorrow`.
    pub struct ArcBorrow<'a, T>(*const T, PhantomData<&'a T>);

    impl<T> ArcBorrow<'_, T> {
        /// # Safety
        ///
        /// `raw` came from [`Arc::into_raw`], and a reference to it outlives the result.
        pub unsafe fn from_raw(raw: *const T) -> Self {
            ArcBorrow(raw, PhantomData)
        }
    }

    impl<T> From<ArcBorrow<'_, T>> for Arc<T> {
        fn from(borrow: ArcBorrow<'_, T>) -> Self {
            // SAFETY: The pointer came from `Arc::into_raw`, and the `Arc` is alive.
            unsafe {
                std::sync::Arc::increment_strong_count(borrow.0);
                Arc::from_raw(borrow.0)
            }
        }
    }

    /// `kernel::sync::rcu`.
    pub mod rcu {
        use loom::sync::{RwLock, RwLockReadGuard};

        loom::lazy_static! {
            static ref RCU: RwLock<()> = RwLock::new(());
        }

        /// A read-side critical section.
        pub struct Guard(#[allow(dead_code)] RwLockReadGuard<'static, ()>);

        /// Begins a read-side critical section.
        pub fn read_lock() -> Guard {
            Guard(RCU.read().unwrap())
        }

        /// Waits for the critical sections that began before.
        pub fn synchronize_rcu() {
            drop(RCU.write().unwrap());
        }
    }
}
