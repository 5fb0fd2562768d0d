// SPDX-License-Identifier: GPL-2.0

//! Memory for tables, and the gather of an unmap, which may hold such memory until its
//! flush.
//!
//! C headers: [`include/linux/iommu.h`](srctree/include/linux/iommu.h),
//! [`drivers/iommu/iommu-pages.h`](srctree/drivers/iommu/iommu-pages.h).

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    bindings,
    prelude::*,
    types::Opaque, //
};

use super::Gfp;

/// Allocates zeroed memory for tables, accounted like that of every IOMMU driver: `size`
/// bytes, a power of two, aligned to `size`. Takes at least a page.
///
/// # Context
///
/// May sleep if `gfp` allows it.
pub(crate) fn alloc_pages(size: usize, gfp: Gfp) -> Option<NonNull<u8>> {
    // SAFETY: The call has no requirements; any node will do.
    let pages = unsafe { iommu_alloc_pages_node_sz(bindings::NUMA_NO_NODE, gfp.0, size) };
    NonNull::new(pages.cast())
}

/// Frees memory from [`alloc_pages`].
///
/// # Safety
///
/// `pages` came from [`alloc_pages`], and nobody uses it.
pub(crate) unsafe fn free_pages(pages: NonNull<u8>) {
    // SAFETY: The caller's promise.
    unsafe { iommu_free_pages(pages.as_ptr().cast()) }
}

/// Table memory that waits to be freed.
///
/// C: `struct iommu_pages_list`.
#[repr(transparent)]
pub(crate) struct PagesList(Opaque<bindings::iommu_pages_list>);

// SAFETY: The memory on the list belongs to nobody else. Uses of the list itself follow
// the requirements of `PagesList::take`.
unsafe impl Send for PagesList {}
// SAFETY: As above.
unsafe impl Sync for PagesList {}

impl PagesList {
    /// An empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        // SAFETY: The closure initialises the whole of the slot, which is pinned.
        unsafe {
            pin_init::pin_init_from_closure(|slot: *mut Self| {
                bindings::INIT_LIST_HEAD(
                    &raw mut (*slot.cast::<bindings::iommu_pages_list>()).pages,
                );
                Ok::<(), core::convert::Infallible>(())
            })
        }
    }

    /// Moves everything from another list to this one.
    ///
    /// # Safety
    ///
    /// The caller serialises all uses of both lists.
    pub(crate) unsafe fn take(&self, from: &PagesList) {
        // SAFETY: Both lists are initialised; the caller's promise.
        unsafe { zpci_iommu_pages_list_move(from.0.get(), self.0.get()) }
    }

    /// Frees the memory on the list.
    ///
    /// # Safety
    ///
    /// The caller serialises all uses of the list, and nobody uses the memory on it.
    pub(crate) unsafe fn free(&self) {
        // SAFETY: The list is initialised; the caller's promise. The second call
        // makes it a list again.
        unsafe {
            iommu_put_pages_list(self.0.get());
            bindings::INIT_LIST_HEAD(&raw mut (*self.0.get()).pages);
        }
    }
}

/// Ranges that were unmapped and not yet flushed.
///
/// C: `struct iommu_iotlb_gather`.
#[repr(transparent)]
pub(crate) struct Gather(bindings::iommu_iotlb_gather);

impl Gather {
    /// The first unmapped address and the last one (inclusive). Any address in between
    /// may be unmapped as well.
    #[inline]
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.0.start as u64, self.0.end as u64)
    }

    /// Adds `size` bytes (not 0) from `iova` on.
    #[inline]
    pub(crate) fn add(&mut self, iova: u64, size: u64) {
        let last = iova.wrapping_add(size).wrapping_sub(1);
        self.0.start = core::cmp::min(self.0.start, iova as usize);
        self.0.end = core::cmp::max(self.0.end, last as usize);
    }

    /// Frees memory after the flush of this gather.
    ///
    /// # Safety
    ///
    /// `pages` came from [`alloc_pages`], and after the flush nobody uses it.
    pub(crate) unsafe fn free_after_flush(&mut self, pages: NonNull<u8>) {
        // SAFETY: `self.0.freelist` is valid, and `pages` is by the caller's promise.
        unsafe { zpci_iommu_pages_list_add(&raw mut self.0.freelist, pages.as_ptr().cast()) }
    }

    /// Whether [`Gather::free_flushed`] would free anything.
    #[inline]
    pub(crate) fn holds_pages(&self) -> bool {
        let head = &raw const self.0.freelist.pages;
        !ptr::eq(self.0.freelist.pages.next, head)
    }

    /// Whether a full flush follows instead of a flush of this gather.
    #[inline]
    pub(crate) fn is_queued(&self) -> bool {
        self.0.queued
    }

    /// Moves the memory from [`Gather::free_after_flush`] to a list.
    ///
    /// # Safety
    ///
    /// The caller serialises all uses of the list.
    pub(crate) unsafe fn defer(&mut self, list: &PagesList) {
        // SAFETY: Both lists are initialised; the caller's promise.
        unsafe { zpci_iommu_pages_list_move(&raw mut self.0.freelist, list.0.get()) }
    }

    /// Frees the memory from [`Gather::free_after_flush`].
    ///
    /// # Safety
    ///
    /// The gather was flushed.
    pub(crate) unsafe fn free_flushed(&mut self) {
        // SAFETY: The list is valid. Nobody uses the memory on it, by the promises of
        // `free_after_flush` and of the caller.
        unsafe { iommu_put_pages_list(&raw mut self.0.freelist) }
    }
}

extern "C" {
    // drivers/iommu/iommu-pages.h has no bindings.
    fn iommu_alloc_pages_node_sz(nid: c_int, gfp: bindings::gfp_t, size: usize) -> *mut c_void;
    fn iommu_free_pages(virt: *mut c_void);
    fn iommu_put_pages_list(list: *mut bindings::iommu_pages_list);
    // A static inline in that header; integration/zpci_iommu.c wraps it.
    fn zpci_iommu_pages_list_add(list: *mut bindings::iommu_pages_list, virt: *mut c_void);
    fn zpci_iommu_pages_list_move(
        from: *mut bindings::iommu_pages_list,
        to: *mut bindings::iommu_pages_list,
    );
}
