// SPDX-License-Identifier: GPL-2.0

//! Unmapping, and freeing tables.

use super::{
    format::*,
    map::Low,
    table::{
        all_live,
        clear,
        part_in,
        Cell,
        Memory,
        Table, //
    },
    DmaTable, //
};

/// Takes the tables that an unmap unlinked, and marks what it may empty.
pub(crate) trait DeferFree {
    /// Whether it takes any tables. If not, the unmap unlinks nothing.
    const TAKES: bool = true;

    /// Takes `table`, and frees it when the machine cannot be reading it any more.
    fn defer_free(&mut self, table: Phys, shape: Shape);

    /// Marks the first `size` bytes of the range, under the walk lock: before segment
    /// entries may be emptied, and after. A walk that finds them empty meanwhile finds the
    /// first mark; a later walk finds the second one.
    fn mark(&self, _size: u64) {}
}

/// Takes no tables.
struct Nothing;

impl DeferFree for Nothing {
    const TAKES: bool = false;

    fn defer_free(&mut self, _table: Phys, _shape: Shape) {}
}

impl<M: Memory> DmaTable<M> {
    /// Unmaps one page if its page table is present and the page is mapped. Otherwise
    /// changes nothing; then call [`DmaTable::unmap`].
    ///
    /// # Safety
    ///
    /// The caller owns the page (see the head of `dma_table.rs`); the address is aligned
    /// to it; the core checks that for every unmap. `low` belongs to this tree.
    #[inline]
    pub(crate) unsafe fn unmap_page(&self, low: Low, iova: Iova) -> bool {
        debug_assert!(iova.0 & (PAGE_SIZE - 1) == 0);
        let Some(leaf) = self.leaf(low, iova) else {
            return false;
        };
        let cell = self.pages(leaf).cell(iova);
        let live = cell.load() & PAGE_INVALID == 0;
        if live {
            cell.store(PAGE_INVALID);
        }
        live
    }

    /// Unmaps a range, up to the first part that is not mapped, or is mapped by a large
    /// page of which the range covers only a part. Returns the number of bytes unmapped.
    /// Allocates nothing.
    ///
    /// The machine may still use what was unmapped, and read the tables in `unlinked`,
    /// until it is refreshed.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of `dma_table.rs`), which is not empty
    /// and lies in the reach of the tree.
    #[inline]
    pub(crate) unsafe fn unmap(&self, iova: Iova, size: u64, unlinked: &mut impl DeferFree) -> u64 {
        match self.leaf_run(self.low, iova, (size >> PAGE_SHIFT) as usize) {
            // A page table that is covered completely is unlinked without emptying it.
            Some(run) if run.len() < Shape::Page.entries() && all_live(run) => {
                clear(run);
                size
            }
            _ => self.unmap_long(iova, size, unlinked),
        }
    }

    /// Unmaps a range of any size.
    #[inline(never)]
    fn unmap_long(&self, iova: Iova, size: u64, unlinked: &mut impl DeferFree) -> u64 {
        // A range smaller than that of a segment entry covers no table.
        if size < LARGE_PAGE_SIZE {
            return self.unmap_range(iova, size, &mut Nothing);
        }
        let (_guard, may_unlink) = self.walk_lock.unmap();
        unlinked.mark(size);
        let bytes = if may_unlink {
            self.unmap_range(iova, size, unlinked)
        } else {
            self.unmap_keeping_tables(iova, size)
        };
        if bytes >= LARGE_PAGE_SIZE {
            unlinked.mark(bytes);
        }
        bytes
    }

    /// Unmaps a range while there is a reader: no table is unlinked.
    #[cold]
    fn unmap_keeping_tables(&self, iova: Iova, size: u64) -> u64 {
        self.unmap_range(iova, size, &mut Nothing)
    }

    #[inline]
    fn unmap_range(&self, iova: Iova, size: u64, unlinked: &mut impl DeferFree) -> u64 {
        let root = self.root();
        match root.depth {
            // SAFETY: The root is a table of the level that belongs to its depth, and
            // is never freed while the tree lives.
            Depth::Third => unsafe { self.unmap_top::<Third>(root, iova, size, unlinked) },
            // SAFETY: As above.
            Depth::Second => unsafe { self.unmap_top::<Second>(root, iova, size, unlinked) },
            // SAFETY: As above.
            Depth::First => unsafe { self.unmap_top::<First>(root, iova, size, unlinked) },
        }
    }

    /// # Safety
    ///
    /// `root` is a table of level `L`.
    #[inline]
    unsafe fn unmap_top<L: Subtree>(
        &self,
        root: Root,
        iova: Iova,
        size: u64,
        unlinked: &mut impl DeferFree,
    ) -> u64 {
        // SAFETY: The caller's promise; a top is never freed while the tree
        // lives.
        let top: Table<'_, L, M> = unsafe { Table::new(&self.memory, root.origin) };
        L::unmap_range(self, &top, iova, size, unlinked)
    }

    /// Empties segment entries, up to the first one that maps no large page. Returns the
    /// number of bytes unmapped.
    fn unmap_large(&self, run: &[M::Cell]) -> u64 {
        let emptied = self.emptied::<Segment>();
        let mut count = 0u64;
        for cell in run {
            if cell.load() & (ENTRY_INVALID | LARGE) != LARGE {
                break;
            }
            cell.store(emptied);
            count = count.wrapping_add(1);
        }
        count << LARGE_PAGE_SHIFT
    }

    /// Unlinks the table below an entry. The caller owns its whole range.
    #[inline]
    fn unlink<L: Upper>(&self, cell: &M::Cell, unlinked: &mut impl DeferFree) {
        if let Some(origin) = L::origin(cell.load()) {
            cell.store(self.emptied::<L>());
            unlinked.defer_free(origin, L::Below::SHAPE);
        }
    }

    /// Frees a table of level `L` and all below it.
    ///
    /// # Safety
    ///
    /// `table` is of level `L`; nobody can reach it any more.
    unsafe fn free_tree<L: Subtree>(&self, table: Phys) {
        // SAFETY: The caller's promise.
        unsafe {
            L::free_below(self, table);
            self.memory.free(table, L::SHAPE);
        }
    }
}

impl<M: Memory> Drop for DmaTable<M> {
    fn drop(&mut self) {
        let root = self.root();
        // SAFETY: The root is a table of the level that belongs to its depth. `self`
        // is exclusive; that no machine has it registered is the domain's
        // promise.
        unsafe {
            match root.depth {
                Depth::Third => self.free_tree::<Third>(root.origin),
                Depth::Second => self.free_tree::<Second>(root.origin),
                Depth::First => self.free_tree::<First>(root.origin),
            }
        }
    }
}

/// What differs from level to level in an unmap.
trait Subtree: Level + Sized {
    /// Whether the table of this level at `iova` must stay as long as the tree lives,
    /// because a machine may have it registered as its top.
    #[inline]
    fn stays(_iova: Iova) -> bool {
        false
    }

    /// Unmaps the part of the range that lies in `table`. Returns the number of bytes
    /// unmapped from the start.
    fn unmap_range<M: Memory, R: DeferFree>(
        tree: &DmaTable<M>,
        table: &Table<'_, Self, M>,
        iova: Iova,
        size: u64,
        unlinked: &mut R,
    ) -> u64;

    /// Frees all below `table`.
    ///
    /// # Safety
    ///
    /// `table` is of this level; nobody can reach it any more.
    unsafe fn free_below<M: Memory>(tree: &DmaTable<M>, table: Phys);
}

impl Subtree for Page {
    #[inline]
    fn unmap_range<M: Memory, R: DeferFree>(
        _tree: &DmaTable<M>,
        table: &Table<'_, Page, M>,
        iova: Iova,
        size: u64,
        _unlinked: &mut R,
    ) -> u64 {
        let mut run = table.run(iova, size);
        if !all_live(run) {
            let live = |cell: &&M::Cell| cell.load() & PAGE_INVALID == 0;
            run = &run[..run.iter().take_while(live).count()];
        }
        clear(run);
        (run.len() as u64) << PAGE_SHIFT
    }

    unsafe fn free_below<M: Memory>(_tree: &DmaTable<M>, _table: Phys) {}
}

impl Subtree for Segment {
    #[inline]
    fn unmap_range<M: Memory, R: DeferFree>(
        tree: &DmaTable<M>,
        table: &Table<'_, Segment, M>,
        iova: Iova,
        size: u64,
        unlinked: &mut R,
    ) -> u64 {
        let size = part_in::<Segment>(iova, size);
        let mut done = 0u64;
        while done < size {
            let at = Iova(iova.0.wrapping_add(done));
            let part = part_in::<Page>(at, size.wrapping_sub(done));
            let cell = table.cell(at);
            let bytes = match tree.peek::<Segment>(cell) {
                Some(pages) if R::TAKES && part == LARGE_PAGE_SIZE && all_live(pages.cells()) => {
                    // The page table is unlinked without emptying it.
                    tree.unlink::<Segment>(cell, unlinked);
                    part
                }
                Some(pages) => Page::unmap_range(tree, &pages, at, part, unlinked),
                None if part == LARGE_PAGE_SIZE => {
                    tree.unmap_large(table.run(at, size.wrapping_sub(done)))
                }
                None => 0,
            };
            done = done.wrapping_add(bytes);
            if bytes < part {
                break;
            }
        }
        done
    }

    unsafe fn free_below<M: Memory>(tree: &DmaTable<M>, table: Phys) {
        // SAFETY: The caller's promise.
        unsafe { free_upper::<Segment, M>(tree, table) }
    }
}

macro_rules! region_subtree {
    ($level:ident) => {
        impl Subtree for $level {
            #[inline]
            fn stays(iova: Iova) -> bool {
                iova.0 == 0
            }

            #[inline]
            fn unmap_range<M: Memory, R: DeferFree>(
                tree: &DmaTable<M>,
                table: &Table<'_, $level, M>,
                iova: Iova,
                size: u64,
                unlinked: &mut R,
            ) -> u64 {
                unmap_regions::<$level, M, R>(tree, table, iova, size, unlinked)
            }

            unsafe fn free_below<M: Memory>(tree: &DmaTable<M>, table: Phys) {
                // SAFETY: The caller's promise.
                unsafe { free_upper::<$level, M>(tree, table) }
            }
        }
    };
}

region_subtree!(Third);
region_subtree!(Second);
region_subtree!(First);

/// Unmaps in a region table, and unlinks the tables below it that are covered completely.
#[inline]
fn unmap_regions<L, M, R>(
    tree: &DmaTable<M>,
    table: &Table<'_, L, M>,
    iova: Iova,
    size: u64,
    unlinked: &mut R,
) -> u64
where
    L: Upper,
    L::Below: Subtree,
    M: Memory,
    R: DeferFree,
{
    let size = part_in::<L>(iova, size);
    let mut done = 0u64;
    while done < size {
        let at = Iova(iova.0.wrapping_add(done));
        let part = part_in::<L::Below>(at, size.wrapping_sub(done));
        let cell = table.cell(at);
        let bytes = match tree.peek::<L>(cell) {
            Some(below) => L::Below::unmap_range(tree, &below, at, part, unlinked),
            None => 0,
        };
        done = done.wrapping_add(bytes);
        if bytes != part {
            break;
        }
        let whole = part.wrapping_sub(1) == last_of::<L::Below>();
        if R::TAKES && whole && !L::Below::stays(at) {
            tree.unlink::<L>(cell, unlinked);
        }
    }
    done
}

/// Frees all below a table of level `L`.
///
/// # Safety
///
/// `table` is of this level; nobody can reach it any more.
unsafe fn free_upper<L, M>(tree: &DmaTable<M>, table: Phys)
where
    L: Upper,
    L::Below: Subtree,
    M: Memory,
{
    // SAFETY: The caller's promise.
    let table: Table<'_, L, M> = unsafe { Table::new(&tree.memory, table) };
    let vacant = L::vacant(&tree.vacant);
    for cell in table.cells() {
        let origin = L::origin(cell.load_acquire());
        if let Some(below) = origin.filter(|below| *below != vacant) {
            // SAFETY: By the invariant of the tree it is a table of the level
            // below; it is reached from here only.
            unsafe { tree.free_tree::<L::Below>(below) };
        }
    }
}
