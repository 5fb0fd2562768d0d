// SPDX-License-Identifier: GPL-2.0

//! Model checks of the lock-free parts: every interleaving of a few threads, and
//! every value that a load may return under the memory model, on tables of two
//! entries. Run with
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release threads
//! ```
//!
//! Table memory reports accesses to the checker. Making a table, unlinking it
//! and giving it back count as writes to a word that every access of a walker
//! reads: an access that is not ordered after the making or before the unlinking
//! is a data race, and the checker reports it, whether or not the interleaving
//! would have shown a wrong value.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::dma_table::{
    Access, Cell, DeferFree, Depth, DmaTable, Iova, Mapping, Memory, Phys, Shape, Vacant, PAGE_SIZE,
};
use crate::walker::{self, Found, Level, Storage};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

/// The driver's own cell, on the checker's atomics.
mod cell {
    use crate::dma_table::Cell;
    use loom::sync::atomic::{AtomicU64, Ordering};
    include!(concat!(env!("OUT_DIR"), "/cell.rs"));
}

/// How a cell orders its accesses, where not as the driver's does.
trait Orders: Send + Sync + 'static {
    const INSTALLED: Option<Ordering> = None;
    const REFUSED: Option<Ordering> = None;
    const ACQUIRE: Option<Ordering> = None;
    /// Whether an install is one step.
    const ATOMIC: bool = true;
    const CHANGED: Option<Ordering> = None;
    /// Whether unmaps find out that there are readers.
    const COUNTED: bool = true;
}

/// As in the driver.
struct Sound;
impl Orders for Sound {}

/// What the checker knows of a table's life; its cells share it.
struct Life {
    /// Written when the table is made and when it is given back.
    memory: UnsafeCell<()>,
    /// Written when the table is made and when it is unlinked.
    walkers: UnsafeCell<()>,
}

// SAFETY: There is nothing in the cells; the checker looks at who comes.
unsafe impl Send for Life {}
// SAFETY: As above.
unsafe impl Sync for Life {}

impl Life {
    fn new() -> Arc<Self> {
        let life = Life {
            memory: UnsafeCell::new(()),
            walkers: UnsafeCell::new(()),
        };
        life.memory.with_mut(|_| ());
        life.walkers.with_mut(|_| ());
        Arc::new(life)
    }
}

struct ModelCell<O> {
    word: AtomicU64,
    life: Arc<Life>,
    orders: PhantomData<O>,
}

impl<O> ModelCell<O> {
    fn new(value: u64, life: &Arc<Life>) -> Self {
        ModelCell {
            word: AtomicU64::new(value),
            life: life.clone(),
            orders: PhantomData,
        }
    }

    /// A walker is in the table.
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

struct ModelTable<O> {
    cells: Cells<O>,
    shape: Shape,
    freed: bool,
}

/// Table memory. What it keeps of its tables is not part of the model: the
/// mutex orders nothing that the checker sees.
struct ModelMemory<O> {
    tables: Arc<Mutex<Vec<ModelTable<O>>>>,
}

/// Tables are this far apart, so that origins keep clear of the flags.
const STRIDE: u64 = 0x4000;

impl<O> ModelMemory<O> {
    fn cells_at(&self, origin: u64) -> Cells<O> {
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

// SAFETY: Each table is made of cells of its own, filled with what empty tables
// hold, that stay for as long as the memory.
unsafe impl<O: Orders> Memory for ModelMemory<O> {
    type Cell = ModelCell<O>;
    type Flags = ();

    fn alloc(&self, shape: Shape, _flags: ()) -> Option<Phys> {
        Some(self.make(shape, shape.empty()))
    }

    fn alloc_unset(&self, shape: Shape, _flags: ()) -> Option<Phys> {
        // An error to the walker.
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

/// The machine reads what it finds, in order, and may be in unlinked tables.
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

/// The tables that a thread unlinked, until all threads are done.
struct Unlinked<'t, O> {
    memory: &'t ModelMemory<O>,
    tables: Vec<(Phys, Shape)>,
}

impl<O> DeferFree for Unlinked<'_, O> {
    fn defer_free(&mut self, origin: Phys, shape: Shape) {
        // Nobody is in it any more, and nobody comes later.
        let cells = self.memory.cells_at(origin.0);
        cells[0].life.walkers.with_mut(|_| ());
        self.tables.push((origin, shape));
    }
}

/// A tree under the checker. Ranges are given in pages; every page is mapped to
/// the same place wherever it is mapped.
struct Tree<O: Orders> {
    tree: DmaTable<ModelMemory<O>>,
    tables: Arc<Mutex<Vec<ModelTable<O>>>>,
}

/// What one thread does.
type Job<O> = fn(&Tree<O>, &mut Unlinked<'_, O>);

/// Pages that a page table, a segment table and a region-third table span.
const PAGE_TABLE: u64 = 2;
const SEGMENT_TABLE: u64 = 4;
const THIRD_TABLE: u64 = 8;

fn phys(page: u64) -> u64 {
    (page + 0x100) * PAGE_SIZE
}

impl<O: Orders> Tree<O> {
    fn new() -> Self {
        let tables = Arc::default();
        let memory = ModelMemory {
            tables: Arc::clone(&tables),
        };
        let root = |value| ModelCell::new(value, &Life::new());
        let vacant = Vacant::new(&memory, ()).expect("memory is not limited");
        let tree =
            DmaTable::new(memory, vacant, Depth::Third, (), root).expect("memory is not limited");
        Tree { tree, tables }
    }

    fn map_as(&self, page: u64, pages: u64, large: bool) {
        let mapping = Mapping {
            iova: Iova(page * PAGE_SIZE),
            phys: Phys(phys(page)),
            size: pages * PAGE_SIZE,
            access: Access::READ_WRITE,
            large,
        };
        // SAFETY: Each test gives disjoint ranges to its threads, within reach.
        let result = unsafe { self.tree.map(mapping, ()) };
        assert_eq!(result, (mapping.size, Ok(())));
    }

    /// Tries the short way first, as the driver does.
    fn map(&self, page: u64, pages: u64) {
        let (iova, phys) = (Iova(page * PAGE_SIZE), Phys(phys(page)));
        let empty_page = || {
            // SAFETY: As for `map_as`.
            unsafe { self.tree.empty_page(self.tree.low(), iova) }
        };
        match (pages == 1).then(empty_page).flatten() {
            Some(entry) => entry.fill(phys, Access::READ_WRITE),
            None => self.map_as(page, pages, false),
        }
    }

    fn map_large(&self, page: u64, pages: u64) {
        self.map_as(page, pages, true);
    }

    /// Tries the short way first, as the driver does.
    fn unmap(&self, page: u64, pages: u64, unlinked: &mut Unlinked<'_, O>) {
        let (iova, size) = (Iova(page * PAGE_SIZE), pages * PAGE_SIZE);
        // SAFETY: As for `map_as`.
        if pages == 1 && unsafe { self.tree.unmap_page(self.tree.low(), iova) } {
            return;
        }
        // SAFETY: As for `map_as`.
        let bytes = unsafe { self.tree.unmap(iova, size, unlinked) };
        assert_eq!(bytes, size);
    }

    fn widen(&self, depth: Depth) {
        self.tree.widen(depth, ()).expect("memory is not limited");
        assert!(self.tree.root().depth >= depth);
    }

    /// Looks up a page that somebody may be mapping. Whether it is mapped.
    fn lookup(&self, page: u64) -> bool {
        // SAFETY: No test unmaps meanwhile what it looks up.
        let found = unsafe { self.tree.lookup(Iova(page * PAGE_SIZE)) };
        found.is_some_and(|found| {
            assert_eq!(found.phys, Phys(phys(page)));
            true
        })
    }

    /// Looks for a page that it does not own. What it finds is there or was.
    fn walk(&self, page: u64) {
        let walk = self
            .tree
            .walk(|| Ok::<(), ()>(thread::yield_now()))
            .expect("no error");
        let found = walk.find(Iova(page * PAGE_SIZE)).expect("in reach");
        assert!(found.map_or(true, |found| found.phys == Phys(phys(page))));
    }

    /// Walks to a page as the machine does, at any time. Whether it is mapped.
    fn machine(&self, page: u64) -> bool {
        let root = self.tree.root();
        let top = Level::TOPS[root.depth as usize - Depth::Third as usize];
        let iova = page * PAGE_SIZE;
        match walker::find(self.tree.memory(), root.origin.0, top, iova) {
            Ok(Found::Leaf(leaf)) => {
                assert_eq!(leaf.phys | (iova & (leaf.size - 1)), phys(page));
                true
            }
            Ok(Found::Invalid(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}

impl<O: Orders> Tree<O> {
    fn work(&self, job: Job<O>) -> Vec<(Phys, Shape)> {
        let mut unlinked = Unlinked {
            memory: self.tree.memory(),
            tables: Vec::new(),
        };
        job(self, &mut unlinked);
        unlinked.tables
    }

    /// After the threads are gone: the machine was made to forget `unlinked`,
    /// just `pages` are mapped, and every table is given back once.
    fn finish(self, unlinked: Vec<(Phys, Shape)>, pages: &[u64]) {
        let memory = self.tree.memory();
        for (origin, shape) in unlinked {
            // SAFETY: It was unlinked, and nobody else is there.
            unsafe { memory.free(origin, shape) };
        }
        for page in 0..=self.tree.root().depth.reach() / PAGE_SIZE {
            assert_eq!(self.machine(page), pages.contains(&page), "page {page}");
            assert_eq!(self.lookup(page), pages.contains(&page), "page {page}");
        }
        drop(self.tree);
        // The vacant tables, which were made first, stay.
        for table in self.tables.lock().unwrap().iter().skip(4) {
            assert!(table.freed, "a lost {:?} table", table.shape);
        }
    }
}

/// Lets `prepare` fill a tree, gives each of `jobs` a thread, and checks that in
/// the end just `after` is mapped. Under every interleaving.
fn check<O: Orders>(prepare: Job<O>, jobs: &'static [Job<O>], after: &'static [u64]) {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    loom::model(move || {
        count.fetch_add(1, SeqCst);
        let tree = Arc::new(Tree::<O>::new());
        let mut unlinked = tree.work(prepare);
        let (first, others) = jobs.split_first().expect("a job");
        let threads: Vec<_> = others
            .iter()
            .map(|job| {
                let tree = tree.clone();
                thread::spawn(move || tree.work(*job))
            })
            .collect();
        unlinked.extend(tree.work(*first));
        for thread in threads {
            unlinked.extend(thread.join().unwrap());
        }
        let tree = Arc::into_inner(tree).expect("the threads are gone");
        tree.finish(unlinked, after);
    });
    println!("{} interleavings", runs.load(SeqCst));
}

macro_rules! checks {
    ($(
        $(#[$doc:meta])*
        $name:ident: $prepare:expr => [$($job:expr),*] => $after:expr;
    )*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            check::<Sound>($prepare, &[$($job),*], &$after);
        }
    )*};
}

checks! {
    /// Both need a segment table and a page table that are missing.
    two_maps_make_the_same_tables:
        |_, _| ()
        => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
        => [0, 1];

    three_maps_make_the_same_tables:
        |_, _| ()
        => [|t, _| t.map(0, 1), |t, _| t.map(1, 1), |t, _| t.map(2, 1)]
        => [0, 1, 2];

    pages_and_a_frame_make_the_same_table:
        |_, _| ()
        => [|t, _| t.map_large(0, PAGE_TABLE), |t, _| t.map(2, 1)]
        => [0, 1, 2];

    map_of_a_whole_page_table_beside_map_and_the_machine:
        |_, _| ()
        => [
            |t, _| t.map(0, PAGE_TABLE),
            |t, _| t.map(PAGE_TABLE, 1),
            |t, _| { t.machine(1); }
        ]
        => [0, 1, PAGE_TABLE];

    map_beside_unmap_in_a_page_table:
        |t, _| t.map(0, 1)
        => [|t, r| t.unmap(0, 1, r), |t, _| t.map(1, 1)]
        => [1];

    map_beside_unmap_and_lookup:
        |t, _| t.map(0, 1)
        => [|t, r| t.unmap(0, 1, r), |t, _| t.map(1, 1), |t, _| _ = t.lookup(1)]
        => [1];

    map_beside_unmap_and_the_machine:
        |t, _| t.map(0, 1)
        => [
            |t, r| t.unmap(0, 1, r),
            |t, _| t.map(1, 1),
            |t, _| { t.machine(0); t.machine(1); }
        ]
        => [1];

    widen_beside_map:
        |_, _| ()
        => [|t, _| t.widen(Depth::Second), |t, _| t.map(0, 1)]
        => [0];

    widen_twice_beside_map:
        |_, _| ()
        => [|t, _| t.widen(Depth::First), |t, _| t.map(0, 1)]
        => [0];

    two_widens_beside_map:
        |_, _| ()
        => [|t, _| t.widen(Depth::Second), |t, _| t.widen(Depth::First), |t, _| t.map(0, 1)]
        => [0];

    widen_beside_map_and_lookup:
        |t, _| t.map(0, 1)
        => [
            |t, _| t.widen(Depth::First),
            |t, _| t.map(1, 1),
            |t, _| { assert!(t.lookup(0)); t.lookup(1); }
        ]
        => [0, 1];

    widen_beside_unmap_and_the_machine:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [
            |t, _| t.widen(Depth::First),
            |t, r| t.unmap(0, SEGMENT_TABLE, r),
            |t, _| { t.machine(0); }
        ]
        => [];

    /// Maps above what the tree reached before.
    two_widen_and_map_high:
        |_, _| ()
        => [
            |t, _| { t.widen(Depth::Second); t.map(THIRD_TABLE, 1) },
            |t, _| { t.widen(Depth::Second); t.map(THIRD_TABLE + 1, 1) }
        ]
        => [THIRD_TABLE, THIRD_TABLE + 1];

    /// The page table goes; its neighbour is made in the same segment table.
    reclaim_a_page_table_beside_map:
        |t, _| t.map(0, PAGE_TABLE)
        => [|t, r| t.unmap(0, PAGE_TABLE, r), |t, _| t.map(PAGE_TABLE, 1)]
        => [PAGE_TABLE];

    /// The segment table and all below it go; its neighbour is made.
    reclaim_a_segment_table_beside_map:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [|t, r| t.unmap(0, SEGMENT_TABLE, r), |t, _| t.map(SEGMENT_TABLE, 1)]
        => [SEGMENT_TABLE];

    reclaim_a_third_table_beside_map:
        |t, _| { t.widen(Depth::Second); t.map_large(THIRD_TABLE, THIRD_TABLE) }
        => [|t, r| t.unmap(THIRD_TABLE, THIRD_TABLE, r), |t, _| t.map(0, 1)]
        => [0];

    /// The owner comes back to the range whose tables it had unlinked.
    reclaim_and_map_again_beside_map:
        |t, _| t.map(0, PAGE_TABLE)
        => [
            |t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, 1) },
            |t, _| t.map(PAGE_TABLE, 1)
        ]
        => [0, PAGE_TABLE];

    two_reclaims_beside_map:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [
            |t, r| t.unmap(0, PAGE_TABLE, r),
            |t, r| t.unmap(PAGE_TABLE, PAGE_TABLE, r),
            |t, _| t.map(SEGMENT_TABLE, 1)
        ]
        => [SEGMENT_TABLE];

    reclaim_beside_map_and_lookup:
        |t, _| { t.map(0, PAGE_TABLE); t.map(PAGE_TABLE, 1) }
        => [
            |t, r| t.unmap(0, PAGE_TABLE, r),
            |t, _| t.map(PAGE_TABLE + 1, 1),
            |t, _| { assert!(t.lookup(PAGE_TABLE)); t.lookup(PAGE_TABLE + 1); }
        ]
        => [PAGE_TABLE, PAGE_TABLE + 1];

    reclaim_beside_map_and_the_machine:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [
            |t, r| t.unmap(0, SEGMENT_TABLE, r),
            |t, _| t.map(SEGMENT_TABLE, 1),
            |t, _| { t.machine(1); t.machine(SEGMENT_TABLE); }
        ]
        => [SEGMENT_TABLE];

    reclaim_beside_a_reader:
        |t, _| t.map(0, PAGE_TABLE)
        => [|t, r| t.unmap(0, PAGE_TABLE, r), |t, _| t.walk(1)]
        => [];

    reclaim_of_a_segment_table_beside_a_reader:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [|t, r| t.unmap(0, SEGMENT_TABLE, r), |t, _| t.walk(1)]
        => [];

    /// The second unmap may find what the first one had to leave.
    reclaims_and_maps_beside_a_reader:
        |t, _| t.map(0, PAGE_TABLE)
        => [
            |t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, PAGE_TABLE); t.unmap(0, PAGE_TABLE, r) },
            |t, _| t.walk(1)
        ]
        => [];

    two_reclaims_beside_a_reader:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [
            |t, r| t.unmap(0, PAGE_TABLE, r),
            |t, r| t.unmap(PAGE_TABLE, PAGE_TABLE, r),
            |t, _| t.walk(0)
        ]
        => [];

    a_reader_beside_widen_and_map:
        |t, _| t.map(0, 1)
        => [
            |t, _| t.walk(PAGE_TABLE),
            |t, _| t.widen(Depth::Second),
            |t, _| t.map(PAGE_TABLE, 1)
        ]
        => [0, PAGE_TABLE];

    reclaim_beside_widen_and_map:
        |t, _| t.map(0, PAGE_TABLE)
        => [
            |t, r| t.unmap(0, PAGE_TABLE, r),
            |t, _| t.widen(Depth::Second),
            |t, _| t.map(PAGE_TABLE, 1)
        ]
        => [PAGE_TABLE];
}

/// Two map the same range, against the rule that it has one owner: one of them is
/// refused, and its page table is not lost.
#[test]
fn two_maps_of_one_range() {
    loom::model(|| {
        let tree = Arc::new(Tree::<Sound>::new());
        let map = |tree: &Tree<Sound>| {
            let mapping = Mapping {
                iova: Iova(0),
                phys: Phys(phys(0)),
                size: PAGE_TABLE * PAGE_SIZE,
                access: Access::READ_WRITE,
                large: false,
            };
            // SAFETY: It lies within reach, and nobody unmaps.
            unsafe { tree.tree.map(mapping, ()) }.1.is_ok()
        };
        let other = thread::spawn({
            let tree = tree.clone();
            move || map(&tree)
        });
        let mine = map(&tree);
        assert!(mine != other.join().unwrap());
        let tree = Arc::into_inner(tree).expect("the threads are gone");
        tree.finish(Vec::new(), &[0, 1]);
    });
}

/// The owners of both pages of a table give them to whoever is last, who unmaps
/// all. The table is unlinked after both were in it.
#[test]
fn the_last_owner_reclaims_the_table() {
    use loom::sync::atomic::AtomicU64 as Count;

    loom::model(|| {
        let tree = Arc::new(Tree::<Sound>::new());
        let owners = Arc::new(Count::new(0));
        let own = |page: u64| {
            let (tree, owners) = (tree.clone(), owners.clone());
            move || {
                let unmap_all: Job<Sound> = |t, r| t.unmap(0, PAGE_TABLE, r);
                tree.map(page, 1);
                match owners.fetch_add(1, Ordering::AcqRel) {
                    0 => Vec::new(),
                    _ => tree.work(unmap_all),
                }
            }
        };
        let other = thread::spawn(own(1));
        let mut unlinked = own(0)();
        unlinked.extend(other.join().unwrap());
        assert_eq!(unlinked.len(), 1);
        let tree = Arc::into_inner(tree).expect("the threads are gone");
        tree.finish(unlinked, &[]);
    });
}

/// What the checker must find: each weakens one thing on purpose.
mod weakened {
    use super::*;

    macro_rules! weakened {
        ($($(#[$doc:meta])* $name:ident { $($weak:item)* } in $prepare:expr => [$($job:expr),*]
            panics $expected:literal;)*) => {$(
            $(#[$doc])*
            #[test]
            #[should_panic(expected = $expected)]
            fn $name() {
                struct Weak;
                impl Orders for Weak { $($weak)* }
                check::<Weak>($prepare, &[$($job),*], &[0, 1]);
            }
        )*};
    }

    weakened! {
        /// The other one comes to a table whose content it may not see.
        install_without_release { const INSTALLED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "Causality violation";

        /// The same, for who finds the table by a walk.
        walk_without_acquire { const ACQUIRE: Option<Ordering> = Some(Ordering::Relaxed); }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "Causality violation";

        /// The same, for who lost and goes on with the winner's.
        loss_without_acquire { const REFUSED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "Causality violation";

        /// Both install, and the first one's table and pages are lost.
        install_in_two_steps { const ATOMIC: bool = false; }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "";

        /// A walker comes to a new top whose entry 0 it may not see.
        widen_without_release { const INSTALLED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |t, _| t.map(0, PAGE_TABLE) => [|t, _| t.widen(Depth::Second), |t, _| _ = t.lookup(0)]
            panics "Causality violation";

        /// An unmap takes the tables that a reader is in.
        readers_are_not_counted { const COUNTED: bool = false; }
            in |t, _| t.map(0, PAGE_TABLE)
            => [|t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, PAGE_TABLE) }, |t, _| t.walk(1)]
            panics "Causality violation";

        /// The reader counts itself, and may not see what was unlinked before.
        gate_without_order { const CHANGED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |t, _| t.map(0, PAGE_TABLE)
            => [|t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, PAGE_TABLE) }, |t, _| t.walk(1)]
            panics "Causality violation";

        root_without_acquire { const ACQUIRE: Option<Ordering> = Some(Ordering::Relaxed); }
            in |t, _| t.map(0, PAGE_TABLE) => [|t, _| t.widen(Depth::Second), |t, _| _ = t.lookup(0)]
            panics "Causality violation";
    }

    /// A table is unlinked while a neighbour walks through it: the rule that an
    /// unmap owns all that it spans is broken on purpose.
    #[test]
    #[should_panic(expected = "Causality violation")]
    fn unmap_of_what_others_own() {
        check::<Sound>(
            |t, _| t.map(0, PAGE_TABLE),
            &[|t, r| t.unmap(0, PAGE_TABLE, r), |t, _| _ = t.lookup(1)],
            &[],
        );
    }
}
