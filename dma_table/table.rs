// SPDX-License-Identifier: GPL-2.0

//! Tables in memory: allocation, entries, and loops over runs of entries.

use core::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
};

use super::{
    format::*,
    map::MapError, //
};

/// One 64-bit word that the machine or another thread may read at any time.
pub(crate) trait Cell {
    /// Reads an entry that the caller owns.
    fn load(&self) -> u64;
    /// Reads an entry that points to a table, before that table is read.
    fn load_acquire(&self) -> u64;
    /// Writes an entry that the caller owns.
    fn store(&self, value: u64);
    /// Replaces `old` by `new`, and publishes all writes before.
    ///
    /// # Errors
    ///
    /// The current value, read with acquire, if it is not `old`.
    fn install(&self, old: u64, new: u64) -> Result<(), u64>;
    /// Adds `by`, wrapping around; acquire and release. Returns the previous value.
    fn change(&self, by: u64) -> u64;
}

// The kernel's own `Atomic` calls a helper for each access; these compile to
// one instruction, and on this machine to a plain one for all but `install`
// (loads are acquire, stores release there).
impl Cell for AtomicU64 {
    #[inline(always)]
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Relaxed)
    }

    #[inline(always)]
    fn load_acquire(&self) -> u64 {
        AtomicU64::load(self, Ordering::Acquire)
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Ordering::Relaxed);
    }

    #[inline(always)]
    fn install(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    #[inline(always)]
    fn change(&self, by: u64) -> u64 {
        self.fetch_add(by, Ordering::AcqRel)
    }
}

/// Where tables live.
///
/// # Safety
///
/// [`Memory::alloc`] returns memory of `shape.entries()` cells that nobody else uses, at a
/// physical address aligned to `shape.bytes()`. Every cell contains `shape.empty()`.
/// [`Memory::cells`] points to that memory until it is freed.
pub(crate) unsafe trait Memory {
    /// An entry in a table.
    type Cell: Cell;
    /// How an allocation may be made (may it sleep, is it charged).
    type Flags: Copy;

    /// A new empty table, or `None` if there is no memory.
    fn alloc(&self, shape: Shape, flags: Self::Flags) -> Option<Phys>;

    /// A new table with undefined content, for a caller who writes every cell.
    fn alloc_unset(&self, shape: Shape, flags: Self::Flags) -> Option<Phys> {
        self.alloc(shape, flags)
    }

    /// Frees a table.
    ///
    /// # Safety
    ///
    /// `table` came from [`Memory::alloc`] with the same shape and was not freed yet, and
    /// neither the driver nor the machine can reach it.
    unsafe fn free(&self, table: Phys, shape: Shape);

    /// The first cell of a table.
    ///
    /// # Safety
    ///
    /// `table` came from [`Memory::alloc`] and was not freed yet.
    unsafe fn cells(&self, table: Phys) -> NonNull<Self::Cell>;
}

/// A table of level `L` in the tree.
///
/// # Invariants
///
/// `first` is the first cell of a table of level `L`, whose cells live for `'t`.
pub(super) struct Table<'t, L: Level, M: Memory> {
    first: NonNull<M::Cell>,
    level: PhantomData<(&'t M::Cell, L)>,
}

impl<'t, L: Level, M: Memory> Table<'t, L, M> {
    /// # Safety
    ///
    /// `origin` is a table of level `L` that came from `memory` and is not freed in `'t`.
    #[inline]
    pub(super) unsafe fn new(memory: &'t M, origin: Phys) -> Self {
        // INVARIANT: The caller's promise.
        Table {
            // SAFETY: The caller's promise.
            first: unsafe { memory.cells(origin) },
            level: PhantomData,
        }
    }

    /// All entries.
    #[inline]
    pub(super) fn cells(&self) -> &'t [M::Cell] {
        // SAFETY: By the invariant.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), L::SHAPE.entries()) }
    }

    /// The entry that translates `iova`.
    #[inline]
    pub(super) fn cell(&self, iova: Iova) -> &'t M::Cell {
        // `index` is masked to the length of `cells`. The compiler knows that, and so
        // emits no bounds check.
        &self.cells()[L::index(iova)]
    }

    /// The entries for `size` bytes from `iova` on, up to the end of the table.
    #[inline]
    pub(super) fn run(&self, iova: Iova, size: u64) -> &'t [M::Cell] {
        let rest = &self.cells()[L::index(iova)..];
        let wanted = (size >> L::SHIFT) as usize;
        &rest[..core::cmp::min(wanted, rest.len())]
    }
}

/// How much of `size` bytes (not 0) from `iova` on lies in the table of level
/// `L` that translates `iova`.
#[inline]
pub(super) fn part_in<L: Level>(iova: Iova, size: u64) -> u64 {
    let to_end = !iova.0 & last_of::<L>();
    core::cmp::min(size.wrapping_sub(1), to_end).wrapping_add(1)
}

/// The number of entries per iteration of the loops below. The compiler unrolls
/// iterations of a fixed length, so an entry costs little more than its access.
const TURN: usize = 16;

/// Whether all of these page entries are empty. False for entries of a vacant table, and
/// without any entry. Costs one AND per entry.
#[inline]
pub(super) fn all_empty<C: Cell>(run: &[C]) -> bool {
    let and = |all, cell: &C| all & cell.load();
    let (turns, rest) = run.as_chunks::<TURN>();
    let all = turns
        .iter()
        .fold(PAGE_VACANT, |all, turn| turn.iter().fold(all, and));
    rest.iter().fold(all, and) == PAGE_INVALID
}

/// Whether all of these page entries are valid. Costs one OR per entry.
#[inline]
pub(super) fn all_live<C: Cell>(run: &[C]) -> bool {
    let or = |any, cell: &C| any | cell.load();
    let (turns, rest) = run.as_chunks::<TURN>();
    let any = turns.iter().fold(0, |any, turn| turn.iter().fold(any, or));
    rest.iter().fold(any, or) & PAGE_INVALID == 0
}

/// Writes entries of consecutive pages, the first one `entry`. Costs a store and an
/// addition per entry.
#[inline]
pub(super) fn fill<C: Cell>(run: &[C], entry: u64) {
    let next = |entry: u64, cell: &C| {
        cell.store(entry);
        entry.wrapping_add(PAGE_SIZE)
    };
    let (turns, rest) = run.as_chunks::<TURN>();
    let entry = turns
        .iter()
        .fold(entry, |entry, turn| turn.iter().fold(entry, next));
    rest.iter().fold(entry, next);
}

/// Empties entries. Costs a store per entry.
#[inline]
pub(super) fn clear<C: Cell>(run: &[C]) {
    let (turns, rest) = run.as_chunks::<TURN>();
    for turn in turns {
        turn.iter().for_each(|cell| cell.store(PAGE_INVALID));
    }
    rest.iter().for_each(|cell| cell.store(PAGE_INVALID));
}

/// Tables that map nothing although only the entries of the page table are invalid (see
/// the head of `dma_table.rs`). Machines and walkers read them, and nobody writes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vacant {
    pub(super) page: Phys,
    pub(super) segment: Phys,
    pub(super) third: Phys,
    pub(super) second: Phys,
}

impl Vacant {
    /// Allocates the tables from `memory`.
    ///
    /// # Errors
    ///
    /// [`MapError::NoMemory`]; tables allocated so far are freed.
    pub(crate) fn new<M: Memory>(memory: &M, flags: M::Flags) -> Result<Self, MapError> {
        let shapes = [Shape::Page, Shape::Upper, Shape::Upper, Shape::Upper];
        let mut tables = [Phys(0); 4];
        for (at, shape) in shapes.into_iter().enumerate() {
            match memory.alloc_unset(shape, flags) {
                Some(table) => tables[at] = table,
                None => {
                    for (table, shape) in tables.into_iter().zip(shapes).take(at) {
                        // SAFETY: It is new, and nobody else can reach it.
                        unsafe { memory.free(table, shape) }
                    }
                    return Err(MapError::NoMemory);
                }
            }
        }
        let [page, segment, third, second] = tables;
        let vacant = Vacant {
            page,
            segment,
            third,
            second,
        };
        // SAFETY: The tables are new, and of the levels named.
        unsafe {
            fill_with::<Page, M>(memory, page, PAGE_VACANT);
            fill_with::<Segment, M>(memory, segment, Segment::entry(page));
            fill_with::<Third, M>(memory, third, Third::entry(segment));
            fill_with::<Second, M>(memory, second, Second::entry(third));
        }
        Ok(vacant)
    }

    /// Frees the tables.
    ///
    /// # Safety
    ///
    /// They came from `memory`, and no tree uses them any more.
    pub(crate) unsafe fn free<M: Memory>(self, memory: &M) {
        // SAFETY: The caller's promise.
        unsafe {
            memory.free(self.page, Shape::Page);
            memory.free(self.segment, Shape::Upper);
            memory.free(self.third, Shape::Upper);
            memory.free(self.second, Shape::Upper);
        }
    }
}

/// Sets every entry of a table.
///
/// # Safety
///
/// `table` is a table of level `L` in `memory`, and nobody else uses it.
unsafe fn fill_with<L: Level, M: Memory>(memory: &M, table: Phys, value: u64) {
    // SAFETY: The caller's promise.
    let table: Table<'_, L, M> = unsafe { Table::new(memory, table) };
    table.cells().iter().for_each(|cell| cell.store(value));
}
