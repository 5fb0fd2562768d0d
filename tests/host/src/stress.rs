// SPDX-License-Identifier: GPL-2.0

//! Stress test of one tree of full size: threads that map, unmap, look up, widen and read
//! at the same time, with real atomics and memory. Each range has an owner, which knows
//! its content. Freed tables are poisoned and checked at the end.

use std::alloc::{alloc, dealloc, Layout};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::thread;

use crate::dma_table::{
    Access, DeferFree, Depth, DmaTable, Iova, Mapping, Memory, Phys, Shape, Vacant,
    LARGE_PAGE_SIZE, PAGE_SIZE,
};

const THREADS: u64 = 4;
const ROUNDS: u64 = 16;
/// Number of ranges that each thread owns in a round, one after the other
const RANGES: u64 = 20_000;
const GIB: u64 = 1 << 30;
/// Fills freed tables: a valid entry at every level that points to no table
const POISON: u64 = 0xdead_dead_dead_d000;

/// Table memory that takes no lock to access a cell. Freed tables are kept until the end.
#[derive(Default)]
struct Raw {
    made: Mutex<Vec<(u64, Shape)>>,
    freed: Mutex<Vec<(u64, Shape)>>,
}

fn layout(shape: Shape) -> Layout {
    Layout::from_size_align(shape.bytes(), shape.bytes()).expect("a power of two")
}

/// The cells of a table.
fn cells<'a>(table: u64, shape: Shape) -> &'a [AtomicU64] {
    // SAFETY: `Raw` keeps every table until it is dropped, after all uses.
    unsafe { std::slice::from_raw_parts(table as *const AtomicU64, shape.entries()) }
}

// SAFETY: Each table is a separate allocation, aligned to its size and initialized with
// empty entries. The physical address is the virtual one.
unsafe impl Memory for &Raw {
    type Cell = AtomicU64;
    type Flags = ();

    fn alloc(&self, shape: Shape, _: ()) -> Option<Phys> {
        // SAFETY: The size is not 0.
        let table = unsafe { alloc(layout(shape)) } as u64;
        assert_ne!(table, 0);
        self.made.lock().unwrap().push((table, shape));
        let set = |cell: &AtomicU64| cell.store(shape.empty(), Relaxed);
        cells(table, shape).iter().for_each(set);
        Some(Phys(table))
    }

    unsafe fn free(&self, table: Phys, shape: Shape) {
        let poison = |cell: &AtomicU64| cell.store(POISON, Relaxed);
        cells(table.0, shape).iter().for_each(poison);
        self.freed.lock().unwrap().push((table.0, shape));
    }

    unsafe fn cells(&self, table: Phys) -> NonNull<AtomicU64> {
        NonNull::new(table.0 as *mut AtomicU64).expect("not null")
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let freed = self.freed.get_mut().unwrap();
        for (table, shape) in freed.iter() {
            let intact = |cell: &AtomicU64| cell.load(Relaxed) == POISON;
            assert!(
                cells(*table, *shape).iter().all(intact),
                "written after free"
            );
        }
        let made = self.made.get_mut().unwrap();
        assert_eq!(made.len(), freed.len(), "leaked tables");
        for (table, shape) in made {
            // SAFETY: It was allocated with this layout, and is no longer used.
            unsafe { dealloc(*table as *mut u8, layout(*shape)) };
        }
    }
}

/// Frees tables immediately, as after a flush: no thread may still use them.
struct AtOnce<'m>(&'m Raw);

impl DeferFree for AtOnce<'_> {
    fn defer_free(&mut self, table: Phys, shape: Shape) {
        // SAFETY: The table was unlinked, and there is no machine.
        unsafe { (&self.0).free(table, shape) }
    }
}

/// A xorshift generator: the numbers are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// The ranges with an owner: last IOVA by first IOVA.
#[derive(Default)]
struct Owned(Mutex<BTreeMap<u64, u64>>);

impl Owned {
    fn claim(&self, start: u64, last: u64) -> bool {
        let mut ranges = self.0.lock().unwrap();
        let before = ranges.range(..=last).next_back();
        if before.is_some_and(|(_, end)| *end >= start) {
            return false;
        }
        ranges.insert(start, last);
        true
    }

    fn release(&self, start: u64) {
        self.0.lock().unwrap().remove(&start).expect("an owner");
    }
}

/// Chooses a range: start, size, and whether to use large pages. There are only a few
/// places, so that owners share tables.
fn choose(numbers: &mut Numbers, reach: u64) -> (u64, u64, bool) {
    let (size, unit, span) = match numbers.below(20) {
        0 => (2 * GIB, 2 * GIB, 4 * GIB),
        1..=3 => (
            (1 + numbers.below(4)) * LARGE_PAGE_SIZE,
            LARGE_PAGE_SIZE,
            8 << 20,
        ),
        4..=6 => (LARGE_PAGE_SIZE, LARGE_PAGE_SIZE, 8 << 20),
        7..=12 => ((1 + numbers.below(300)) * PAGE_SIZE, PAGE_SIZE, 8 << 20),
        _ => (PAGE_SIZE, PAGE_SIZE, 8 << 20),
    };
    let base = match numbers.below(8) {
        0 => reach - (4 * GIB - 1),
        1 if reach > Depth::Third.reach() => Depth::Third.reach() + 1,
        _ => 0,
    };
    let large = unit > LARGE_PAGE_SIZE || unit == LARGE_PAGE_SIZE && numbers.below(2) == 0;
    (base + numbers.below(span / unit) * unit, size, large)
}

/// Maps a range that the caller owns, looks up pages in it, and unmaps it at once or in
/// parts.
fn use_range(tree: &DmaTable<&Raw>, raw: &Raw, numbers: &mut Numbers, range: (u64, u64, bool)) {
    let (start, size, large) = range;
    let phys = (1 << 40) + numbers.below(1 << 20) * LARGE_PAGE_SIZE;
    // SAFETY: The caller owns the range.
    let find = |at| unsafe { tree.lookup(Iova(at)) }.map(|found| found.phys.0);
    let ends = [start, start + (size - 1)];
    assert_eq!(ends.map(find), [None; 2], "before the map at {start:#x}");
    let access = Access::READ_WRITE;
    let (iova, count) = (Iova(start), (size / PAGE_SIZE) as usize);
    // SAFETY: As above, and the range is within reach.
    let quick = !large && unsafe { tree.map_present(tree.low(), iova, Phys(phys), count, access) };
    if !quick {
        let mapping = Mapping {
            iova,
            phys: Phys(phys),
            size,
            access,
            large,
        };
        // SAFETY: As above.
        assert_eq!(unsafe { tree.map(mapping, (), |_| true) }, (size, Ok(())));
    }
    for _ in 0..4 {
        let offset = numbers.below(size);
        assert_eq!(find(start + offset), Some(phys + offset), "at {start:#x}");
    }
    let mut done = 0;
    while done < size {
        let rest = size - done;
        let part = match numbers.below(3) {
            0 if !large => rest.min((1 + numbers.below(64)) * PAGE_SIZE),
            1 if large => rest.min(LARGE_PAGE_SIZE),
            _ => rest,
        };
        let at = Iova(start + done);
        // SAFETY: As above.
        let bytes = unsafe {
            match part == PAGE_SIZE && tree.unmap_page(tree.low(), at) {
                true => part,
                false => tree.unmap(at, part, &mut AtOnce(raw)),
            }
        };
        assert_eq!(bytes, part, "unmap at {at:x?}");
        done += part;
    }
    assert_eq!(ends.map(find), [None; 2], "after the unmap at {start:#x}");
}

fn owner(tree: &DmaTable<&Raw>, raw: &Raw, owned: &Owned, seed: u64) {
    let mut numbers = Numbers(seed);
    let mut left = RANGES;
    while left > 0 {
        let reach = tree.root().depth.reach();
        let range = choose(&mut numbers, reach);
        let (start, size, _) = range;
        if reach - start < size - 1 || !owned.claim(start, start + (size - 1)) {
            thread::yield_now();
            continue;
        }
        use_range(tree, raw, &mut numbers, range);
        owned.release(start);
        left -= 1;
    }
}

/// Reads the whole tree repeatedly until the owners have finished.
fn reader(tree: &DmaTable<&Raw>, done: &AtomicBool) {
    let wait = || {
        thread::yield_now();
        Ok::<(), ()>(())
    };
    while !done.load(Relaxed) {
        let walk = tree.walk(wait).expect("the wait has no error");
        let mut at = Some(0);
        while let Some(iova) = at {
            at = walk.next_used(Iova(iova)).and_then(|(start, last)| {
                walk.find(start);
                last.0.checked_add(1)
            });
        }
    }
}

#[test]
fn threads_on_one_tree() {
    for round in 0..ROUNDS {
        let raw = Raw::default();
        let vacant = Vacant::new(&&raw, ()).expect("memory");
        let tree = DmaTable::new(&raw, vacant, Depth::Third, (), AtomicU64::new).expect("memory");
        if round % 2 == 0 {
            tree.keep_entries_valid(|| Err(())).expect("no wait");
        }
        let (owned, done) = (Owned::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            let (tree, raw, owned, done) = (&tree, &raw, &owned, &done);
            let owners: Vec<_> = (1..=THREADS)
                .map(|thread| {
                    let seed = (round * THREADS + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    scope.spawn(move || owner(tree, raw, owned, seed))
                })
                .collect();
            scope.spawn(move || reader(tree, done));
            for depth in [Depth::Second, Depth::First] {
                tree.widen(depth, ()).expect("memory");
            }
            let ends: Vec<_> = owners.into_iter().map(|owner| owner.join()).collect();
            done.store(true, Relaxed);
            let all = ends.iter().all(Result::is_ok);
            assert!(all, "an owner failed");
        });
        drop(tree);
        // SAFETY: The only tree is gone.
        unsafe { vacant.free(&&raw) };
    }
}
