// SPDX-License-Identifier: GPL-2.0

//! I/O translation tables: format, walk, map, unmap, lookup, growth and reclaim.
//!
//! A radix tree as the machine reads it. Entries are 64 bits, big endian, in
//! tables that are aligned to their size:
//!
//! | table         | entries | one entry spans | top of an aperture of |
//! |---------------|---------|-----------------|-----------------------|
//! | region first  | 2048    | 8 PiB           | `[0, 2^64 - 1]`       |
//! | region second | 2048    | 4 TiB           | `[0, 2^53 - 1]`       |
//! | region third  | 2048    | 2 GiB           | `[0, 2^42 - 1]`       |
//! | segment       | 2048    | 1 MiB           |                       |
//! | page          | 256     | 4 KiB           |                       |
//!
//! A segment entry points to a page table, or maps a large page (1 MiB) by itself.
//!
//! # The protocol that keeps it right
//!
//! *Ranges have owners.* The IOMMU API gives every IOVA range to one caller at
//! a time: between a map of a range and its unmap nobody else maps, unmaps or
//! looks up anything in it. Calls on disjoint ranges run at the same time and
//! take no lock. Breaking the rule garbles the translations of the ranges that
//! are fought over; a table that two callers fight over could be freed under
//! one of them, which is why [`DmaTable::map`], [`DmaTable::unmap`] and
//! [`DmaTable::lookup`] are unsafe.
//!
//! *Leaf entries belong to the owner of the range*, so they are read and
//! written with plain 64-bit accesses, run by run, one walk a leaf table. A map
//! reads before it writes and refuses a run that holds a live entry; an unmap
//! stops at the first entry that is not live.
//!
//! *Tables are shared between neighbours.* A missing one is installed with a
//! compare-and-exchange from "empty", release on success: its empty entries are
//! visible before it can be reached. Whoever loses frees its own and goes on
//! with the winner's. Walkers read table entries with acquire.
//!
//! *A table is unlinked only by an unmap that covers all that it spans.* That
//! caller owns every range in it, so no other map, unmap or lookup is inside
//! nor can enter. The unlinked table keeps its content and goes to the
//! [`DeferFree`] of the call, which must not free it before the machine has
//! forgotten the range (the refresh that follows the unmap, or the full one
//! after a queue of them).
//!
//! *An emptied entry may stay valid.* A hypervisor that shadows the tables may
//! overlook that a segment or region entry has become invalid: QEMU reports to VFIO
//! unmapped pages only where it finds a page table with invalid entries. A tree
//! in use by such a function ([`DmaTable::keep_entries_valid`]) therefore lets an
//! entry that it empties point to a *vacant* table ([`Vacant`]), which all trees
//! share and which maps nothing. Its page entries differ from those of an empty
//! page table in one more bit ([`PAGE_VACANT`]), so that the fast paths, which
//! write only over [`PAGE_INVALID`], pass it by. All other walks take an entry
//! that points to a vacant table for empty. An entry that goes from a vacant
//! table to a mapping goes from valid to valid, so it needs a refresh:
//! in such a domain every device is refreshed after a map.
//!
//! *The tree only grows at the top.* [`DmaTable::widen`] makes the missing tops,
//! each with the one below as its entry 0, and swings the root once, release. A walker that
//! still holds the old root finds the same entries below it, since an IOVA that
//! it looks for lies below the old reach. The old top stays part of the tree
//! for as long as the tree lives: machines may have it registered. So the first
//! entry of a region-first or region-second table on the way to IOVA 0 is never
//! unlinked.
//!
//! *Readers own no range.* Whoever only looks at the tree ([`DmaTable::walk`])
//! takes the walk lock: one word that counts readers and the unmaps that may
//! unlink. A reader counts itself, then waits for such unmaps to end; an unmap
//! that finds a reader counted unlinks nothing, and only empties entries, as if
//! it covered each table in parts. Both count by one read-modify-write, so
//! either the unmap sees the reader, or the reader sees the unmap and waits. No
//! table that a reader finds from the root is unlinked before it leaves. What it
//! reads of leaf entries may be old as soon as it was read. An unmap looks for
//! readers before it counts itself, so a reader waits only for the unmaps that
//! were under way when it came.
//!
//! *The machine* reads entries at any time. A 64-bit aligned store is atomic to
//! it. It may keep what it read until a refresh; the stores here
//! come before the refresh because the caller puts a full barrier between them
//! (`domain.rs`, which also says why none is missed).
//!
//! The file knows nothing of devices and instructions. It is compiled into the
//! kernel, into tests on the host, and (with narrow tables) into a model
//! checker for threads, through the traits [`Memory`] and [`Cell`].

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

/// log2 of the smallest page that can be mapped, in bytes.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// The smallest page that can be mapped, in bytes.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of what one segment entry spans, in bytes: the size of a large page.
pub(crate) const LARGE_PAGE_SHIFT: u32 = Segment::SHIFT;
/// The size of a large page in bytes.
pub(crate) const LARGE_PAGE_SIZE: u64 = 1 << LARGE_PAGE_SHIFT;

/// Index bits of a page table. The model checker explores narrow tables: the
/// protocol does not depend on the width, the number of states does.
const PAGE_TABLE_BITS: u32 = if cfg!(loom) { 1 } else { 8 };
/// Index bits of segment and region tables.
const UPPER_TABLE_BITS: u32 = if cfg!(loom) { 1 } else { 11 };

/// Invalid bit of a segment- or region-table entry.
const ENTRY_INVALID: u64 = 0x20;
/// Invalid bit of a page-table entry.
const PAGE_INVALID: u64 = 0x400;
/// A page entry of a vacant table: invalid, and unlike that of an empty page
/// table. The machine looks at no other bit of an invalid entry.
const PAGE_VACANT: u64 = PAGE_INVALID | PROTECTED;
/// Writes are refused by the machine (leaf entries).
const PROTECTED: u64 = 0x200;
/// Format control of a segment entry: it maps a large page.
const LARGE: u64 = 0x400;
/// Table length of a region entry: all 2048 entries are there.
const FULL_LENGTH: u64 = 0x3;

/// An I/O virtual address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Iova(pub(crate) u64);

/// A physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Phys(pub(crate) u64);

/// What a device may do through a mapping: the bits of its entries that say so.
/// The format cannot refuse reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access(u64);

impl Access {
    /// Device writes are refused by the machine.
    pub(crate) const READ_ONLY: Self = Access(PROTECTED);

    /// Devices may read and write.
    pub(crate) const READ_WRITE: Self = Access(0);

    /// Reads, and writes if the lowest bit of `denied` is clear.
    #[inline]
    pub(crate) const fn denying_writes(denied: u64) -> Self {
        Access((denied & 1) << PROTECTED.trailing_zeros())
    }

    const fn bits(self) -> u64 {
        self.0
    }

    const fn of(entry: u64) -> Self {
        Access(entry & PROTECTED)
    }
}

/// Which table is the top of a tree, and so how far it reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub(crate) enum Depth {
    /// Three levels: region third, segment, page.
    Third = 1,
    /// Four levels, from region second.
    Second = 2,
    /// Five levels, from region first.
    First = 3,
}

impl Depth {
    /// The last IOVA (inclusive) that a tree of this depth reaches.
    pub(crate) const fn reach(self) -> u64 {
        match self {
            Depth::Third => last_of::<Third>(),
            Depth::Second => last_of::<Second>(),
            Depth::First => last_of::<First>(),
        }
    }

    /// The least depth that reaches `last` (inclusive).
    pub(crate) const fn for_reach(last: u64) -> Self {
        if last <= Depth::Third.reach() {
            Depth::Third
        } else if last <= Depth::Second.reach() {
            Depth::Second
        } else {
            Depth::First
        }
    }

    /// How many levels of tables that are, the page tables included.
    pub(crate) const fn levels(self) -> u32 {
        self as u32 + 2
    }

    const fn deeper(self) -> Option<Self> {
        match self {
            Depth::Third => Some(Depth::Second),
            Depth::Second => Some(Depth::First),
            Depth::First => None,
        }
    }
}

/// The two kinds of table, as the allocator sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// A page table.
    Page,
    /// A segment or region table.
    Upper,
}

impl Shape {
    const fn bits(self) -> u32 {
        match self {
            Shape::Page => PAGE_TABLE_BITS,
            Shape::Upper => UPPER_TABLE_BITS,
        }
    }

    /// How many entries a table has.
    pub(crate) const fn entries(self) -> usize {
        1 << self.bits()
    }

    /// The size, and so the alignment, of a table in bytes.
    pub(crate) const fn bytes(self) -> usize {
        self.entries() * 8
    }

    /// The value of every entry of an empty table.
    pub(crate) const fn empty(self) -> u64 {
        match self {
            Shape::Page => PAGE_INVALID,
            Shape::Upper => ENTRY_INVALID,
        }
    }
}

/// A level of the tree. Each is a type, so that an entry of one cannot be read
/// as an entry of another.
pub(crate) trait Level {
    /// log2 of the bytes that one entry spans.
    const SHIFT: u32;
    /// The kind of table at this level.
    const SHAPE: Shape;

    /// The index of the entry that translates `iova` in a table of this level.
    #[inline]
    fn index(iova: Iova) -> usize {
        (iova.0 >> Self::SHIFT) as usize & (Self::SHAPE.entries() - 1)
    }
}

/// The last address (inclusive) in the span of a table of level `L` that begins
/// at 0: what the table spans less one byte, as a region-first table spans 2^64.
const fn last_of<L: Level>() -> u64 {
    u64::MAX >> (u64::BITS - L::SHIFT - L::SHAPE.bits())
}

/// The bytes that one entry of a table of level `L` spans.
const fn span<L: Level>() -> u64 {
    1 << L::SHIFT
}

/// A level whose entries point to tables.
pub(crate) trait Upper: Level {
    /// The level of the tables that entries point to.
    type Below: Level;
    /// Table type and length, as they stand in an entry.
    const TYPE: u64;
    /// Bits that are clear in an entry that points to a table.
    const NOT_TABLE: u64;

    /// The vacant table of the level below.
    fn vacant(vacant: &Vacant) -> Phys;

    /// The table that `entry` points to.
    #[inline]
    fn origin(entry: u64) -> Option<Phys> {
        if entry & Self::NOT_TABLE == 0 {
            // Nothing else is set in it, and a displacement takes no instruction.
            Some(Phys(entry.wrapping_sub(Self::TYPE)))
        } else {
            None
        }
    }

    /// The entry that points to the table at `origin`.
    #[inline]
    fn entry(origin: Phys) -> u64 {
        origin.0 | Self::TYPE
    }
}

/// Page tables: 256 entries of 4 KiB.
pub(crate) struct Page;
/// Segment tables: 2048 entries of 1 MiB.
pub(crate) struct Segment;
/// Region-third tables: 2048 entries of 2 GiB.
pub(crate) struct Third;
/// Region-second tables: 2048 entries of 4 TiB.
pub(crate) struct Second;
/// Region-first tables: 2048 entries of 8 PiB.
pub(crate) struct First;

impl Level for Page {
    const SHIFT: u32 = PAGE_SHIFT;
    const SHAPE: Shape = Shape::Page;
}

impl Level for Segment {
    const SHIFT: u32 = Page::SHIFT + PAGE_TABLE_BITS;
    const SHAPE: Shape = Shape::Upper;
}

impl Upper for Segment {
    type Below = Page;
    const TYPE: u64 = 0x0;
    const NOT_TABLE: u64 = ENTRY_INVALID | LARGE;

    #[inline]
    fn vacant(vacant: &Vacant) -> Phys {
        vacant.page
    }
}

macro_rules! region_level {
    ($level:ident over $below:ident, table type $ty:literal, vacant $vacant:ident) => {
        impl Level for $level {
            const SHIFT: u32 = $below::SHIFT + UPPER_TABLE_BITS;
            const SHAPE: Shape = Shape::Upper;
        }

        impl Upper for $level {
            type Below = $below;
            const TYPE: u64 = $ty | FULL_LENGTH;
            const NOT_TABLE: u64 = ENTRY_INVALID;

            #[inline]
            fn vacant(vacant: &Vacant) -> Phys {
                vacant.$vacant
            }
        }
    };
}

region_level!(Third over Segment, table type 0x4, vacant segment);
region_level!(Second over Third, table type 0x8, vacant third);
region_level!(First over Second, table type 0xc, vacant second);

/// Tables that map nothing although no entry of theirs is invalid but those of
/// the page table: see the head of this file. They are read by machines and
/// walkers, and written by nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Vacant {
    page: Phys,
    segment: Phys,
    third: Phys,
    second: Phys,
}

impl Vacant {
    /// Makes the tables in `memory`, in which they stay.
    ///
    /// # Errors
    ///
    /// [`MapError::NoMemory`]; tables that were made before are given back.
    pub(crate) fn new<M: Memory>(memory: &M, flags: M::Flags) -> Result<Self, MapError> {
        let shapes = [Shape::Page, Shape::Upper, Shape::Upper, Shape::Upper];
        let mut tables = [Phys(0); 4];
        for (at, shape) in shapes.into_iter().enumerate() {
            match memory.alloc_unset(shape, flags) {
                Some(table) => tables[at] = table,
                None => {
                    for (table, shape) in tables.into_iter().zip(shapes).take(at) {
                        // SAFETY: It is new, and nobody knows of it.
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

    /// Gives the tables back.
    ///
    /// # Safety
    ///
    /// They came from `memory`, and no tree that knows them is left.
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

/// One 64-bit word that the machine or another thread may read at any time.
pub(crate) trait Cell {
    /// Reads an entry that the caller owns.
    fn load(&self) -> u64;
    /// Reads an entry that points to a table, before that table is read.
    fn load_acquire(&self) -> u64;
    /// Writes an entry that the caller owns.
    fn store(&self, value: u64);
    /// Replaces `old` by `new` and publishes all that was written before.
    ///
    /// # Errors
    ///
    /// What is there instead, if it is not `old`; read with acquire.
    fn install(&self, old: u64, new: u64) -> Result<(), u64>;
    /// Adds `by`, wrapping around; acquire and release. Returns what was there.
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
/// [`Memory::alloc`] returns memory of `shape.entries()` cells that nobody else
/// uses, at a physical address aligned to `shape.bytes()`, every cell holding
/// `shape.empty()`. [`Memory::cells`] points to that memory until it is given
/// back.
pub(crate) unsafe trait Memory {
    /// An entry in a table.
    type Cell: Cell;
    /// How an allocation may be made (may it sleep, is it charged).
    type Flags: Copy;

    /// A new empty table, or `None` if there is no memory.
    fn alloc(&self, shape: Shape, flags: Self::Flags) -> Option<Phys>;

    /// A new table whose cells hold anything, for a caller who writes them all.
    fn alloc_unset(&self, shape: Shape, flags: Self::Flags) -> Option<Phys> {
        self.alloc(shape, flags)
    }

    /// Gives a table back.
    ///
    /// # Safety
    ///
    /// `table` came from [`Memory::alloc`] with the same shape, was not given
    /// back yet, and nobody can reach it, neither here nor in the machine.
    unsafe fn free(&self, table: Phys, shape: Shape);

    /// The first cell of a table.
    ///
    /// # Safety
    ///
    /// `table` came from [`Memory::alloc`] and was not given back yet.
    unsafe fn cells(&self, table: Phys) -> NonNull<Self::Cell>;
}

/// Takes the tables that an unmap unlinked.
pub(crate) trait DeferFree {
    /// Whether it takes any. If not, nothing is unlinked.
    const TAKES: bool = true;

    /// Keeps `table` until the machine cannot be reading it any more, then
    /// gives it back.
    fn defer_free(&mut self, table: Phys, shape: Shape);
}

/// Takes no tables.
struct Nothing;

impl DeferFree for Nothing {
    const TAKES: bool = false;

    fn defer_free(&mut self, _table: Phys, _shape: Shape) {}
}

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
    /// What is left after `bytes` were mapped.
    #[inline]
    fn advance(&mut self, bytes: u64) {
        self.iova.0 = self.iova.0.wrapping_add(bytes);
        self.phys.0 = self.phys.0.wrapping_add(bytes);
        self.size = self.size.wrapping_sub(bytes);
    }
}

/// A translation that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    /// The physical address of the IOVA that was asked for, offset included.
    pub(crate) phys: Phys,
    /// The size of the page that holds it, in bytes.
    pub(crate) page_size: u64,
    /// What the device may do.
    pub(crate) access: Access,
}

/// The top table: its origin and depth in one word, so that a walker reads both
/// at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    /// The physical address of the top table.
    pub(crate) origin: Phys,
    /// Which table it is.
    pub(crate) depth: Depth,
}

impl Root {
    #[inline]
    fn pack(self) -> u64 {
        self.origin.0 | self.depth as u64
    }

    #[inline]
    fn unpack(word: u64) -> Self {
        Root {
            origin: Phys(word & !3),
            depth: match word & 3 {
                1 => Depth::Third,
                2 => Depth::Second,
                _ => Depth::First,
            },
        }
    }
}

/// A table of level `L` in the tree.
///
/// # Invariants
///
/// `first` is the first of as many cells as a table of level `L` has entries,
/// alive for `'t`.
struct Table<'t, L: Level, M: Memory> {
    first: NonNull<M::Cell>,
    level: PhantomData<(&'t M::Cell, L)>,
}

impl<'t, L: Level, M: Memory> Table<'t, L, M> {
    /// # Safety
    ///
    /// `origin` is a table of level `L` that came from `memory` and stays for
    /// `'t`.
    #[inline]
    unsafe fn new(memory: &'t M, origin: Phys) -> Self {
        // INVARIANT: The caller's promise.
        Table {
            // SAFETY: The caller's promise.
            first: unsafe { memory.cells(origin) },
            level: PhantomData,
        }
    }

    /// All entries.
    #[inline]
    fn cells(&self) -> &'t [M::Cell] {
        // SAFETY: By the invariant.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), L::SHAPE.entries()) }
    }

    /// The entry that translates `iova`.
    #[inline]
    fn cell(&self, iova: Iova) -> &'t M::Cell {
        // `index` is masked to the length of `cells`, so this does not panic,
        // and the compiler knows.
        &self.cells()[L::index(iova)]
    }

    /// The entries from `iova` on, for `size` bytes but not past the end.
    #[inline]
    fn run(&self, iova: Iova, size: u64) -> &'t [M::Cell] {
        let rest = &self.cells()[L::index(iova)..];
        let wanted = (size >> L::SHIFT) as usize;
        &rest[..core::cmp::min(wanted, rest.len())]
    }
}

/// The origin of a page table that stays for as long as the caller owns a part
/// of what it spans. (An address rather than a [`Table`]: in an option that
/// takes a test for null more.)
///
/// # Invariants
///
/// It is one.
struct Leaf(Phys);

/// How much of `size` bytes (not 0) from `iova` on lies in the table of level
/// `L` that translates `iova`.
#[inline]
fn part_in<L: Level>(iova: Iova, size: u64) -> u64 {
    let to_end = !iova.0 & last_of::<L>();
    core::cmp::min(size.wrapping_sub(1), to_end).wrapping_add(1)
}

/// How many entries a turn of the loops below takes: the compiler unrolls turns
/// of a fixed length, so that an entry costs little more than its access.
const TURN: usize = 16;

/// Whether all of these page entries are empty; not those of a vacant table, nor
/// of no entry. One AND an entry.
#[inline]
fn all_empty<C: Cell>(run: &[C]) -> bool {
    let and = |all, cell: &C| all & cell.load();
    let (turns, rest) = run.as_chunks::<TURN>();
    let all = turns
        .iter()
        .fold(PAGE_VACANT, |all, turn| turn.iter().fold(all, and));
    rest.iter().fold(all, and) == PAGE_INVALID
}

/// Whether all of these page entries are valid. One OR an entry.
#[inline]
fn all_live<C: Cell>(run: &[C]) -> bool {
    let or = |any, cell: &C| any | cell.load();
    let (turns, rest) = run.as_chunks::<TURN>();
    let any = turns.iter().fold(0, |any, turn| turn.iter().fold(any, or));
    rest.iter().fold(any, or) & PAGE_INVALID == 0
}

/// Writes consecutive pages, the first one `entry`. A store and an addition an
/// entry.
#[inline]
fn fill<C: Cell>(run: &[C], entry: u64) {
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

/// Empties entries. A store an entry.
#[inline]
fn clear<C: Cell>(run: &[C]) {
    let (turns, rest) = run.as_chunks::<TURN>();
    for turn in turns {
        turn.iter().for_each(|cell| cell.store(PAGE_INVALID));
    }
    rest.iter().for_each(|cell| cell.store(PAGE_INVALID));
}

/// Keeps tables in the tree while there are readers (see the head of this file).
/// One word counts, from its lowest bit on, unmaps that may unlink, unmaps that
/// may not as there is a reader, and readers.
struct WalkLock<C: Cell>(C);

impl<C: Cell> WalkLock<C> {
    const UNLINKER: u64 = 1;
    const BESIDE: u64 = 1 << 16;
    const READER: u64 = 1 << 32;

    /// Lets an unmap in, and says whether it may unlink tables: not while there is
    /// a reader. It looks before it counts itself, so unmaps that come later do
    /// not keep a reader waiting.
    #[inline]
    fn unmap(&self) -> (WalkGuard<'_, C>, bool) {
        if self.0.load_acquire() < Self::READER {
            let before = self.0.change(Self::UNLINKER);
            let guard = self.guard(Self::UNLINKER);
            if before < Self::READER {
                return (guard, true);
            }
        }
        self.0.change(Self::BESIDE);
        (self.guard(Self::BESIDE), false)
    }

    /// Lets a reader in, after the last unmap that may unlink. `wait` may end
    /// the wait with an error.
    fn read<E>(&self, wait: impl FnMut() -> Result<(), E>) -> Result<WalkGuard<'_, C>, E> {
        self.enter(Self::BESIDE, wait)
    }

    /// Waits until every unmap has ended that began before.
    fn wait_for_unmaps<E>(&self, wait: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        self.enter(Self::READER, wait).map(|_| ())
    }

    /// Counts a reader, and waits until nobody is counted below `limit`.
    fn enter<E>(
        &self,
        limit: u64,
        mut wait: impl FnMut() -> Result<(), E>,
    ) -> Result<WalkGuard<'_, C>, E> {
        let mut now = self.0.change(Self::READER).wrapping_add(Self::READER);
        let guard = self.guard(Self::READER);
        while now % limit != 0 {
            wait()?;
            now = self.0.load_acquire();
        }
        Ok(guard)
    }

    fn guard(&self, who: u64) -> WalkGuard<'_, C> {
        WalkGuard { lock: self, who }
    }
}

/// Somebody who holds the walk lock.
struct WalkGuard<'t, C: Cell> {
    lock: &'t WalkLock<C>,
    who: u64,
}

impl<C: Cell> Drop for WalkGuard<'_, C> {
    #[inline]
    fn drop(&mut self) {
        self.lock.0.change(self.who.wrapping_neg());
    }
}

/// A tree of translation tables.
///
/// # Invariants
///
/// `root` holds a [`Root`] whose table came from `memory`; `low` is the
/// region-third table on the way from there to IOVA 0. Every entry of a
/// table in the tree is empty, or points to a table of the level below that
/// came from `memory`, or (page and segment entries) maps memory.
pub(crate) struct DmaTable<M: Memory> {
    memory: M,
    root: M::Cell,
    /// The region-third table that begins at IOVA 0. It was the first top, so it
    /// stays.
    low: Phys,
    walk_lock: WalkLock<M::Cell>,
    vacant: Vacant,
    /// Whether emptied entries stay valid: 0 or 1.
    keeps_valid: M::Cell,
}

/// Somebody who looks at a tree and owns nothing in it. As long as it is there,
/// no table is unlinked, so that it should not stay for long.
pub(crate) struct Walk<'t, M: Memory> {
    tree: &'t DmaTable<M>,
    _guard: WalkGuard<'t, M::Cell>,
}

impl<M: Memory> Walk<'_, M> {
    /// What the tree says of `iova` now: a translation, or how large the empty
    /// entry is that it ends in, in bytes (its span is aligned to that). `None`
    /// above the reach of the tree.
    pub(crate) fn find(&self, iova: Iova) -> Option<Result<Translation, u64>> {
        // SAFETY: No table is unlinked while there is a reader.
        unsafe { self.tree.find(iova) }
    }

    /// The next IOVAs, the first and the last one (inclusive), at or after `iova`
    /// that segment entries translate which are not empty. Whole entries are
    /// meant, of one segment table.
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
    /// An empty tree of at least the given depth. `vacant` are the vacant tables
    /// of `memory`, which stay for as long as the tree. `cell` makes a cell that
    /// holds a value.
    ///
    /// # Errors
    ///
    /// [`MapError::NoMemory`].
    pub(crate) fn new(
        memory: M,
        vacant: Vacant,
        depth: Depth,
        flags: M::Flags,
        cell: impl Fn(u64) -> M::Cell,
    ) -> Result<Self, MapError> {
        let origin = memory
            .alloc(Shape::Upper, flags)
            .ok_or(MapError::NoMemory)?;
        let top = Root {
            origin,
            depth: Depth::Third,
        };
        // INVARIANT: The only table is new and empty.
        let tree = DmaTable {
            memory,
            root: cell(top.pack()),
            low: origin,
            walk_lock: WalkLock(cell(0)),
            vacant,
            keeps_valid: cell(0),
        };
        tree.widen(depth, flags)?;
        Ok(tree)
    }

    /// The allocator.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// The top table as it is now. A later one reaches further and finds all
    /// that this one finds.
    #[inline]
    pub(crate) fn root(&self) -> Root {
        Root::unpack(self.root.load_acquire())
    }

    /// From the return of this on, entries that are emptied stay valid (see the
    /// head of this file). `wait` is called as long as unmaps are under way that
    /// began before.
    ///
    /// # Errors
    ///
    /// That of `wait`.
    pub(crate) fn keep_entries_valid<E>(
        &self,
        wait: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        // Whoever empties an upper entry takes the walk lock before it looks, so
        // it sees this store, or is waited for.
        self.keeps_valid.store(1);
        self.walk_lock.wait_for_unmaps(wait)
    }

    /// Whether emptied entries stay valid, and so maps must be made known to every
    /// device.
    #[inline]
    pub(crate) fn keeps_entries_valid(&self) -> bool {
        self.keeps_valid.load() != 0
    }

    /// What an entry of level `L` holds once it was emptied.
    #[inline]
    fn emptied<L: Upper>(&self) -> u64 {
        if self.keeps_entries_valid() {
            L::entry(L::vacant(&self.vacant))
        } else {
            ENTRY_INVALID
        }
    }

    /// Whether an entry of level `L` is empty.
    #[inline]
    fn is_empty<L: Upper>(&self, entry: u64) -> bool {
        entry == ENTRY_INVALID || entry == L::entry(L::vacant(&self.vacant))
    }

    /// Makes the tree reach at least as far as `depth` does. Maps, unmaps and
    /// lookups may run meanwhile.
    ///
    /// # Errors
    ///
    /// [`MapError::NoMemory`]; the tree is as it was.
    pub(crate) fn widen(&self, depth: Depth, flags: M::Flags) -> Result<(), MapError> {
        loop {
            let old = self.root();
            if old.depth >= depth {
                return Ok(());
            }
            let (new, made) = self.stack(old, depth, flags)?;
            // INVARIANT: Entry 0 of each new top points to the one below, down to
            // the old one; the others are empty.
            if self.root.install(old.pack(), new.pack()).is_ok() {
                return Ok(());
            }
            self.free_tops(made);
        }
    }

    /// Makes the tops from above `old` up to `depth`, and says which tables were
    /// made.
    fn stack(
        &self,
        old: Root,
        depth: Depth,
        flags: M::Flags,
    ) -> Result<(Root, [Option<Phys>; 2]), MapError> {
        let mut made = [None; 2];
        let mut top = old;
        for slot in &mut made {
            let deeper = match top.depth.deeper() {
                Some(deeper) if top.depth < depth => deeper,
                _ => break,
            };
            let Some(origin) = self.memory.alloc(Shape::Upper, flags) else {
                self.free_tops(made);
                return Err(MapError::NoMemory);
            };
            *slot = Some(origin);
            // SAFETY: The table is new. All upper tables have the same shape, so
            // the level named here only has to be an upper one.
            let table: Table<'_, First, M> = unsafe { Table::new(&self.memory, origin) };
            table.cells()[0].store(match deeper {
                Depth::First => First::entry(top.origin),
                _ => Second::entry(top.origin),
            });
            top = Root {
                origin,
                depth: deeper,
            };
        }
        Ok((top, made))
    }

    /// Gives tops back that were not published.
    fn free_tops(&self, made: [Option<Phys>; 2]) {
        for origin in made.into_iter().flatten() {
            // SAFETY: The caller made the table, and nobody else knows of it.
            unsafe { self.memory.free(origin, Shape::Upper) };
        }
    }

    /// Maps one page if its page table is there and the entry is empty: what most maps
    /// are, in few instructions. If not, nothing has changed, and
    /// [`DmaTable::map`] does it or says why not.
    ///
    /// # Safety
    ///
    /// The caller owns the page (see the head of this file).
    #[inline]
    pub(crate) unsafe fn map_page(&self, iova: Iova, phys: Phys, access: Access) -> bool {
        match self.leaf(iova) {
            Some(leaf) if (iova.0 | phys.0) & (PAGE_SIZE - 1) == 0 => {
                let cell = self.pages(leaf).cell(iova);
                // Not if it is that of a vacant table.
                let empty = cell.load() == PAGE_INVALID;
                if empty {
                    cell.store(phys.0 | access.bits());
                }
                empty
            }
            _ => false,
        }
    }

    /// Maps `count` pages if one page table holds them and is there, and the entries are empty.
    /// If not, nothing has changed, and [`DmaTable::map`] does it or says why
    /// not.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of this file).
    #[inline]
    pub(crate) unsafe fn map_in_leaf(
        &self,
        iova: Iova,
        phys: Phys,
        count: usize,
        access: Access,
    ) -> bool {
        let aligned = (iova.0 | phys.0) & (PAGE_SIZE - 1) == 0;
        match self.leaf_run(iova, count) {
            Some(run) if aligned && all_empty(run) => {
                fill(run, phys.0 | access.bits());
                true
            }
            _ => false,
        }
    }

    /// Maps a range. Returns how many bytes were mapped, from the start of the
    /// range on, and why it stopped if that is not all. A run of entries is
    /// written only after all of it was found empty; tables that were made stay
    /// and are used later.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of this file), which lies in the
    /// reach of the tree.
    #[inline(never)]
    pub(crate) unsafe fn map(
        &self,
        mapping: Mapping,
        flags: M::Flags,
    ) -> (u64, Result<(), MapError>) {
        let mut rest = mapping;
        while rest.size != 0 {
            let done = self
                .segment_table(rest.iova, flags)
                .and_then(|segments| self.map_in(&segments, rest, flags));
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

    /// The page table that translates `iova`, if it is there already and `iova`
    /// is as low as most are.
    #[inline]
    fn leaf(&self, iova: Iova) -> Option<Leaf> {
        if iova.0 > Depth::Third.reach() {
            return None;
        }
        // SAFETY: By the invariant of the tree `low` is a region-third table
        // and stays, and an entry points to a table of the level below, which
        // stays as well: the caller owns a part of what it spans.
        unsafe {
            let third: Table<'_, Third, M> = Table::new(&self.memory, self.low);
            let origin = Third::origin(third.cell(iova).load_acquire())?;
            let segments: Table<'_, Segment, M> = Table::new(&self.memory, origin);
            let origin = Segment::origin(segments.cell(iova).load_acquire())?;
            Some(Leaf(origin))
        }
    }

    /// The entries of a page table.
    #[inline]
    fn pages(&self, leaf: Leaf) -> Table<'_, Page, M> {
        // SAFETY: By the invariant of `Leaf`.
        unsafe { Table::new(&self.memory, leaf.0) }
    }

    /// The entries of `count` pages, if one page table holds all of them and it
    /// is there already.
    #[inline]
    fn leaf_run(&self, iova: Iova, count: usize) -> Option<&[M::Cell]> {
        let pages = self.pages(self.leaf(iova)?);
        pages.cells()[Page::index(iova)..].get(..count)
    }

    /// Maps what of `mapping` lies in one segment table. On an error says how
    /// many bytes were mapped before it.
    #[inline]
    fn map_in(
        &self,
        segments: &Table<'_, Segment, M>,
        mapping: Mapping,
        flags: M::Flags,
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
                let bytes = self
                    .map_pages(segments.cell(rest.iova), rest, flags)
                    .map_err(|error| (part.wrapping_sub(rest.size), error))?;
                rest.advance(bytes);
            }
        }
        Ok(part)
    }

    /// Maps what of `mapping` lies in the page table below a segment entry.
    /// Returns how many bytes that is.
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

    /// Maps all that an empty segment entry spans, which holds `before`, the first
    /// page by `entry`. The caller owns all of it, so the page table is filled
    /// before anybody can see it, and nobody else makes one.
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

    /// Unmaps one page if its page table is there and it is mapped. If not,
    /// nothing has changed, and [`DmaTable::unmap`] does it.
    ///
    /// # Safety
    ///
    /// The caller owns the page (see the head of this file).
    #[inline]
    pub(crate) unsafe fn unmap_page(&self, iova: Iova) -> bool {
        match self.leaf(iova) {
            Some(leaf) if iova.0 & (PAGE_SIZE - 1) == 0 => {
                let cell = self.pages(leaf).cell(iova);
                let live = cell.load() & PAGE_INVALID == 0;
                if live {
                    cell.store(PAGE_INVALID);
                }
                live
            }
            _ => false,
        }
    }

    /// Unmaps a range, up to the first part of it that is not mapped or that is
    /// mapped by a large page which the range does not cover. Returns how many bytes
    /// were unmapped. Allocates nothing.
    ///
    /// The machine may go on using what was unmapped, and reads the tables in
    /// `unlinked`, until it was refreshed.
    ///
    /// # Safety
    ///
    /// The caller owns the range (see the head of this file), which is not empty
    /// and lies in the reach of the tree.
    #[inline]
    pub(crate) unsafe fn unmap(&self, iova: Iova, size: u64, unlinked: &mut impl DeferFree) -> u64 {
        match self.leaf_run(iova, (size >> PAGE_SHIFT) as usize) {
            // A page table that is covered whole goes as it is.
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
        // Less than a segment entry spans covers no table.
        if size < LARGE_PAGE_SIZE {
            return self.unmap_range(iova, size, &mut Nothing);
        }
        let (_guard, may_unlink) = self.walk_lock.unmap();
        if may_unlink {
            self.unmap_range(iova, size, unlinked)
        } else {
            self.unmap_keeping_tables(iova, size)
        }
    }

    /// Unmaps a range while there is a reader: all tables stay.
    #[cold]
    fn unmap_keeping_tables(&self, iova: Iova, size: u64) -> u64 {
        self.unmap_range(iova, size, &mut Nothing)
    }

    #[inline]
    fn unmap_range(&self, iova: Iova, size: u64, unlinked: &mut impl DeferFree) -> u64 {
        let root = self.root();
        match root.depth {
            // SAFETY: The root is a table of the level that its depth says, and
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
    unsafe fn unmap_top<L: UnmapRange>(
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

    /// Lets a reader in. `wait` is called as long as unmaps are under way that
    /// began before; it should let others run.
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

    /// Finds the translation of `iova`.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that holds `iova` meanwhile.
    pub(crate) unsafe fn lookup(&self, iova: Iova) -> Option<Translation> {
        // SAFETY: The caller's promise.
        unsafe { self.find(iova) }?.ok()
    }

    /// The translation of `iova`, or how many bytes the empty entry spans that
    /// it ends in. `None` above the reach.
    ///
    /// # Safety
    ///
    /// Nobody unlinks a table that holds `iova` meanwhile.
    #[inline]
    unsafe fn find(&self, iova: Iova) -> Option<Result<Translation, u64>> {
        let root = self.root();
        (iova.0 <= root.depth.reach()).then(|| self.find_below(root, iova))
    }

    /// The segment table that translates `iova`, or how many bytes the empty entry
    /// spans that is there instead.
    #[inline]
    fn segments_of(&self, root: Root, iova: Iova) -> Result<Table<'_, Segment, M>, u64> {
        let third = self.third_table(root, iova)?;
        self.peek::<Third>(third.cell(iova)).ok_or(span::<Third>())
    }

    /// What the first run of entries at or after that of `iova` translates which
    /// are not empty.
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

    /// The region-third table that translates `iova`, or how many bytes the empty
    /// entry spans that is there instead.
    #[inline]
    fn third_table(&self, root: Root, iova: Iova) -> Result<Table<'_, Third, M>, u64> {
        // SAFETY: The root is a table of the level that its depth says.
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

    /// The segment table that translates `iova`, made if it is missing.
    #[inline]
    fn segment_table(
        &self,
        iova: Iova,
        flags: M::Flags,
    ) -> Result<Table<'_, Segment, M>, (u64, MapError)> {
        let root = self.root();
        let third = match root.depth {
            // SAFETY: The root is a table of the level that its depth says.
            Depth::Third => Ok(unsafe { Table::new(&self.memory, root.origin) }),
            _ => self.make_third_table(root, iova, flags),
        };
        third
            .and_then(|third: Table<'_, Third, M>| self.below::<Third>(third.cell(iova), flags))
            .map_err(|error| (0, error))
    }

    /// The region-third table below a deeper root, made if it is missing.
    fn make_third_table(
        &self,
        root: Root,
        iova: Iova,
        flags: M::Flags,
    ) -> Result<Table<'_, Third, M>, MapError> {
        // SAFETY: The root is a table of the level that its depth says.
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

    /// The table that an entry of level `L` points to, if it points to one that is
    /// not vacant.
    #[inline]
    fn peek<L: Upper>(&self, cell: &M::Cell) -> Option<Table<'_, L::Below, M>> {
        let origin = L::origin(cell.load_acquire())?;
        // SAFETY: By the invariant of the tree the entry points to a table of
        // the level below; it stays, because only an owner of all that it spans
        // unlinks it, and the caller owns a part of that or is a reader.
        (origin != L::vacant(&self.vacant)).then(|| unsafe { Table::new(&self.memory, origin) })
    }

    /// The table that an entry of level `L` points to, made if it is missing.
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

    /// Puts a new table into an empty entry, or finds the one that somebody
    /// else put there.
    #[cold]
    fn install<L: Upper>(
        &self,
        cell: &M::Cell,
        flags: M::Flags,
    ) -> Result<Table<'_, L::Below, M>, MapError> {
        let before = cell.load();
        if !self.is_empty::<L>(before) {
            // A large page, or a table that has come meanwhile.
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
        // SAFETY: By the invariant of the tree; it stays, as the caller owns a
        // part of what it spans.
        Ok(unsafe { Table::new(&self.memory, origin) })
    }

    /// Maps large pages into segment entries for as long as they are empty. Returns the
    /// bytes that were mapped.
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

    /// Empties segment entries for as long as they map large pages. Returns the bytes
    /// that were unmapped.
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

    /// Takes the table below an entry out of the tree. The caller owns all that it
    /// spans.
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
    unsafe fn free_tree<L: FreeTree>(&self, table: Phys) {
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
        // SAFETY: The root is a table of the level that its depth says. `self`
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

fn translation(entry: u64, page_size: u64, iova: Iova) -> Translation {
    let offset = page_size - 1;
    Translation {
        phys: Phys((entry & !offset) | (iova.0 & offset)),
        page_size,
        access: Access::of(entry),
    }
}

/// Unmapping, level by level.
trait UnmapRange: Level + Sized {
    /// Unmaps what of the range lies in `table`. Returns the bytes that were
    /// unmapped, from the start on.
    fn unmap_range<M: Memory, R: DeferFree>(
        tree: &DmaTable<M>,
        table: &Table<'_, Self, M>,
        iova: Iova,
        size: u64,
        unlinked: &mut R,
    ) -> u64;
}

impl UnmapRange for Page {
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
}

impl UnmapRange for Segment {
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
            let swept = match tree.peek::<Segment>(cell) {
                Some(pages) if R::TAKES && part == LARGE_PAGE_SIZE && all_live(pages.cells()) => {
                    // The page table goes as it is.
                    tree.unlink::<Segment>(cell, unlinked);
                    part
                }
                Some(pages) => Page::unmap_range(tree, &pages, at, part, unlinked),
                None if part == LARGE_PAGE_SIZE => {
                    tree.unmap_large(table.run(at, size.wrapping_sub(done)))
                }
                None => 0,
            };
            done = done.wrapping_add(swept);
            if swept < part {
                break;
            }
        }
        done
    }
}

macro_rules! unmap_in_region {
    ($level:ident) => {
        impl UnmapRange for $level {
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
        }
    };
}

unmap_in_region!(Third);
unmap_in_region!(Second);
unmap_in_region!(First);

/// Unmaps in a region table, and unlinks the tables below it that are covered
/// whole.
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
    L::Below: UnmapRange + Top,
    M: Memory,
    R: DeferFree,
{
    let size = part_in::<L>(iova, size);
    let mut done = 0u64;
    while done < size {
        let at = Iova(iova.0.wrapping_add(done));
        let part = part_in::<L::Below>(at, size.wrapping_sub(done));
        let cell = table.cell(at);
        let swept = match tree.peek::<L>(cell) {
            Some(below) => L::Below::unmap_range(tree, &below, at, part, unlinked),
            None => 0,
        };
        done = done.wrapping_add(swept);
        if swept != part {
            break;
        }
        let whole = part.wrapping_sub(1) == last_of::<L::Below>();
        if R::TAKES && whole && !L::Below::stays(at) {
            tree.unlink::<L>(cell, unlinked);
        }
    }
    done
}

/// Which tables a machine may have registered as its top.
trait Top: Level {
    /// Whether the table of this level that begins at `iova` stays for as long
    /// as the tree: it may have been a top.
    fn stays(iova: Iova) -> bool;
}

impl Top for Segment {
    #[inline]
    fn stays(_iova: Iova) -> bool {
        false
    }
}

impl Top for Third {
    #[inline]
    fn stays(iova: Iova) -> bool {
        iova.0 == 0
    }
}

impl Top for Second {
    #[inline]
    fn stays(iova: Iova) -> bool {
        iova.0 == 0
    }
}

/// Freeing a tree that nobody uses any more.
trait FreeTree: Level + Sized {
    /// Frees all below `table`.
    ///
    /// # Safety
    ///
    /// `table` is of this level; nobody can reach it any more.
    unsafe fn free_below<M: Memory>(tree: &DmaTable<M>, table: Phys);
}

impl FreeTree for Page {
    unsafe fn free_below<M: Memory>(_tree: &DmaTable<M>, _table: Phys) {}
}

macro_rules! free_upper {
    ($level:ident) => {
        impl FreeTree for $level {
            unsafe fn free_below<M: Memory>(tree: &DmaTable<M>, table: Phys) {
                // SAFETY: The caller's promise.
                let cells: Table<'_, $level, M> = unsafe { Table::new(&tree.memory, table) };
                for cell in cells.cells() {
                    let origin = $level::origin(cell.load_acquire());
                    let vacant = $level::vacant(&tree.vacant);
                    if let Some(below) = origin.filter(|below| *below != vacant) {
                        // SAFETY: By the invariant of the tree it is a table of
                        // the level below; it is reached from here only.
                        unsafe { tree.free_tree::<<$level as Upper>::Below>(below) };
                    }
                }
            }
        }
    };
}

free_upper!(Segment);
free_upper!(Third);
free_upper!(Second);
free_upper!(First);
