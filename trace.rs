// SPDX-License-Identifier: GPL-2.0

//! Tracepoints of the driver, group `s390_iommu`.
//!
//! The events are defined in `integration/zpci_iommu_trace.h`, in the built-in part of the
//! driver, so they can be enabled before a driver that is a module is loaded.
//! `kernel::tracepoint::declare_trace!` finds only tracepoints in the bindings of the
//! kernel crate, which these are not. What follows does the same for them: a static
//! branch, and a call if the event is enabled. Arguments are read only then.
//!
//! C header: `integration/zpci_iommu_trace.h`.

use kernel::prelude::*;

use crate::{
    range::Range,
    zpci::Zdev, //
};

/// What is attached, in an event: the number of a domain, or one of these.
pub(crate) mod attached {
    /// No DMA. (Domains are counted from 1.)
    pub(crate) const BLOCKED: u64 = 0;
    /// No translation.
    pub(crate) const IDENTITY: u64 = u64::MAX;
}

macro_rules! points {
    ($(
        $(#[$doc:meta])*
        $name:ident as $point:ident, $call:ident ($($arg:ident: $ty:ty),*);
    )*) => {
        extern "C" {$(
            #[cfg(CONFIG_TRACEPOINTS)]
            static $point: kernel::bindings::tracepoint;
            #[cfg(CONFIG_TRACEPOINTS)]
            fn $call($($arg: $ty),*);
        )*}

        $(
            $(#[$doc])*
            #[inline(always)]
            #[cfg_attr(not(CONFIG_TRACEPOINTS), allow(unused_variables))]
            fn $name(arguments: impl FnOnce() -> ($($ty),*)) {
                #[cfg(CONFIG_TRACEPOINTS)]
                // SAFETY: The key belongs to a tracepoint that C defines, and this is the
                // call for it, which takes plain values.
                unsafe {
                    if kernel::jump_label::static_branch_unlikely!(
                        $point,
                        kernel::bindings::tracepoint,
                        key
                    ) {
                        let ($($arg),*) = arguments();
                        $call($($arg),*);
                    }
                }
            }
        )*
    };
}

points! {
    point_attach as __tracepoint_s390_iommu_attach, rust_do_trace_s390_iommu_attach
        (fid: u32, from: u64, to: u64, result: c_int);
    point_widen as __tracepoint_s390_iommu_widen, rust_do_trace_s390_iommu_widen
        (domain: u64, from: u32, to: u32, result: c_int);
    point_refresh as __tracepoint_s390_iommu_refresh, rust_do_trace_s390_iommu_refresh
        (fid: u32, start: u64, last: u64, cc: u32, retries: u32);
    point_table_alloc as __tracepoint_s390_iommu_table_alloc,
        rust_do_trace_s390_iommu_table_alloc
        (domain: u64, table: u64, bytes: u32);
    point_table_free as __tracepoint_s390_iommu_table_free,
        rust_do_trace_s390_iommu_table_free
        (domain: u64, table: u64, bytes: u32, after_flush: bool);
}

fn errno(result: Result) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// An attach, successful or refused.
#[inline(always)]
pub(crate) fn attach(fid: u32, from: u64, to: u64, result: Result) {
    point_attach(|| (fid, from, to, errno(result)));
}

/// A table was made deeper, or there was no memory for that.
#[inline(always)]
pub(crate) fn widen(domain: u64, from: u32, to: u32, result: Result) {
    point_widen(|| (domain, from, to, errno(result)));
}

/// A range was refreshed for a function. `retries` is the number of attempts before.
#[inline(always)]
pub(crate) fn refresh(zdev: &Zdev, range: Range, cc: u8, retries: u32) {
    point_refresh(|| (zdev.fid(), range.start(), range.last(), cc.into(), retries));
}

/// A table was allocated, at a physical address. Domain 0 is the driver itself.
#[inline(always)]
pub(crate) fn table_alloc(domain: u64, table: u64, bytes: usize) {
    point_table_alloc(|| (domain, table, bytes as u32));
}

/// A table was freed, or was unlinked and is freed after the next flush.
#[inline(always)]
pub(crate) fn table_free(domain: u64, table: u64, bytes: usize, after_flush: bool) {
    point_table_free(|| (domain, table, bytes as u32, after_flush));
}
