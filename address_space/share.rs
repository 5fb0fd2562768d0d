// SPDX-License-Identifier: GPL-2.0

//! A share in an address space, and the ways to map and unmap.

use core::hint::cold_path;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use super::{
    access,
    members::Member,
    page_counts::View,
    AddressSpace, //
};
use crate::{
    dma_table::{
        Access,
        Iova,
        Low,
        Phys,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    iommu::{
        Gather,
        Gfp,
        Prot, //
    }, //
};

/// A share in an address space, with copies of what never changes there: the fast paths
/// do not need to read the space itself.
pub(crate) struct Share<M: Member> {
    low: Low,
    counts: View,
    space: Arc<AddressSpace<M>>,
}

impl<M: Member> Share<M> {
    /// A share in `space`.
    pub(crate) fn new(space: Arc<AddressSpace<M>>) -> Self {
        Share {
            low: space.table.low(),
            counts: space.page_counts.view(),
            space,
        }
    }

    /// The address space.
    #[inline]
    pub(crate) fn space(&self) -> &Arc<AddressSpace<M>> {
        &self.space
    }

    /// Maps `count` pages of `page_size` bytes, and sets `mapped` to the number of bytes
    /// mapped, also if an error ends the call early.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of `dma_table.rs`).
    ///
    /// # Errors
    ///
    /// `EINVAL` for a request that can never work, `EADDRINUSE` if the range contains a
    /// live mapping, `ENOMEM`.
    #[inline]
    // The arguments are those of `iommu_domain_ops::map_pages`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn map(
        &self,
        iova: u64,
        phys: u64,
        page_size: usize,
        count: usize,
        prot: Prot,
        gfp: Gfp,
        mapped: &mut usize,
    ) -> Result {
        // No page is smaller, so this is one page of 4 KiB. ("<=" rather than "==": with
        // that the compiler would load the constant again for the count and the result.)
        if page_size as u64 <= PAGE_SIZE && count == 1 {
            // SAFETY: The caller's promise.
            let done = unsafe { self.map_page(iova, phys, prot) };
            if done {
                // SAFETY: The address space exists.
                unsafe { self.counts.mapped(page_size as u64) };
                *mapped = page_size;
                return Ok(());
            }
        }
        cold_path();
        // SAFETY: As above.
        unsafe { self.map_range(iova, phys, page_size, count, prot, gfp, mapped) }
    }

    /// Maps a page if all that it takes is to fill its entry.
    ///
    /// # Safety
    ///
    /// The caller owns the page.
    #[inline(always)]
    unsafe fn map_page(&self, iova: u64, phys: u64, prot: Prot) -> bool {
        // SAFETY: The caller's promise.
        let page = unsafe { self.space.table.empty_page(self.low, Iova(iova)) };
        let Some(page) = page else {
            return false;
        };
        // A branch is cheaper than computing the bit from the protection.
        if prot.allows_writes() {
            page.fill(Phys(phys), Access::READ_WRITE);
        } else if prot.allows_access() {
            page.fill(Phys(phys), Access::READ_ONLY);
        } else {
            return false;
        }
        true
    }

    /// Maps any range.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn map_range(
        &self,
        iova: u64,
        phys: u64,
        page_size: usize,
        count: usize,
        prot: Prot,
        gfp: Gfp,
        mapped: &mut usize,
    ) -> Result {
        if page_size as u64 == PAGE_SIZE && prot.allows_access() {
            let (table, access) = (&self.space.table, access(prot));
            // SAFETY: The caller's promise.
            if unsafe { table.map_present(self.low, Iova(iova), Phys(phys), count, access) } {
                let size = count << PAGE_SHIFT;
                // SAFETY: The address space exists.
                unsafe { self.counts.mapped(size as u64) };
                *mapped = size;
                return Ok(());
            }
        }
        // SAFETY: As above.
        unsafe {
            self.space
                .map_checked(iova, phys, page_size, count, prot, gfp, mapped)
        }
    }

    /// Unmaps and counts a page if all that it takes is to empty its entry.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(always)]
    unsafe fn unmap_page(&self, iova: u64, size: u64) -> bool {
        // SAFETY: The caller's promise; the address space exists.
        unsafe {
            let unmapped = size <= PAGE_SIZE && self.space.table.unmap_page(self.low, Iova(iova));
            if unmapped {
                self.counts.unmapped(size);
            }
            unmapped
        }
    }

    /// Unmaps a range, up to the first hole. Returns the number of bytes unmapped: 0 for a
    /// range that cannot have been mapped.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of `dma_table.rs`).
    #[inline]
    pub(crate) unsafe fn unmap(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        if gather.is_queued() {
            // A tail call needs no stack.
            // SAFETY: The caller's promise.
            return unsafe { self.unmap_queued(iova, size, gather) };
        }
        // SAFETY: As above.
        if unsafe { self.unmap_page(iova, size) } {
            gather.add(iova, PAGE_SIZE);
            return size as usize;
        }
        // SAFETY: As above.
        unsafe { self.space.unmap_range(iova, size, gather) }
    }

    /// The physical address that `iova` is mapped to.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that contains `iova` meanwhile.
    #[inline]
    pub(crate) unsafe fn lookup(&self, iova: u64) -> Option<u64> {
        // SAFETY: The caller's promise.
        if let Some(phys) = unsafe { self.space.table.lookup_page(self.low, Iova(iova)) } {
            return Some(phys.0);
        }
        cold_path();
        // SAFETY: As above.
        let found = unsafe { self.space.lookup(iova) };
        found.map(|translation| translation.phys.0)
    }

    /// Unmaps a range that a later full flush covers.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(never)]
    unsafe fn unmap_queued(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        // SAFETY: The caller's promise.
        if unsafe { self.unmap_page(iova, size) } {
            self.space.pending.mark_one(iova);
            return size as usize;
        }
        // SAFETY: As above.
        unsafe { self.space.unmap_range(iova, size, gather) }
    }
}
