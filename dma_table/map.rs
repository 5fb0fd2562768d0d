// SPDX-License-Identifier: GPL-2.0

//! Mapping.

use core::hint::cold_path;

use super::{
    format::*,
    table::{
        all_empty,
        fill,
        part_in,
        Cell,
        Memory,
        Table, //
    },
    DmaTable, //
};

/// Why a map stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapError {
    /// The range holds a live mapping (`EADDRINUSE`).
    InUse,
    /// No memory for a table (`ENOMEM`).
    NoMemory,
}

/// A range to map: `size` bytes from `iova` on to `phys` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    /// The first IOVA, aligned to the page size.
    pub(crate) iova: Iova,
    /// The first physical address, aligned to the page size.
    pub(crate) phys: Phys,
    /// Bytes, a multiple of the page size, not 0.
    pub(crate) size: u64,
    /// What the device may do.
    pub(crate) access: Access,
    /// Whether large pages may be used: `iova`, `phys` and `size` are then multiples
    /// of [`LARGE_PAGE_SIZE`].
    pub(crate) large: bool,
}

impl Mapping {
    /// The rest, after `bytes` were mapped.
    #[inline]
    fn advance(&mut self, bytes: u64) {
        self.iova.0 = self.iova.0.wrapping_add(bytes);
        self.phys.0 = self.phys.0.wrapping_add(bytes);
        self.size = self.size.wrapping_sub(bytes);
    }
}

/// The region-third table that begins at IOVA 0: where the fast paths begin. It never
/// changes, so a copy of it saves reading the tree.
#[derive(Clone, Copy)]
pub(crate) struct Low(pub(super) Phys);

/// The origin of a page table that is not unlinked as long as the caller owns a part of
/// its range. (An address rather than a [`Table`]: an option of that would cost one more
/// test for null.)
///
/// # Invariants
///
/// It is one.
pub(super) struct Leaf(Phys);

/// `None`, marked as unlikely for the layout of the code.
#[inline(always)]
fn seldom<T>() -> Option<T> {
    cold_path();
    None
}

/// The empty entry of a page that the caller owns.
pub(crate) struct EmptyPage<'a, M: Memory>(&'a M::Cell);

impl<M: Memory> EmptyPage<'_, M> {
    /// Maps the page.
    #[inline]
    pub(crate) fn fill(self, phys: Phys, access: Access) {
        debug_assert!(phys.0 & (PAGE_SIZE - 1) == 0);
        self.0.store(phys.0 | access.bits());
    }
}

impl<M: Memory> DmaTable<M> {
    /// The entry of a page, if its page table is present and the entry is empty. Most maps
    /// need no more than this, in few instructions. For the others, call [`DmaTable::map`].
    ///
    /// # Safety
    ///
    /// The caller owns the page (see the head of `dma_table.rs`), and maps nothing else to
    /// it before it fills the entry. The address is aligned to a page; the core checks that
    /// for every map. `low` belongs to this tree.
    #[inline]
    pub(crate) unsafe fn empty_page(&self, low: Low, iova: Iova) -> Option<EmptyPage<'_, M>> {
        debug_assert!(iova.0 & (PAGE_SIZE - 1) == 0);
        let cell = self.pages(self.leaf(low, iova)?).cell(iova);
        // Not if it is that of a vacant table.
        if cell.load() != PAGE_INVALID {
            return seldom();
        }
        Some(EmptyPage(cell))
    }

    /// Maps `count` pages if they are in one page table that is present, and their entries
    /// are empty. Otherwise changes nothing; then call [`DmaTable::map`].
    ///
    /// # Safety
    ///
    /// As for [`DmaTable::empty_page`]; the caller owns all pages, and both addresses are
    /// aligned.
    #[inline]
    pub(crate) unsafe fn map_present(
        &self,
        low: Low,
        iova: Iova,
        phys: Phys,
        count: usize,
        access: Access,
    ) -> bool {
        debug_assert!((iova.0 | phys.0) & (PAGE_SIZE - 1) == 0);
        match self.leaf_run(low, iova, count) {
            Some(run) if all_empty(run) => {
                fill(run, phys.0 | access.bits());
                true
            }
            _ => false,
        }
    }

    /// Maps a range. Returns the number of bytes mapped from the start of the range, and
    /// the error if that is not all. Writes a run of entries only after it found all of
    /// them empty. New tables are kept on errors, for later maps.
    ///
    /// If a large page replaces an empty page table, this calls `forget` with the first
    /// IOVA of the large page. `forget` makes the machine forget the large page's range,
    /// and returns whether it has.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of `dma_table.rs`), which lies in the
    /// reach of the tree.
    #[inline(never)]
    pub(crate) unsafe fn map(
        &self,
        mapping: Mapping,
        flags: M::Flags,
        mut forget: impl FnMut(Iova) -> bool,
    ) -> (u64, Result<(), MapError>) {
        let mut rest = mapping;
        while rest.size != 0 {
            let done = self
                .segment_table(rest.iova, flags)
                .and_then(|segments| self.map_in(&segments, rest, flags, &mut forget));
            match done {
                Ok(bytes) => rest.advance(bytes),
                Err((bytes, error)) => {
                    rest.advance(bytes);
                    return (mapping.size.wrapping_sub(rest.size), Err(error));
                }
            }
        }
        (mapping.size, Ok(()))
    }

    /// Maps the part of `mapping` that lies in one segment table. An error comes with the
    /// number of bytes mapped before it.
    #[inline]
    fn map_in(
        &self,
        segments: &Table<'_, Segment, M>,
        mapping: Mapping,
        flags: M::Flags,
        forget: &mut impl FnMut(Iova) -> bool,
    ) -> Result<u64, (u64, MapError)> {
        let part = part_in::<Segment>(mapping.iova, mapping.size);
        let mut rest = mapping;
        rest.size = part;
        while rest.size != 0 {
            let done = if rest.large {
                self.map_large(segments.run(rest.iova, rest.size), rest)
            } else {
                0
            };
            rest.advance(done);
            if rest.size != 0 {
                let segment = segments.cell(rest.iova);
                let bytes = if rest.large && self.replace_table(segment, rest, forget) {
                    LARGE_PAGE_SIZE
                } else {
                    self.map_pages(segment, rest, flags)
                        .map_err(|error| (part.wrapping_sub(rest.size), error))?
                };
                rest.advance(bytes);
            }
        }
        Ok(part)
    }

    /// Maps the part of `mapping` that lies in the page table below a segment entry.
    /// Returns its size in bytes.
    #[inline]
    fn map_pages(
        &self,
        segment: &M::Cell,
        mapping: Mapping,
        flags: M::Flags,
    ) -> Result<u64, MapError> {
        let entry = mapping.phys.0 | mapping.access.bits();
        let before = segment.load();
        if part_in::<Page>(mapping.iova, mapping.size) == LARGE_PAGE_SIZE
            && self.is_empty::<Segment>(before)
        {
            return self.map_whole(segment, before, entry, flags);
        }
        let pages = self.below::<Segment>(segment, flags)?;
        let run = pages.run(mapping.iova, mapping.size);
        if !all_empty(run) {
            return Err(MapError::InUse);
        }
        fill(run, entry);
        Ok((run.len() as u64) << PAGE_SHIFT)
    }

    /// Maps the whole range of an empty segment entry, whose value is `before`; the first
    /// page gets `entry`. The caller owns the whole range, so this fills the page table
    /// before it installs it, and nobody else installs one.
    #[inline]
    fn map_whole(
        &self,
        segment: &M::Cell,
        before: u64,
        entry: u64,
        flags: M::Flags,
    ) -> Result<u64, MapError> {
        let origin = self
            .memory
            .alloc_unset(Shape::Page, flags)
            .ok_or(MapError::NoMemory)?;
        // SAFETY: The table is new.
        let pages: Table<'_, Page, M> = unsafe { Table::new(&self.memory, origin) };
        fill(pages.cells(), entry);
        // INVARIANT: Every entry of the new table maps memory.
        match segment.install(before, Segment::entry(origin)) {
            Ok(()) => Ok(LARGE_PAGE_SIZE),
            Err(_) => {
                // SAFETY: The table was not published.
                unsafe { self.memory.free(origin, Shape::Page) };
                Err(MapError::InUse)
            }
        }
    }

    /// Maps large pages in segment entries, up to the first one that is not empty. Returns
    /// the number of bytes mapped.
    fn map_large(&self, run: &[M::Cell], mapping: Mapping) -> u64 {
        let mut entry = mapping.phys.0 | LARGE | mapping.access.bits();
        let mut bytes = 0u64;
        for cell in run {
            if !self.is_empty::<Segment>(cell.load()) {
                break;
            }
            cell.store(entry);
            entry = entry.wrapping_add(LARGE_PAGE_SIZE);
            bytes = bytes.wrapping_add(LARGE_PAGE_SIZE);
        }
        bytes
    }

    /// Maps a large page over an empty page table, and frees the table. Returns false, and
    /// leaves the table in the tree, if it is not empty, if there is a reader, or if the
    /// machine does not forget the table. The caller owns the range of the large page.
    #[cold]
    fn replace_table(
        &self,
        segment: &M::Cell,
        mapping: Mapping,
        forget: &mut impl FnMut(Iova) -> bool,
    ) -> bool {
        let before = segment.load();
        match self.peek::<Segment>(segment) {
            Some(pages) if all_empty(pages.cells()) => {}
            _ => return false,
        }
        {
            let (_guard, may_unlink) = self.walk_lock.unmap();
            if !may_unlink {
                return false;
            }
            segment.store(mapping.phys.0 | LARGE | mapping.access.bits());
        }
        if !forget(mapping.iova) {
            // The machine may know the large page. The caller maps the same memory by the
            // table, so that does no harm.
            segment.store(before);
            return false;
        }
        if let Some(pages) = Segment::origin(before) {
            // SAFETY: The table was part of the tree, and nothing leads to it any more: the
            // caller owns its range, no reader is inside, and the machine has forgotten it.
            unsafe { self.memory.free(pages, Shape::Page) };
        }
        true
    }

    /// The page table for `iova`, if it is present and `iova` is below the reach of the
    /// lowest region-third table, as most are.
    #[inline]
    pub(super) fn leaf(&self, low: Low, iova: Iova) -> Option<Leaf> {
        if iova.0 > Depth::Third.reach() {
            return seldom();
        }
        // SAFETY: By the invariant of the tree `low` is a region-third table that is never
        // unlinked, and an entry points to a table of the level below. That is not
        // unlinked either, because the caller owns a part of its range.
        unsafe {
            let third: Table<'_, Third, M> = Table::new(&self.memory, low.0);
            let origin = Third::origin(third.cell(iova).load_acquire()).or_else(seldom)?;
            let segments: Table<'_, Segment, M> = Table::new(&self.memory, origin);
            let origin = Segment::origin(segments.cell(iova).load_acquire()).or_else(seldom)?;
            Some(Leaf(origin))
        }
    }

    /// The entries of a page table.
    #[inline]
    pub(super) fn pages(&self, leaf: Leaf) -> Table<'_, Page, M> {
        // SAFETY: By the invariant of `Leaf`.
        unsafe { Table::new(&self.memory, leaf.0) }
    }

    /// The entries of `count` pages, if they are all in one page table that is present.
    #[inline]
    pub(super) fn leaf_run(&self, low: Low, iova: Iova, count: usize) -> Option<&[M::Cell]> {
        let pages = self.pages(self.leaf(low, iova)?);
        pages.cells()[Page::index(iova)..].get(..count)
    }

    /// The segment table for `iova`, allocated if it is missing.
    #[inline]
    fn segment_table(
        &self,
        iova: Iova,
        flags: M::Flags,
    ) -> Result<Table<'_, Segment, M>, (u64, MapError)> {
        let root = self.root();
        let third = match root.depth {
            // SAFETY: The root is a table of the level that belongs to its depth.
            Depth::Third => Ok(unsafe { Table::new(&self.memory, root.origin) }),
            _ => self.make_third_table(root, iova, flags),
        };
        third
            .and_then(|third: Table<'_, Third, M>| self.below::<Third>(third.cell(iova), flags))
            .map_err(|error| (0, error))
    }

    /// The region-third table for `iova` below a deeper root, allocated if it is missing.
    fn make_third_table(
        &self,
        root: Root,
        iova: Iova,
        flags: M::Flags,
    ) -> Result<Table<'_, Third, M>, MapError> {
        // SAFETY: The root is a table of the level that belongs to its depth.
        let second: Table<'_, Second, M> = unsafe {
            if root.depth == Depth::First {
                let top: Table<'_, First, M> = Table::new(&self.memory, root.origin);
                self.below::<First>(top.cell(iova), flags)?
            } else {
                Table::new(&self.memory, root.origin)
            }
        };
        self.below::<Second>(second.cell(iova), flags)
    }

    /// The table that an entry of level `L` points to, allocated if it is missing.
    #[inline]
    fn below<L: Upper>(
        &self,
        cell: &M::Cell,
        flags: M::Flags,
    ) -> Result<Table<'_, L::Below, M>, MapError> {
        match self.peek::<L>(cell) {
            Some(table) => Ok(table),
            None => self.install::<L>(cell, flags),
        }
    }

    /// Installs a new table in an empty entry, or returns the one that another caller has
    /// installed meanwhile.
    #[cold]
    fn install<L: Upper>(
        &self,
        cell: &M::Cell,
        flags: M::Flags,
    ) -> Result<Table<'_, L::Below, M>, MapError> {
        let before = cell.load();
        if !self.is_empty::<L>(before) {
            // A large page, or a table installed meanwhile.
            return self.peek::<L>(cell).ok_or(MapError::InUse);
        }
        let shape = L::Below::SHAPE;
        let origin = self.memory.alloc(shape, flags).ok_or(MapError::NoMemory)?;
        // INVARIANT: The new table is empty.
        let origin = match cell.install(before, L::entry(origin)) {
            Ok(()) => origin,
            Err(winner) => {
                // SAFETY: The table was not published.
                unsafe { self.memory.free(origin, shape) };
                L::origin(winner).ok_or(MapError::InUse)?
            }
        };
        // SAFETY: By the invariant of the tree; it is not unlinked, because the caller owns
        // a part of its range.
        Ok(unsafe { Table::new(&self.memory, origin) })
    }
}
