// SPDX-License-Identifier: GPL-2.0

//! Model checks of the lock-free parts: every interleaving of a few threads, and every
//! value that a load may return under the memory model, with tables of two entries. Run
//! with
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release threads
//! ```
//!
//! Table memory reports accesses to the checker. Allocating, unlinking and freeing a
//! table count as writes of a variable that every access of a walker reads. So an
//! access that is not ordered after the allocation or before the unlink is a data race,
//! which the checker reports even if the interleaving gives the right values.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::dma_table::{
    Access, Depth, DmaTable, Iova, Mapping, Memory, Phys, Shape, Vacant, PAGE_SIZE,
};
use crate::walker::{self, Found, Level};
use loom::sync::atomic::Ordering;
use loom::thread;

mod memory;

use memory::{Life, ModelCell, ModelMemory, ModelTable, Orders, Sound, Unlinked};

/// A tree for the checker. Ranges are given in pages. A page is always mapped to the same
/// physical address.
struct Tree<O: Orders> {
    tree: DmaTable<ModelMemory<O>>,
    tables: Arc<Mutex<Vec<ModelTable<O>>>>,
}

/// The operations of one thread.
type Job<O> = fn(&Tree<O>, &mut Unlinked<'_, O>);

// The spans of a page table, a segment table and a region-third table, in pages
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

    fn map_as(&self, page: u64, pages: u64, large: bool, forgets: bool) {
        let mapping = Mapping {
            iova: Iova(page * PAGE_SIZE),
            phys: Phys(phys(page)),
            size: pages * PAGE_SIZE,
            access: Access::READ_WRITE,
            large,
        };
        // SAFETY: The threads of a test use disjoint ranges, within reach.
        let result = unsafe { self.tree.map(mapping, (), |_| forgets) };
        assert_eq!(result, (mapping.size, Ok(())));
    }

    /// Tries the fast path first, as the driver does.
    fn map(&self, page: u64, pages: u64) {
        let (iova, phys) = (Iova(page * PAGE_SIZE), Phys(phys(page)));
        let empty_page = || {
            // SAFETY: As for `map_as`.
            unsafe { self.tree.empty_page(self.tree.low(), iova) }
        };
        match (pages == 1).then(empty_page).flatten() {
            Some(entry) => entry.fill(phys, Access::READ_WRITE),
            None => self.map_as(page, pages, false, true),
        }
    }

    fn map_large(&self, page: u64, pages: u64) {
        self.map_as(page, pages, true, true);
    }

    /// The machine refuses to forget tables that large pages replace.
    fn map_large_refused(&self, page: u64, pages: u64) {
        self.map_as(page, pages, true, false);
    }

    /// Tries the fast path first, as the driver does.
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

    /// Looks up a page that another thread may be mapping. Returns whether it is mapped.
    fn lookup(&self, page: u64) -> bool {
        // SAFETY: No test unmaps a page during its lookup.
        let found = unsafe { self.tree.lookup(Iova(page * PAGE_SIZE)) };
        found.is_some_and(|found| {
            assert_eq!(found.phys, Phys(phys(page)));
            true
        })
    }

    /// Reads a page without owning it. It must have the right physical address, if any.
    fn walk(&self, page: u64) {
        let walk = self
            .tree
            .walk(|| Ok::<(), ()>(thread::yield_now()))
            .expect("no error");
        let found = walk.find(Iova(page * PAGE_SIZE)).expect("within reach");
        assert!(found.map_or(true, |found| found.phys == Phys(phys(page))));
    }

    /// Walks to a page like the machine, at any time. Returns whether it is mapped.
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

    /// Called after the threads have ended and the machine was refreshed: frees the
    /// unlinked tables, then checks that exactly `pages` are mapped and that every
    /// table is freed.
    fn finish(self, unlinked: Vec<(Phys, Shape)>, pages: &[u64]) {
        let memory = self.tree.memory();
        for (origin, shape) in unlinked {
            // SAFETY: The table was unlinked, and there are no other threads.
            unsafe { memory.free(origin, shape) };
        }
        for page in 0..=self.tree.root().depth.reach() / PAGE_SIZE {
            assert_eq!(self.machine(page), pages.contains(&page), "page {page}");
            assert_eq!(self.lookup(page), pages.contains(&page), "page {page}");
        }
        drop(self.tree);
        // The vacant tables, which were allocated first, stay.
        for table in self.tables.lock().unwrap().iter().skip(4) {
            assert!(table.freed, "a leaked {:?} table", table.shape);
        }
    }
}

/// Calls `prepare`, runs each of `jobs` in its own thread, and checks that exactly
/// `after` is mapped at the end, for every interleaving.
fn check<O: Orders>(prepare: Job<O>, jobs: &'static [Job<O>], after: &'static [u64]) {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    loom::model(move || {
        count.fetch_add(1, SeqCst);
        let tree = Arc::new(Tree::<O>::new());
        let mut unlinked = tree.work(prepare);
        let (first, others) = jobs.split_first().expect("at least one job");
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
        let tree = Arc::into_inner(tree).expect("the threads have ended");
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
    /// Both maps need the same missing segment table and page table.
    two_maps_make_the_same_tables:
        |_, _| ()
        => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
        => [0, 1];

    three_maps_make_the_same_tables:
        |_, _| ()
        => [|t, _| t.map(0, 1), |t, _| t.map(1, 1), |t, _| t.map(2, 1)]
        => [0, 1, 2];

    pages_and_a_large_page_make_the_same_table:
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

    /// Both maps are above the previous reach of the tree.
    two_widen_and_map_high:
        |_, _| ()
        => [
            |t, _| { t.widen(Depth::Second); t.map(THIRD_TABLE, 1) },
            |t, _| { t.widen(Depth::Second); t.map(THIRD_TABLE + 1, 1) }
        ]
        => [THIRD_TABLE, THIRD_TABLE + 1];

    /// A page table is unlinked while its neighbour is allocated in the same segment
    /// table.
    reclaim_a_page_table_beside_map:
        |t, _| t.map(0, PAGE_TABLE)
        => [|t, r| t.unmap(0, PAGE_TABLE, r), |t, _| t.map(PAGE_TABLE, 1)]
        => [PAGE_TABLE];

    /// A segment table and all tables below it are unlinked while its neighbour is
    /// allocated.
    reclaim_a_segment_table_beside_map:
        |t, _| t.map(0, SEGMENT_TABLE)
        => [|t, r| t.unmap(0, SEGMENT_TABLE, r), |t, _| t.map(SEGMENT_TABLE, 1)]
        => [SEGMENT_TABLE];

    reclaim_a_third_table_beside_map:
        |t, _| { t.widen(Depth::Second); t.map_large(THIRD_TABLE, THIRD_TABLE) }
        => [|t, r| t.unmap(THIRD_TABLE, THIRD_TABLE, r), |t, _| t.map(0, 1)]
        => [0];

    /// The owner maps the range again after it has unlinked the tables.
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

    /// The second unmap may find tables that the first one had to keep.
    reclaims_and_maps_beside_a_reader:
        |t, _| t.map(0, PAGE_TABLE)
        => [
            |t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, PAGE_TABLE); t.unmap(0, PAGE_TABLE, r) },
            |t, _| t.walk(1)
        ]
        => [];

    /// A large page replaces a page table that is empty.
    replace_beside_a_reader:
        |t, r| { t.map(0, 1); t.unmap(0, 1, r) }
        => [|t, _| t.map_large(0, PAGE_TABLE), |t, _| t.walk(1)]
        => [0, 1];

    replace_beside_map_and_a_reader:
        |t, r| { t.map(0, 1); t.unmap(0, 1, r) }
        => [|t, _| t.map_large(0, PAGE_TABLE), |t, _| t.map(PAGE_TABLE, 1), |t, _| t.walk(0)]
        => [0, 1, PAGE_TABLE];

    refused_replace_beside_a_reader_and_the_machine:
        |t, r| { t.map(0, 1); t.unmap(0, 1, r) }
        => [
            |t, _| t.map_large_refused(0, PAGE_TABLE),
            |t, _| t.walk(1),
            |t, _| { t.machine(1); }
        ]
        => [0, 1];

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

/// Two threads map the same range, which breaks the rule that it has one owner: one map
/// fails, and its page table is not leaked.
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
            // SAFETY: The range is within reach, and no thread unmaps.
            unsafe { tree.tree.map(mapping, (), |_| true) }.1.is_ok()
        };
        let other = thread::spawn({
            let tree = tree.clone();
            move || map(&tree)
        });
        let mine = map(&tree);
        assert!(mine != other.join().unwrap());
        let tree = Arc::into_inner(tree).expect("the threads have ended");
        tree.finish(Vec::new(), &[0, 1]);
    });
}

/// The owners of both pages of a table hand them over to the last one, who unmaps both.
/// The table is unlinked after both have used it.
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
        let tree = Arc::into_inner(tree).expect("the threads have ended");
        tree.finish(unlinked, &[]);
    });
}

/// Faults that the checker must find: each test weakens one ordering or rule on purpose.
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
        /// The other thread reaches a table whose content may not be visible yet.
        install_without_release { const INSTALLED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "Causality violation";

        /// The same for a thread that finds the table in a walk.
        walk_without_acquire { const ACQUIRE: Option<Ordering> = Some(Ordering::Relaxed); }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "Causality violation";

        /// The same for a thread that loses the race and continues with the winner's
        /// table.
        loss_without_acquire { const REFUSED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "Causality violation";

        /// Both threads install a table, and the first one is lost with its pages.
        install_in_two_steps { const ATOMIC: bool = false; }
            in |_, _| () => [|t, _| t.map(0, 1), |t, _| t.map(1, 1)]
            panics "";

        /// A walker reaches a new top table whose entry 0 may not be visible yet.
        widen_without_release { const INSTALLED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |t, _| t.map(0, PAGE_TABLE) => [|t, _| t.widen(Depth::Second), |t, _| _ = t.lookup(0)]
            panics "Causality violation";

        /// An unmap unlinks the tables that a reader is in.
        readers_are_not_counted { const COUNTED: bool = false; }
            in |t, _| t.map(0, PAGE_TABLE)
            => [|t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, PAGE_TABLE) }, |t, _| t.walk(1)]
            panics "Causality violation";

        /// A map frees the table that a reader is in.
        readers_beside_replace_are_not_counted { const COUNTED: bool = false; }
            in |t, r| { t.map(0, 1); t.unmap(0, 1, r) }
            => [|t, _| t.map_large(0, PAGE_TABLE), |t, _| t.walk(1)]
            panics "Causality violation";

        /// The reader counts itself, but earlier unlinks may not be visible to it.
        gate_without_order { const CHANGED: Option<Ordering> = Some(Ordering::Relaxed); }
            in |t, _| t.map(0, PAGE_TABLE)
            => [|t, r| { t.unmap(0, PAGE_TABLE, r); t.map(0, PAGE_TABLE) }, |t, _| t.walk(1)]
            panics "Causality violation";

        root_without_acquire { const ACQUIRE: Option<Ordering> = Some(Ordering::Relaxed); }
            in |t, _| t.map(0, PAGE_TABLE) => [|t, _| t.widen(Depth::Second), |t, _| _ = t.lookup(0)]
            panics "Causality violation";
    }

    /// A table is unlinked while another thread walks through it: the test breaks the
    /// rule that an unmap owns everything that it spans.
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
