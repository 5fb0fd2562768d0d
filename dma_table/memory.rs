// SPDX-License-Identifier: GPL-2.0

//! Table memory: the kernel's IOMMU pages, counted per domain.
//!
//! The kernel's helper shows them in `/proc/meminfo` (`SecPageTables`), charges them to
//! the caller on request (`GFP_KERNEL_ACCOUNT`), and frees lists of them after a flush.
//! It allocates whole pages, so a page table takes 4 KiB although it needs only 2: the
//! price of memory that the deferred flush queue can free.

use core::ptr::NonNull;

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

use super::{
    DeferFree,
    Memory,
    Phys,
    Shape, //
};
use crate::{
    atomic::AtomicU64,
    iommu::{
        self,
        Gather,
        Gfp, //
    },
    trace, //
};

/// The templates of new tables. A copy takes a few instructions, a loop of stores takes
/// one per entry.
static EMPTY_UPPER: [u64; Shape::Upper.entries()] = [Shape::Upper.empty(); Shape::Upper.entries()];
static EMPTY_PAGE: [u64; Shape::Page.entries()] = [Shape::Page.empty(); Shape::Page.entries()];

/// Where the identity mapping of the kernel begins: virtual addresses of
/// allocated pages are physical ones plus this.
///
/// C: `__identity_base` in `arch/s390/include/asm/page.h`.
#[inline(always)]
fn identity_base() -> usize {
    #[cfg(CONFIG_RANDOMIZE_IDENTITY_BASE)]
    // SAFETY: Set at boot, never written afterwards.
    return unsafe { (*(&raw const kernel::bindings::vm_layout)).identity_base as usize };
    #[cfg(not(CONFIG_RANDOMIZE_IDENTITY_BASE))]
    return 0;
}

/// The table memory of one domain.
pub(crate) struct TablePages {
    bytes: Atomic<usize>,
    domain: u64,
}

impl TablePages {
    /// The table memory of the domain of this number; 0 for the driver itself.
    pub(crate) fn of_domain(domain: u64) -> Self {
        TablePages {
            bytes: Atomic::new(0),
            domain,
        }
    }

    /// The memory of the tables, in bytes, without those that wait for a flush before they
    /// are freed.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// The memory of a table of some shape, in bytes.
    const fn taken(shape: Shape) -> usize {
        if shape.bytes() < kernel::page::PAGE_SIZE {
            kernel::page::PAGE_SIZE
        } else {
            shape.bytes()
        }
    }

    /// The pages of a table.
    ///
    /// # Safety
    ///
    /// `table` came from [`Memory::alloc`].
    #[inline(always)]
    unsafe fn pages(table: Phys) -> NonNull<u8> {
        let virt = (table.0 as usize).wrapping_add(identity_base()) as *mut u8;
        // SAFETY: The sum is the address that `alloc` was given.
        unsafe { NonNull::new_unchecked(virt) }
    }
}

// SAFETY: Nobody else uses the allocated pages until they are freed. They are aligned to
// their size, and at the physical address that the identity mapping yields.
unsafe impl Memory for TablePages {
    type Cell = AtomicU64;
    type Flags = Gfp;

    fn alloc(&self, shape: Shape, gfp: Gfp) -> Option<Phys> {
        let table = self.alloc_unset(shape, gfp)?;
        let empty: &[u64] = match shape {
            Shape::Page => &EMPTY_PAGE,
            Shape::Upper => &EMPTY_UPPER,
        };
        // SAFETY: The pages are new, aligned, and no smaller than a table.
        unsafe {
            let cells = Self::pages(table).cast::<u64>();
            core::ptr::copy_nonoverlapping(empty.as_ptr(), cells.as_ptr(), empty.len());
        }
        Some(table)
    }

    fn alloc_unset(&self, shape: Shape, gfp: Gfp) -> Option<Phys> {
        let pages = iommu::alloc_pages(Self::taken(shape), gfp)?;
        self.bytes.add(Self::taken(shape), Relaxed);
        let phys = (pages.as_ptr() as usize).wrapping_sub(identity_base()) as u64;
        trace::table_alloc(self.domain, phys, Self::taken(shape));
        Some(Phys(phys))
    }

    unsafe fn free(&self, table: Phys, shape: Shape) {
        self.bytes.fetch_sub(Self::taken(shape), Relaxed);
        trace::table_free(self.domain, table.0, Self::taken(shape), false);
        // SAFETY: The caller's promise.
        unsafe { iommu::free_pages(Self::pages(table)) }
    }

    #[inline(always)]
    unsafe fn cells(&self, table: Phys) -> NonNull<AtomicU64> {
        // SAFETY: The caller's promise.
        unsafe { Self::pages(table) }.cast()
    }
}

/// Hands unlinked tables to the gather of the unmap that unlinked them.
pub(crate) struct Unlinked<'a, F: Fn(u64)> {
    /// The gather that will be flushed.
    pub(crate) gather: &'a mut Gather,
    /// The memory of the tables.
    pub(crate) pages: &'a TablePages,
    /// Marks this number of bytes from the start of the range.
    pub(crate) mark: F,
}

impl<F: Fn(u64)> DeferFree for Unlinked<'_, F> {
    fn defer_free(&mut self, table: Phys, shape: Shape) {
        self.pages
            .bytes
            .fetch_sub(TablePages::taken(shape), Relaxed);
        trace::table_free(self.pages.domain, table.0, TablePages::taken(shape), true);
        // SAFETY: The tree passes tables that came from its memory, and that only the
        // machine can still reach. It forgets them with the flush.
        unsafe { self.gather.free_after_flush(TablePages::pages(table)) }
    }

    fn mark(&self, size: u64) {
        (self.mark)(size);
    }
}
