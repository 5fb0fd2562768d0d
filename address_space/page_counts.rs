// SPDX-License-Identifier: GPL-2.0

//! The pages that were mapped and unmapped, counted by each CPU for itself.
//!
//! Every map and unmap counts. A word that all CPUs write goes from cache to cache
//! with each of them; a word of the CPU's own stays. What the CPUs counted is
//! moved into the counters when somebody looks at those.
//!
//! A thread may change the CPU between the look for the word and the addition. So
//! the addition is interlocked, and nothing is lost; the word is then another CPU's
//! for this once.
//!
//! The words count bytes: those are in a register at every map and unmap, a number of
//! pages is not.
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
struct Words {
    mapped: AtomicU64,
    unmapped: AtomicU64,
}

/// Where the words of all CPUs are, to be kept where the short ways look anyway.
///
/// # Invariants
///
/// `words` is per-CPU memory for a [`Words`], as long as the [`PageCounts`] are there.
/// `offset` is where every CPU finds the offset of its own such memory.
#[derive(Clone, Copy)]
pub(super) struct View {
    words: NonNull<Words>,
    offset: NonNull<usize>,
}

// SAFETY: The words are atomic.
unsafe impl Send for View {}
// SAFETY: As above.
unsafe impl Sync for View {}

impl View {
    /// The words of this CPU, or of one that was this CPU a moment ago.
    ///
    /// # Safety
    ///
    /// The [`PageCounts`] that this came from are there.
    #[inline(always)]
    unsafe fn words(&self) -> &Words {
        // SAFETY: By the invariant; the caller's promise.
        unsafe {
            let offset = self.offset.as_ptr().read_volatile();
            &*self.words.as_ptr().wrapping_byte_add(offset)
        }
    }

    /// Counts `size` bytes of pages that were mapped.
    ///
    /// # Safety
    ///
    /// As for [`View::words`].
    #[inline(always)]
    pub(super) unsafe fn mapped(&self, size: u64) {
        // SAFETY: The caller's promise.
        let words = unsafe { self.words() };
        words.mapped.fetch_add(size, Ordering::Relaxed);
    }

    /// Counts `size` bytes of pages that were unmapped.
    ///
    /// # Safety
    ///
    /// As for [`View::words`].
    #[inline(always)]
    pub(super) unsafe fn unmapped(&self, size: u64) {
        // SAFETY: The caller's promise.
        let words = unsafe { self.words() };
        words.unmapped.fetch_add(size, Ordering::Relaxed);
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
        let (size, align) = (size_of::<Words>(), align_of::<Words>());
        // Before the memory is there, which an error here would lose.
        // SAFETY: No requirements.
        let offset = NonNull::new(unsafe { zpci_iommu_percpu_offset() }).ok_or(ENODEV)?;
        // SAFETY: No requirements; the memory is zeroed.
        let words =
            unsafe { bindings::pcpu_alloc_noprof(size, align, false, bindings::GFP_KERNEL) };
        let words = NonNull::new(words.cast()).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated.
        Ok(PageCounts(View { words, offset }))
    }

    /// Where the words are.
    pub(super) fn view(&self) -> View {
        self.0
    }

    /// Counts `size` bytes of pages that were mapped.
    #[inline]
    pub(super) fn mapped(&self, size: u64) {
        // SAFETY: They are there.
        unsafe { self.0.mapped(size) }
    }

    /// Counts `size` bytes of pages that were unmapped.
    #[inline]
    pub(super) fn unmapped(&self, size: u64) {
        // SAFETY: They are there.
        unsafe { self.0.unmapped(size) }
    }

    /// Moves what was counted into `counters`.
    pub(super) fn move_to(&self, counters: &Counters) {
        let words = self.0.words.as_ptr();
        // SAFETY: By the invariant; only addresses are made of the fields.
        let (mapped, unmapped) = unsafe {
            (
                zpci_iommu_percpu_take(&raw const (*words).mapped),
                zpci_iommu_percpu_take(&raw const (*words).unmapped),
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
        unsafe { bindings::free_percpu(self.0.words.as_ptr().cast()) }
    }
}

extern "C" {
    // integration/zpci_iommu.c
    fn zpci_iommu_percpu_offset() -> *mut usize;
    fn zpci_iommu_percpu_take(word: *const AtomicU64) -> u64;
}
