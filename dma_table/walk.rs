// SPDX-License-Identifier: GPL-2.0

//! Reading the tree: the translation of an IOVA, and which ranges are in use.

use super::{
    format::*,
    map::Low,
    table::{
        Cell,
        Memory,
        Table, //
    },
    walk_lock::WalkGuard,
    DmaTable, //
};

/// A reader of a tree, which owns no range in it. No table is unlinked while it exists, so
/// it should be short-lived.
pub(crate) struct Walk<'t, M: Memory> {
    tree: &'t DmaTable<M>,
    _guard: WalkGuard<'t, M::Cell>,
}

impl<M: Memory> Walk<'_, M> {
    /// The current translation of `iova`, or else the size, in bytes, of the empty entry
    /// that covers it (the range of the entry is aligned to its size). `None` above the
    /// reach of the tree.
    pub(crate) fn find(&self, iova: Iova) -> Option<Result<Translation, u64>> {
        // SAFETY: No table is unlinked while there is a reader.
        unsafe { self.tree.find(iova) }
    }

    /// The next run of non-empty segment entries at or after `iova`: their first and last
    /// IOVA (inclusive). The run covers whole entries of one segment table.
    pub(crate) fn next_used(&self, iova: Iova) -> Option<(Iova, Iova)> {
        let root = self.tree.root();
        let mut at = iova.0;
        loop {
            if at > root.depth.reach() {
                return None;
            }
            let empty = match self.tree.segments_of(root, Iova(at)) {
                Ok(segments) => match self.tree.used_in(&segments, Iova(at)) {
                    Some(used) => return Some(used),
                    None => span::<Third>(),
                },
                Err(empty) => empty,
            };
            at = (at | (empty - 1)).checked_add(1)?;
        }
    }
}

impl<M: Memory> DmaTable<M> {
    /// Starts a walk. Calls `wait` while unmaps that began before are under way; it should
    /// let others run.
    ///
    /// # Errors
    ///
    /// That of `wait`.
    pub(crate) fn walk<E>(&self, wait: impl FnMut() -> Result<(), E>) -> Result<Walk<'_, M>, E> {
        Ok(Walk {
            tree: self,
            _guard: self.walk_lock.read(wait)?,
        })
    }

    /// Whether an unmap may be emptying segment entries beside a walk.
    pub(crate) fn is_unmapped_beside(&self) -> bool {
        self.walk_lock.is_unmapped_beside()
    }

    /// Finds the translation of `iova`.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that contains `iova` meanwhile.
    pub(crate) unsafe fn lookup(&self, iova: Iova) -> Option<Translation> {
        // SAFETY: The caller's promise.
        unsafe { self.find(iova) }?.ok()
    }

    /// Finds the physical address of `iova`, if it is in a page of 4 KiB and below the reach
    /// of the lowest region-third table. For all others, call [`DmaTable::lookup`].
    ///
    /// # Safety
    ///
    /// As for [`DmaTable::lookup`]; `low` belongs to this tree.
    #[inline]
    pub(crate) unsafe fn lookup_page(&self, low: Low, iova: Iova) -> Option<Phys> {
        let entry = self.pages(self.leaf(low, iova)?).cell(iova).load();
        (entry & PAGE_INVALID == 0).then(|| translation(entry, PAGE_SIZE, iova).phys)
    }

    /// The translation of `iova`, or the size in bytes of the empty entry that covers it.
    /// `None` above the reach.
    ///
    /// # Safety
    ///
    /// Nobody unlinks a table that covers `iova` meanwhile.
    #[inline]
    unsafe fn find(&self, iova: Iova) -> Option<Result<Translation, u64>> {
        let root = self.root();
        (iova.0 <= root.depth.reach()).then(|| self.find_below(root, iova))
    }

    #[inline]
    fn find_below(&self, root: Root, iova: Iova) -> Result<Translation, u64> {
        let segments = self.segments_of(root, iova)?;
        let segment = segments.cell(iova).load_acquire();
        if segment & (ENTRY_INVALID | LARGE) == LARGE {
            return Ok(translation(segment, LARGE_PAGE_SIZE, iova));
        }
        let pages = self
            .peek::<Segment>(segments.cell(iova))
            .ok_or(span::<Segment>())?;
        let page = pages.cell(iova).load();
        if page & PAGE_INVALID == 0 {
            Ok(translation(page, PAGE_SIZE, iova))
        } else {
            Err(span::<Page>())
        }
    }

    /// The segment table for `iova`, or the size in bytes of the empty entry in its place.
    #[inline]
    fn segments_of(&self, root: Root, iova: Iova) -> Result<Table<'_, Segment, M>, u64> {
        let third = self.third_table(root, iova)?;
        self.peek::<Third>(third.cell(iova)).ok_or(span::<Third>())
    }

    /// The region-third table for `iova`, or the size in bytes of the empty entry in its
    /// place.
    #[inline]
    fn third_table(&self, root: Root, iova: Iova) -> Result<Table<'_, Third, M>, u64> {
        // SAFETY: The root is a table of the level that belongs to its depth.
        let second: Table<'_, Second, M> = unsafe {
            match root.depth {
                Depth::Third => return Ok(Table::new(&self.memory, root.origin)),
                Depth::Second => Table::new(&self.memory, root.origin),
                Depth::First => {
                    let top: Table<'_, First, M> = Table::new(&self.memory, root.origin);
                    self.peek::<First>(top.cell(iova)).ok_or(span::<First>())?
                }
            }
        };
        self.peek::<Second>(second.cell(iova))
            .ok_or(span::<Second>())
    }

    /// The range of the first run of non-empty entries at or after that of `iova`.
    fn used_in(&self, segments: &Table<'_, Segment, M>, iova: Iova) -> Option<(Iova, Iova)> {
        let rest = &segments.cells()[Segment::index(iova)..];
        let used = |cell: &M::Cell| !self.is_empty::<Segment>(cell.load());
        let first = rest.iter().position(used)? as u64;
        let count = rest
            .iter()
            .skip(first as usize)
            .take_while(|cell| used(cell))
            .count() as u64;
        let start = (iova.0 & !(LARGE_PAGE_SIZE - 1)).wrapping_add(first << LARGE_PAGE_SHIFT);
        let last = start
            .wrapping_add(count << LARGE_PAGE_SHIFT)
            .wrapping_sub(1);
        Some((Iova(start), Iova(last)))
    }

    /// The table that an entry of level `L` points to, if it points to one that is
    /// not vacant.
    #[inline]
    pub(super) fn peek<L: Upper>(&self, cell: &M::Cell) -> Option<Table<'_, L::Below, M>> {
        let origin = L::origin(cell.load_acquire())?;
        // SAFETY: By the invariant of the tree the entry points to a table of
        // the level below; it stays, because only an owner of all that it spans
        // unlinks it, and the caller owns a part of that or is a reader.
        (origin != L::vacant(&self.vacant)).then(|| unsafe { Table::new(&self.memory, origin) })
    }
}
