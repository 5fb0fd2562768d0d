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
//! take no lock. Two callers that break the rule corrupt the translations of the
//! range, and one of them could free a table that the other one still uses. This is
//! why [`DmaTable::map`], [`DmaTable::unmap`] and [`DmaTable::lookup`] are unsafe.
//!
//! *Leaf entries belong to the owner of the range*, so they are read and
//! written with plain 64-bit accesses, run by run, with one walk per leaf table. A
//! map reads before it writes, and refuses a run that contains a live entry. An unmap
//! stops at the first entry that is not live.
//!
//! *Tables are shared between neighbours.* A missing table is installed with a
//! compare-and-exchange from "empty", with release on success: its empty entries are
//! visible before it can be reached. A caller that loses this race frees its own table
//! and continues with the other one. Walkers read table entries with acquire.
//!
//! *A table is unlinked only by an unmap that covers everything that it spans, or by the
//! map of a large page over an empty page table.* This caller owns every range in the
//! table, so no other map, unmap or lookup is inside or can enter. A table that an unmap
//! unlinks keeps its content and goes to the [`DeferFree`] of the call, which must not
//! free it before the machine has forgotten the range (by the refresh that follows the
//! unmap, or by the full flush that follows queued unmaps). A map makes the machine forget
//! the table before it returns. If the machine refuses, the map puts the table back and
//! fills it: a machine that knows the large page then translates the same as by the table.
//!
//! *An emptied entry may stay valid.* A hypervisor that shadows the tables may
//! overlook that a segment or region entry has become invalid: QEMU reports unmapped
//! pages to VFIO only where it finds a page table with invalid entries. A tree
//! in use by such a function ([`DmaTable::keep_entries_valid`]) therefore points an
//! entry that it empties to a *vacant* table ([`Vacant`]), which all trees
//! share and which maps nothing. Its page entries have one more bit set than those of
//! an empty page table (`format::PAGE_VACANT`), so the fast paths, which write only
//! over `PAGE_INVALID`, never write there. All other walks treat an entry that points
//! to a vacant table as empty. An entry that changes from a vacant table to a mapping
//! stays valid, so the change needs a refresh: in such a domain every device is
//! refreshed after a map.
//!
//! *The tree only grows at the top.* [`DmaTable::widen`] allocates the missing top
//! tables, each with the one below as its entry 0, and replaces the root once, with
//! release. A walker that still holds the old root finds the same entries below it,
//! because its IOVA is in the old reach. The old top stays part of the tree as long as
//! the tree lives, because machines may have it registered. So the first entry of a
//! region-first or region-second table on the way to IOVA 0 is never unlinked.
//!
//! *Readers own no range.* A reader of the tree ([`DmaTable::walk`]) takes the walk
//! lock: one word that counts readers and the unmaps that may unlink. A reader counts
//! itself, then waits for such unmaps to end. An unmap that finds a reader unlinks
//! nothing and only empties entries, as if it covered each table only in part. Both
//! count with one read-modify-write, so either the unmap finds the reader, or the
//! reader finds the unmap and waits. No table that a reader reaches from the root is
//! unlinked before the reader leaves. A leaf entry may change as soon as the reader has
//! read it. An unmap looks for readers before it counts itself, so a reader waits only
//! for unmaps that were under way when it arrived.
//!
//! *The machine* reads entries at any time. An aligned 64-bit store is atomic for it.
//! It may keep what it has read until a refresh. The caller executes a full barrier
//! between the stores here and the refresh (`address_space.rs`, which also explains why
//! no refresh is missed).
//!
//! This file knows nothing of devices and instructions. Through the traits [`Memory`]
//! and [`Cell`] it is compiled into the kernel, into tests on the host, and (with narrow
//! tables) into a model checker for threads.

pub(crate) mod dump;
mod format;
mod map;
// Not in the tests on the host.
#[cfg(CONFIG_S390)]
pub(crate) mod memory;
mod table;
mod unmap;
mod walk;
pub(crate) mod walk_lock;

pub(crate) use format::{
    Access,
    Depth,
    Iova,
    Phys,
    Root,
    Shape,
    Translation,
    LARGE_PAGE_SHIFT,
    LARGE_PAGE_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE, //
};
pub(crate) use map::{
    Low,
    MapError,
    Mapping, //
};
pub(crate) use table::{
    Cell,
    Memory,
    Vacant, //
};
pub(crate) use unmap::DeferFree;

use format::{
    First,
    Second,
    Upper,
    ENTRY_INVALID, //
};
use table::Table;
use walk_lock::WalkLock;

/// The bytes of a cache line.
pub(crate) const LINE: usize = 256;

/// A tree of translation tables.
///
/// # Invariants
///
/// `root` holds a [`Root`] whose table came from `memory`; `low` is the
/// region-third table on the way from there to IOVA 0. Every entry of a
/// table in the tree is empty, or points to a table of the level below that
/// came from `memory`, or (page and segment entries) maps memory.
#[repr(C)]
pub(crate) struct DmaTable<M: Memory> {
    // These two are written when tables are allocated and freed, the others hardly ever:
    // the array puts a cache line between them. (With an aligned type, the compiler would
    // realign the stack of every function that makes a table.)
    memory: M,
    walk_lock: WalkLock<M::Cell>,
    _apart: [u64; LINE / 8],
    root: M::Cell,
    /// The region-third table that begins at IOVA 0. It was the first top, so it is never
    /// unlinked.
    low: Low,
    vacant: Vacant,
    /// Whether emptied entries stay valid: 0 or 1.
    keeps_valid: M::Cell,
}

impl<M: Memory> DmaTable<M> {
    /// An empty tree of at least the given depth. `vacant` are the vacant tables of
    /// `memory`, which must outlive the tree. `cell` makes a cell with a value.
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
            walk_lock: WalkLock(cell(0)),
            _apart: [0; LINE / 8],
            root: cell(top.pack()),
            low: Low(origin),
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

    /// Where the fast paths begin.
    pub(crate) fn low(&self) -> Low {
        self.low
    }

    /// The current top table. A later one reaches further, and leads to everything that
    /// this one leads to.
    #[inline]
    pub(crate) fn root(&self) -> Root {
        Root::unpack(self.root.load_acquire())
    }

    /// After this returns, entries that are emptied stay valid (see the head of this
    /// file). Calls `wait` while unmaps that began before are under way.
    ///
    /// # Errors
    ///
    /// That of `wait`.
    pub(crate) fn keep_entries_valid<E>(
        &self,
        wait: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        // An unmap that empties an upper entry takes the walk lock before it reads this
        // flag. So either it sees this store, or this waits for it.
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
}
