// SPDX-License-Identifier: GPL-2.0

//! Per-CPU counts of mapped and unmapped pages.
//!
//! Every map and unmap counts. A counter that all CPUs write would move from cache to
//! cache each time; a per-CPU counter does not. Reading the statistics adds the per-CPU
//! counts to them.
//!
//! A thread may migrate after it has found the counter and before it adds to it. The
//! addition is interlocked, so it is not lost; it goes to another CPU's counter.
//!
//! The per-CPU counters count bytes: a map or an unmap has these in a register, but not
//! the number of pages.
//!
//! The kernel crate has no per-CPU variables yet.

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*, //
};

use crate::{
    atomic::{
        AtomicU64,
        Ordering, //
    },
    dma_table::PAGE_SHIFT,
    zpci::Counters, //
};

/// What one CPU counted, in bytes.
#[repr(C)]
struct Counts {
    mapped: AtomicU64,
    unmapped: AtomicU64,
}

/// A pointer to the per-CPU counts, for data that the fast paths read anyway.
///
/// # Invariants
///
/// `counts` is per-CPU memory for a [`Counts`], as long as the [`PageCounts`] exist. At
/// `offset` each CPU finds the offset of its own per-CPU memory.
#[derive(Clone, Copy)]
pub(super) struct View {
    counts: NonNull<Counts>,
    offset: NonNull<usize>,
}

// SAFETY: The counts are atomic.
unsafe impl Send for View {}
// SAFETY: As above.
unsafe impl Sync for View {}

impl View {
    /// The counts of this CPU, or of the one that this thread just left.
    ///
    /// # Safety
    ///
    /// The [`PageCounts`] that this came from exist.
    #[inline(always)]
    unsafe fn counts(&self) -> &Counts {
        // SAFETY: By the invariant; the caller's promise.
        unsafe {
            let offset = self.offset.as_ptr().read_volatile();
            &*self.counts.as_ptr().wrapping_byte_add(offset)
        }
    }

    /// Counts `size` bytes of pages that were mapped.
    ///
    /// # Safety
    ///
    /// As for [`View::counts`].
    #[inline(always)]
    pub(super) unsafe fn mapped(&self, size: u64) {
        // SAFETY: The caller's promise.
        let counts = unsafe { self.counts() };
        counts.mapped.fetch_add(size, Ordering::Relaxed);
    }

    /// Counts `size` bytes of pages that were unmapped.
    ///
    /// # Safety
    ///
    /// As for [`View::counts`].
    #[inline(always)]
    pub(super) unsafe fn unmapped(&self, size: u64) {
        // SAFETY: The caller's promise.
        let counts = unsafe { self.counts() };
        counts.unmapped.fetch_add(size, Ordering::Relaxed);
    }
}

/// Counts of pages, a pair for each CPU.
pub(super) struct PageCounts(View);

impl PageCounts {
    /// No pages.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(super) fn new() -> Result<Self> {
        let (size, align) = (size_of::<Counts>(), align_of::<Counts>());
        // Before the allocation, so that an error here leaks nothing.
        // SAFETY: No requirements.
        let offset = NonNull::new(unsafe { zpci_iommu_percpu_offset() }).ok_or(ENODEV)?;
        // SAFETY: No requirements; the memory is zeroed.
        let counts =
            unsafe { bindings::pcpu_alloc_noprof(size, align, false, bindings::GFP_KERNEL) };
        let counts = NonNull::new(counts.cast()).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated.
        Ok(PageCounts(View { counts, offset }))
    }

    /// Where the counts are.
    pub(super) fn view(&self) -> View {
        self.0
    }

    /// Counts `size` bytes of pages that were mapped.
    #[inline]
    pub(super) fn mapped(&self, size: u64) {
        // SAFETY: They exist.
        unsafe { self.0.mapped(size) }
    }

    /// Counts `size` bytes of pages that were unmapped.
    #[inline]
    pub(super) fn unmapped(&self, size: u64) {
        // SAFETY: They exist.
        unsafe { self.0.unmapped(size) }
    }

    /// Moves what was counted into `counters`.
    pub(super) fn move_to(&self, counters: &Counters) {
        let counts = self.0.counts.as_ptr();
        // SAFETY: By the invariant; this only takes the addresses of the fields.
        let (mapped, unmapped) = unsafe {
            (
                zpci_iommu_percpu_take(&raw const (*counts).mapped),
                zpci_iommu_percpu_take(&raw const (*counts).unmapped),
            )
        };
        let (mapped, unmapped) = (mapped >> PAGE_SHIFT, unmapped >> PAGE_SHIFT);
        counters.mapped_pages.fetch_add(mapped, Ordering::Relaxed);
        counters
            .unmapped_pages
            .fetch_add(unmapped, Ordering::Relaxed);
    }
}

impl Drop for PageCounts {
    fn drop(&mut self) {
        // SAFETY: By the invariant; nobody counts any more.
        unsafe { bindings::free_percpu(self.0.counts.as_ptr().cast()) }
    }
}

extern "C" {
    // integration/zpci_iommu.c
    fn zpci_iommu_percpu_offset() -> *mut usize;
    fn zpci_iommu_percpu_take(count: *const AtomicU64) -> u64;
}
