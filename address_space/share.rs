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
    AddressSpace, //
};
use crate::{
    atomic::Ordering,
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

/// A share in an address space. Beside it lies a copy of what never changes in that: the
/// shortest ways need no look at the space itself.
pub(crate) struct Share<M: Member> {
    low: Low,
    space: Arc<AddressSpace<M>>,
}

impl<M: Member> Share<M> {
    /// A share in `space`.
    pub(crate) fn new(space: Arc<AddressSpace<M>>) -> Self {
        Share {
            low: space.table.low(),
            space,
        }
    }

    /// The address space.
    #[inline]
    pub(crate) fn space(&self) -> &Arc<AddressSpace<M>> {
        &self.space
    }

    /// Maps `count` pages of `page_size` bytes, and sets `mapped` to how many bytes were
    /// mapped before an error.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of `dma_table.rs`).
    ///
    /// # Errors
    ///
    /// `EINVAL` for what cannot be mapped at all, `EADDRINUSE` if the range
    /// holds a live mapping, `ENOMEM`.
    #[inline]
    // Those of the core's call.
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
        if page_size as u64 == PAGE_SIZE && count == 1 {
            let (iova, phys) = (Iova(iova), Phys(phys));
            // A branch takes less than making the bit out of the protection.
            // SAFETY: The caller's promise.
            let done = unsafe {
                if prot.allows_writes() {
                    self.space
                        .table
                        .map_present(self.low, iova, phys, 1, Access::READ_WRITE)
                } else {
                    prot.allows_access()
                        && self
                            .space
                            .table
                            .map_present(self.low, iova, phys, 1, Access::READ_ONLY)
                }
            };
            if done {
                self.space
                    .counters
                    .mapped_pages
                    .fetch_add(1, Ordering::Relaxed);
                *mapped = page_size;
                return Ok(());
            }
        }
        cold_path();
        // SAFETY: As above.
        unsafe { self.map_range(iova, phys, page_size, count, prot, gfp, mapped) }
    }

    /// Maps any range, or says why not.
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
            let (iova, phys) = (Iova(iova), Phys(phys));
            // SAFETY: The caller's promise.
            if unsafe {
                self.space
                    .table
                    .map_present(self.low, iova, phys, count, access(prot))
            } {
                self.space
                    .counters
                    .mapped_pages
                    .fetch_add(count as u64, Ordering::Relaxed);
                *mapped = count << PAGE_SHIFT;
                return Ok(());
            }
        }
        // SAFETY: As above.
        unsafe {
            self.space
                .map_checked(iova, phys, page_size, count, prot, gfp, mapped)
        }
    }

    /// Unmaps a range, up to the first hole. Returns how many bytes were unmapped:
    /// none of what cannot have been mapped.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of `dma_table.rs`).
    #[inline]
    pub(crate) unsafe fn unmap(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        if gather.is_queued() {
            // A call that ends with another one needs no stack.
            // SAFETY: The caller's promise.
            return unsafe { self.unmap_queued(iova, size, gather) };
        }
        // SAFETY: As above.
        if size == PAGE_SIZE && unsafe { self.space.table.unmap_page(self.low, Iova(iova)) } {
            gather.add(iova, PAGE_SIZE);
            self.space
                .counters
                .unmapped_pages
                .fetch_add(1, Ordering::Relaxed);
            return size as usize;
        }
        // SAFETY: As above.
        unsafe { self.space.unmap_range(iova, size, gather) }
    }

    /// Unmaps a range, for a full flush that follows.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(never)]
    unsafe fn unmap_queued(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        // SAFETY: The caller's promise.
        if size == PAGE_SIZE && unsafe { self.space.table.unmap_page(self.low, Iova(iova)) } {
            self.space.pending.mark_one(iova);
            self.space
                .counters
                .unmapped_pages
                .fetch_add(1, Ordering::Relaxed);
            return size as usize;
        }
        // SAFETY: As above.
        unsafe { self.space.unmap_range(iova, size, gather) }
    }
}
