// SPDX-License-Identifier: GPL-2.0

//! Table memory that detects misuse: freed tables are poisoned and kept, so that a later
//! use panics, and every table must be freed exactly once.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::dma_table::{DeferFree, Memory, Phys, Shape, Vacant};
use crate::walker::Storage;

/// The first physical address; it is high, so that high bits of an origin are tested.
const BASE: u64 = 0x00ab_c000_0000_0000;
/// Distance between tables: the alignment of the largest one
const STRIDE: u64 = 0x4000;
/// Fills freed and uninitialized tables: a valid entry at every level that points to no
/// table
const POISON: u64 = 0xdead_dead_dead_d000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// Part of the tree, or soon to be installed.
    Live,
    /// Unlinked. A machine that was not refreshed may still read it.
    Unlinked,
    /// Freed.
    Freed,
    /// A vacant table, shared by all trees.
    Shared,
}

struct Table {
    cells: Arc<[AtomicU64]>,
    shape: Shape,
    life: Life,
}

#[derive(Default)]
struct State {
    tables: Vec<Table>,
    /// How many more allocations succeed; `None` means all.
    budget: Option<u64>,
    refused: bool,
}

impl State {
    fn table(&mut self, origin: u64) -> Option<&mut Table> {
        let offset = origin.checked_sub(BASE)?;
        match offset % STRIDE {
            0 => self.tables.get_mut((offset / STRIDE) as usize),
            _ => None,
        }
    }

    /// Moves a table to the next state.
    fn turn(&mut self, origin: Phys, shape: Shape, from: &[Life], to: Life) -> &Table {
        let table = self.table(origin.0).expect("no table at this address");
        assert_eq!(table.shape, shape, "shape of {origin:x?}");
        assert!(
            from.contains(&table.life),
            "{origin:x?}: from {:?} to {to:?}",
            table.life
        );
        table.life = to;
        table
    }
}

/// Memory for the tables of one tree.
#[derive(Default)]
pub(crate) struct HostMemory {
    state: Mutex<State>,
    vacant: OnceLock<Vacant>,
}

impl HostMemory {
    /// The vacant tables, allocated on first use. They do not count as tables of a tree.
    pub(crate) fn vacant(&self) -> Vacant {
        *self.vacant.get_or_init(|| {
            // The limit applies only to tables of trees.
            let budget = self.state().budget.take();
            let vacant = Vacant::new(&self, ()).expect("memory is not limited");
            let mut state = self.state();
            for table in &mut state.tables {
                table.life = Life::Shared;
            }
            state.budget = budget;
            vacant
        })
    }

    /// Whether the vacant tables are unmodified.
    #[cfg(not(loom))]
    pub(crate) fn vacant_is_intact(&self) -> bool {
        let tables = HostMemory::default();
        tables.vacant();
        let (mine, fresh) = (self.state(), tables.state());
        mine.tables.iter().zip(&fresh.tables).all(|(mine, fresh)| {
            let mut pairs = mine.cells.iter().zip(fresh.cells.iter());
            let same = |(a, b): (&AtomicU64, &AtomicU64)| {
                a.load(Ordering::Relaxed) == b.load(Ordering::Relaxed)
            };
            mine.life == Life::Shared && pairs.all(same)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a test panicked in the allocator")
    }

    /// Lets `budget` more allocations succeed (`None`: all), and resets
    /// [`HostMemory::refused`].
    pub(crate) fn limit(&self, budget: Option<u64>) {
        let mut state = self.state();
        state.budget = budget;
        state.refused = false;
    }

    /// Whether an allocation has failed since the last [`HostMemory::limit`].
    pub(crate) fn refused(&self) -> bool {
        self.state().refused
    }

    /// The number of tables that were ever allocated.
    pub(crate) fn made(&self) -> usize {
        self.state().tables.len()
    }

    /// Allocates a table and fills it with `value`.
    fn make(&self, shape: Shape, value: u64) -> Option<Phys> {
        let mut state = self.state();
        match &mut state.budget {
            Some(0) => {
                state.refused = true;
                return None;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let cell = || AtomicU64::new(value);
        let cells = std::iter::repeat_with(cell).take(shape.entries());
        let origin = BASE + state.tables.len() as u64 * STRIDE;
        state.tables.push(Table {
            cells: cells.collect(),
            shape,
            life: Life::Live,
        });
        Some(Phys(origin))
    }

    fn count(&self, life: Life) -> usize {
        let state = self.state();
        state.tables.iter().filter(|t| t.life == life).count()
    }

    /// The number of tables in the tree.
    pub(crate) fn live(&self) -> usize {
        self.count(Life::Live)
    }

    /// Checks that every table was freed, and not written since.
    pub(crate) fn check_all_freed(&self) {
        assert_eq!(self.live(), 0, "leaked tables");
        assert_eq!(self.count(Life::Unlinked), 0, "unlinked but never freed");
        let shared = |table: &&Table| table.life == Life::Shared;
        for table in self.state().tables.iter().filter(|table| !shared(table)) {
            let poisoned = |cell: &AtomicU64| cell.load(Ordering::Relaxed) == POISON;
            assert!(table.cells.iter().all(poisoned), "written after free");
        }
    }
}

// SAFETY: Each table has its own cells, which do not move until the memory is dropped.
// They are initialized as empty entries, and addresses are aligned to the largest
// table's size.
unsafe impl Memory for &HostMemory {
    type Cell = AtomicU64;
    type Flags = ();

    fn alloc(&self, shape: Shape, _flags: ()) -> Option<Phys> {
        self.make(shape, shape.empty())
    }

    fn alloc_unset(&self, shape: Shape, _flags: ()) -> Option<Phys> {
        self.make(shape, POISON)
    }

    unsafe fn free(&self, origin: Phys, shape: Shape) {
        let mut state = self.state();
        let table = state.turn(origin, shape, &[Life::Live, Life::Unlinked], Life::Freed);
        for cell in table.cells.iter() {
            cell.store(POISON, Ordering::Relaxed);
        }
    }

    unsafe fn cells(&self, origin: Phys) -> NonNull<AtomicU64> {
        let mut state = self.state();
        let table = state.table(origin.0).expect("no table at this address");
        let usable = matches!(table.life, Life::Live | Life::Shared);
        assert!(usable, "walked into {origin:x?}, {:?}", table.life);
        NonNull::from(&*table.cells).cast()
    }
}

/// The view of a machine that was refreshed after every unlink: only live tables.
impl Storage for HostMemory {
    fn table(&self, origin: u64, entries: usize) -> Option<impl Fn(usize) -> u64> {
        let mut state = self.state();
        let table = state.table(origin)?;
        let readable = matches!(table.life, Life::Live | Life::Shared);
        (readable && table.shape.entries() == entries).then(|| {
            let cells = table.cells.clone();
            move |index: usize| cells[index].load(Ordering::Relaxed)
        })
    }
}

/// A queue of unlinked tables that are freed after a refresh.
pub(crate) struct Unlinked<'m> {
    memory: &'m HostMemory,
    tables: Vec<(Phys, Shape)>,
}

impl<'m> Unlinked<'m> {
    /// An empty queue.
    pub(crate) fn new(memory: &'m HostMemory) -> Self {
        let tables = Vec::new();
        Unlinked { memory, tables }
    }

    /// The number of queued tables.
    pub(crate) fn waiting(&self) -> usize {
        self.tables.len()
    }

    /// Frees all queued tables, as after a refresh.
    pub(crate) fn refresh(&mut self) {
        for (origin, shape) in self.tables.drain(..) {
            // SAFETY: The table is unlinked, there is no other thread, and the walker
            // reads the tree only from its root.
            unsafe { self.memory.free(origin, shape) };
        }
    }
}

impl DeferFree for Unlinked<'_> {
    fn defer_free(&mut self, origin: Phys, shape: Shape) {
        let mut state = self.memory.state();
        state.turn(origin, shape, &[Life::Live], Life::Unlinked);
        self.tables.push((origin, shape));
    }
}
