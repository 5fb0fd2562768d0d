// SPDX-License-Identifier: GPL-2.0

//! The atomics of the map and unmap paths, and of their refreshes.
//!
//! Rust code in the kernel should use `kernel::sync::atomic`, and the rest of the driver
//! does. On s390 each access through it calls a helper in C: `RUST_INLINE_HELPERS` is
//! only for arm64 and x86-64. The driver's part of a map or an unmap of a page is some 40
//! instructions without a call. The operations here compile to one or two instructions.
//! What they order is what the kernel's memory model orders by operations of the same
//! names; a fence of all is `smp_mb()`. When helpers are inlined on s390, this file
//! becomes a `use` of `kernel::sync::atomic`.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{
    fence,
    AtomicBool,
    AtomicPtr,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
    Ordering, //
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    fence,
    AtomicBool,
    AtomicPtr,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
    Ordering, //
};
