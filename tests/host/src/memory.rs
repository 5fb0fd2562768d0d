// SPDX-License-Identifier: GPL-2.0

//! Table memory that notices misuse: what is given back is poisoned and kept, so
//! that a later use panics, and every table must be given back exactly once.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::dma_table::{DeferFree, Memory, Phys, Shape, Vacant};
use crate::walker::Storage;

/// Physical addresses begin here, so that high bits of an origin count.
const BASE: u64 = 0x00ab_c000_0000_0000;
/// Tables are this far apart: the alignment of the largest one.
const STRIDE: u64 = 0x4000;
/// What a table is full of that was given back, or not set yet: valid at every
/// level, pointing to no table.
const POISON: u64 = 0xdead_dead_dead_d000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    /// In the tree, or about to be.
    Live,
    /// Unlinked; a machine that was not refreshed may still read it.
    Unlinked,
    /// Given back.
    Freed,
    /// A vacant table, which all trees share.
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
    /// How many more allocations succeed, if not all.
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

    /// Moves a table on to the next part of its life.
    fn turn(&mut self, origin: Phys, shape: Shape, from: &[Life], to: Life) -> &Table {
        let table = self.table(origin.0).expect("no table begins there");
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
    /// The vacant tables, made the first time. They count as no tree's tables.
    pub(crate) fn vacant(&self) -> Vacant {
        *self.vacant.get_or_init(|| {
            // A limit is one on the tables of trees.
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

    /// Whether nobody wrote to a vacant table.
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

    /// Lets `budget` more allocations succeed, or all; forgets past refusals.
    pub(crate) fn limit(&self, budget: Option<u64>) {
        let mut state = self.state();
        state.budget = budget;
        state.refused = false;
    }

    /// Whether an allocation was refused since the last [`HostMemory::limit`].
    pub(crate) fn refused(&self) -> bool {
        self.state().refused
    }

    /// How many tables were made so far.
    pub(crate) fn made(&self) -> usize {
        self.state().tables.len()
    }

    /// A new table that is full of `value`.
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

    /// How many tables are in the tree.
    pub(crate) fn live(&self) -> usize {
        self.count(Life::Live)
    }

    /// Checks that every table was given back, and not written since.
    pub(crate) fn check_all_freed(&self) {
        assert_eq!(self.live(), 0, "tables that nobody gave back");
        assert_eq!(
            self.count(Life::Unlinked),
            0,
            "unlinked and never given back"
        );
        let shared = |table: &&Table| table.life == Life::Shared;
        for table in self.state().tables.iter().filter(|table| !shared(table)) {
            let poisoned = |cell: &AtomicU64| cell.load(Ordering::Relaxed) == POISON;
            assert!(table.cells.iter().all(poisoned), "written after free");
        }
    }
}

// SAFETY: Each table is made of cells of its own, which stay where they are
// until the memory goes; they are filled with what empty tables hold, and
// addresses are multiples of the largest table's size.
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
        let table = state.table(origin.0).expect("no table begins there");
        let usable = matches!(table.life, Life::Live | Life::Shared);
        assert!(usable, "walked into {origin:x?}, {:?}", table.life);
        NonNull::from(&*table.cells).cast()
    }
}

/// What a machine finds that was refreshed after every unlink: only live ones.
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

/// Keeps unlinked tables until a refresh.
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

    /// How many tables wait.
    pub(crate) fn waiting(&self) -> usize {
        self.tables.len()
    }

    /// The machine was refreshed: gives all of them back.
    pub(crate) fn refresh(&mut self) {
        for (origin, shape) in self.tables.drain(..) {
            // SAFETY: It is unlinked, this test has no other thread, and the
            // walker reads the tree from its root only.
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
