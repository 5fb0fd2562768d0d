// SPDX-License-Identifier: GPL-2.0

//! Table memory that reports accesses to the checker (`threads`).

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use crate::dma_table::{Cell, DeferFree, Memory, Phys, Shape};
use crate::walker::Storage;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};

/// The driver's implementation of `Cell`, with the checker's atomics.
mod cell {
    use crate::dma_table::Cell;
    use loom::sync::atomic::{AtomicU64, Ordering};
    include!(concat!(env!("OUT_DIR"), "/cell.rs"));
}

/// Deviations from the memory orderings of the driver's cells; `None` means no deviation.
pub(super) trait Orders: Send + Sync + 'static {
    const INSTALLED: Option<Ordering> = None;
    const REFUSED: Option<Ordering> = None;
    const ACQUIRE: Option<Ordering> = None;
    /// Whether an install is atomic.
    const ATOMIC: bool = true;
    const CHANGED: Option<Ordering> = None;
    /// Whether unmaps detect readers.
    const COUNTED: bool = true;
}

/// The unmodified orderings of the driver.
pub(super) struct Sound;
impl Orders for Sound {}

/// A table's lifetime for the checker, shared by all cells of the table.
pub(super) struct Life {
    /// Written when the table is allocated and when it is freed.
    pub(super) memory: UnsafeCell<()>,
    /// Written when the table is allocated and when it is unlinked.
    walkers: UnsafeCell<()>,
}

// SAFETY: The cells are empty; the checker only uses them to detect races.
unsafe impl Send for Life {}
// SAFETY: As above.
unsafe impl Sync for Life {}

impl Life {
    pub(super) fn new() -> Arc<Self> {
        let life = Life {
            memory: UnsafeCell::new(()),
            walkers: UnsafeCell::new(()),
        };
        life.memory.with_mut(|_| ());
        life.walkers.with_mut(|_| ());
        Arc::new(life)
    }
}

pub(super) struct ModelCell<O> {
    pub(super) word: AtomicU64,
    pub(super) life: Arc<Life>,
    orders: PhantomData<O>,
}

impl<O> ModelCell<O> {
    pub(super) fn new(value: u64, life: &Arc<Life>) -> Self {
        ModelCell {
            word: AtomicU64::new(value),
            life: life.clone(),
            orders: PhantomData,
        }
    }

    /// Reports an access by a walker.
    fn enter(&self) -> &AtomicU64 {
        self.life.memory.with(|_| ());
        self.life.walkers.with(|_| ());
        &self.word
    }
}

impl<O: Orders> Cell for ModelCell<O> {
    fn load(&self) -> u64 {
        Cell::load(self.enter())
    }

    fn load_acquire(&self) -> u64 {
        let word = self.enter();
        match O::ACQUIRE {
            None => word.load_acquire(),
            Some(order) => word.load(order),
        }
    }

    fn store(&self, value: u64) {
        Cell::store(self.enter(), value);
    }

    fn install(&self, old: u64, new: u64) -> Result<(), u64> {
        let word = self.enter();
        if !O::ATOMIC {
            return match word.load(Ordering::Acquire) {
                found if found == old => {
                    word.store(new, Ordering::Release);
                    Ok(())
                }
                found => Err(found),
            };
        }
        match (O::INSTALLED, O::REFUSED) {
            (None, None) => word.install(old, new),
            (installed, refused) => {
                let installed = installed.unwrap_or(Ordering::AcqRel);
                let refused = refused.unwrap_or(Ordering::Acquire);
                word.compare_exchange(old, new, installed, refused)
                    .map(drop)
            }
        }
    }

    fn change(&self, by: u64) -> u64 {
        let word = self.enter();
        let before = match O::CHANGED {
            None => word.change(by),
            Some(order) => word.fetch_add(by, order),
        };
        if O::COUNTED || by != 1 {
            before
        } else {
            0
        }
    }
}

/// The cells of a table.
type Cells<O> = Arc<[ModelCell<O>]>;

pub(super) struct ModelTable<O> {
    pub(super) cells: Cells<O>,
    pub(super) shape: Shape,
    pub(super) freed: bool,
}

/// Table memory. Its list of tables is not part of the model: the checker does not know
/// the mutex, so it orders nothing.
pub(super) struct ModelMemory<O> {
    pub(super) tables: Arc<Mutex<Vec<ModelTable<O>>>>,
}

/// Distance between tables, so that origins do not overlap with the flags
const STRIDE: u64 = 0x4000;

impl<O> ModelMemory<O> {
    pub(super) fn cells_at(&self, origin: u64) -> Cells<O> {
        self.tables.lock().unwrap()[(origin / STRIDE) as usize - 1]
            .cells
            .clone()
    }
}

impl<O: Orders> ModelMemory<O> {
    fn make(&self, shape: Shape, value: u64) -> Phys {
        let life = Life::new();
        let cell = || ModelCell::new(value, &life);
        let cells = std::iter::repeat_with(cell).take(shape.entries()).collect();
        let mut tables = self.tables.lock().unwrap();
        tables.push(ModelTable {
            cells,
            shape,
            freed: false,
        });
        Phys(tables.len() as u64 * STRIDE)
    }
}

// SAFETY: Each table has its own cells, initialized as empty entries, which live as
// long as the memory.
unsafe impl<O: Orders> Memory for ModelMemory<O> {
    type Cell = ModelCell<O>;
    type Flags = ();

    fn alloc(&self, shape: Shape, _flags: ()) -> Option<Phys> {
        Some(self.make(shape, shape.empty()))
    }

    fn alloc_unset(&self, shape: Shape, _flags: ()) -> Option<Phys> {
        // The walker treats a zero entry as an error.
        Some(self.make(shape, 0))
    }

    unsafe fn free(&self, origin: Phys, shape: Shape) {
        let life = {
            let mut tables = self.tables.lock().unwrap();
            let table = &mut tables[(origin.0 / STRIDE) as usize - 1];
            assert_eq!(table.shape, shape);
            assert!(!table.freed, "freed twice");
            table.freed = true;
            table.cells[0].life.clone()
        };
        life.memory.with_mut(|_| ());
    }

    unsafe fn cells(&self, origin: Phys) -> NonNull<ModelCell<O>> {
        NonNull::from(&self.cells_at(origin.0)[0])
    }
}

/// The machine reads entries in order, and may still read unlinked tables.
impl<O: Orders> Storage for ModelMemory<O> {
    fn table(&self, origin: u64, entries: usize) -> Option<impl Fn(usize) -> u64> {
        let cells = self.cells_at(origin);
        (cells.len() == entries).then_some(move |index: usize| {
            let cell: &ModelCell<O> = &cells[index];
            cell.life.memory.with(|_| ());
            cell.word.load(Ordering::Acquire)
        })
    }
}

/// The tables that a thread has unlinked, kept until all threads have finished.
pub(super) struct Unlinked<'t, O> {
    pub(super) memory: &'t ModelMemory<O>,
    pub(super) tables: Vec<(Phys, Shape)>,
}

impl<O> DeferFree for Unlinked<'_, O> {
    fn defer_free(&mut self, origin: Phys, shape: Shape) {
        // No walker may be in the table now or later.
        let cells = self.memory.cells_at(origin.0);
        cells[0].life.walkers.with_mut(|_| ());
        self.tables.push((origin, shape));
    }
}
