// SPDX-License-Identifier: GPL-2.0

//! Which tables large unmaps free, and which they must keep.

use std::cell::RefCell;
use std::sync::atomic::AtomicU64;

use crate::checked::Checked;
use crate::dma_table::{
    Access, DeferFree, Depth, DmaTable, Iova, MapError, Mapping, Phys, Shape, LARGE_PAGE_SIZE,
    PAGE_SIZE,
};
use crate::memory::{HostMemory, Unlinked};
use crate::walker::Level;

fn mapping(iova: u64, size: u64, large: bool) -> Mapping {
    Mapping {
        iova: Iova(iova),
        phys: Phys(0x1234_5000_0000),
        size,
        access: Access::READ_WRITE,
        large,
    }
}

/// Maps and unmaps a range in a tree with another page far away. Returns how many tables
/// this leaves in the tree.
fn map_and_unmap(depth: Depth, iova: u64, size: u64, large: bool) -> usize {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), depth, (), AtomicU64::new)
        .expect("memory is not limited");
    let mut unlinked = Unlinked::new(&memory);
    let far = mapping(iova ^ (depth.reach() / 2 + 1), PAGE_SIZE, false);
    // SAFETY: There is only one thread, and all IOVAs are within reach.
    unsafe {
        assert_eq!(tree.map(far, (), |_| true), (PAGE_SIZE, Ok(())));
        let before = memory.live();
        let range = mapping(iova, size, large);
        assert_eq!(tree.map(range, (), |_| true), (size, Ok(())));
        assert_eq!(tree.unmap(Iova(iova), size, &mut unlinked), size);
        assert!(tree.lookup(far.iova).is_some());
        let after = memory.live();
        unlinked.refresh();
        drop(tree);
        memory.check_all_freed();
        after - before
    }
}

/// 4 GiB, aligned: two segment tables and their page tables are freed.
#[cfg(not(loom))] // With two entries per table there is no page far away.
#[test]
fn four_gib() {
    let size = 2 * Level::RegionThird.span();
    for depth in [Depth::Third, Depth::Second, Depth::First] {
        for large in [false, true] {
            for iova in [0, size] {
                assert_eq!(map_and_unmap(depth, iova, size, large), 0);
            }
        }
    }
}

/// 4 TiB, aligned: a region-third table is freed, except the first one, which may be
/// registered.
#[test]
fn four_tib() {
    let size = Level::RegionSecond.span();
    for depth in [Depth::Second, Depth::First] {
        assert_eq!(map_and_unmap(depth, size, size, true), 0);
        assert_eq!(map_and_unmap(depth, 0, size, true), 0);
    }
}

/// 8 PiB in the real format, aligned: a region-second table is freed, except the first
/// one. A test can only fill narrow tables of this kind.
#[cfg(loom)]
#[test]
fn eight_pib() {
    let size = Level::RegionFirst.span();
    for large in [false, true] {
        assert_eq!(map_and_unmap(Depth::First, size, size, large), 0);
        assert_eq!(map_and_unmap(Depth::First, 0, size, large), 0);
    }
}

/// The whole reach of a tree with three levels; its top table stays.
#[test]
fn everything() {
    let size = Level::RegionSecond.span();
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), Depth::Third, (), AtomicU64::new)
        .expect("memory is not limited");
    let mut unlinked = Unlinked::new(&memory);
    // SAFETY: There is only one thread, and all IOVAs are within reach.
    unsafe {
        assert_eq!(
            tree.map(mapping(0, size, true), (), |_| true),
            (size, Ok(()))
        );
        tree.widen(Depth::First, ()).expect("memory is not limited");
        assert_eq!(tree.unmap(Iova(0), size, &mut unlinked), size);
    }
    assert_eq!(memory.live(), 3);
    unlinked.refresh();
    drop(tree);
    memory.check_all_freed();
}

/// A page table that is unmapped page by page stays, until an unmap covers it completely.
#[test]
fn piece_by_piece() {
    let memory = HostMemory::default();
    let mut tree = Checked::new(&memory, Depth::Third).expect("memory is not limited");
    let whole = mapping(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE, false);
    assert_eq!(tree.map(whole, None).0, LARGE_PAGE_SIZE);
    for page in (LARGE_PAGE_SIZE..2 * LARGE_PAGE_SIZE).step_by(PAGE_SIZE as usize) {
        assert_eq!(tree.unmap(page, PAGE_SIZE), PAGE_SIZE);
    }
    assert_eq!(tree.waiting(), 0);
    assert_eq!(tree.map(whole, None).0, LARGE_PAGE_SIZE);
    assert_eq!(
        tree.unmap(LARGE_PAGE_SIZE, 2 * LARGE_PAGE_SIZE),
        LARGE_PAGE_SIZE
    );
    assert_eq!(tree.waiting(), 1);
    tree.finish();
}

/// A large page replaces an empty page table, which is freed once the machine has forgotten
/// it. If the machine refuses, the table is filled instead.
#[test]
fn a_large_page_replaces_an_empty_table() {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), Depth::Third, (), AtomicU64::new)
        .expect("memory is not limited");
    let mut unlinked = Unlinked::new(&memory);
    let page = mapping(LARGE_PAGE_SIZE, PAGE_SIZE, false);
    let large = mapping(0, 2 * LARGE_PAGE_SIZE, true);
    for forgets in [true, false] {
        let live = memory.live();
        // SAFETY: There is only one thread, and all IOVAs are within reach.
        unsafe {
            assert_eq!(tree.map(page, (), |_| true), (PAGE_SIZE, Ok(())));
            let second = mapping(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE, true);
            let over = tree.map(second, (), |_| panic!("the table is in use"));
            assert_eq!(over, (0, Err(MapError::InUse)));
            assert_eq!(tree.unmap(page.iova, PAGE_SIZE, &mut unlinked), PAGE_SIZE);
            let upper = memory.live() - live - 1;
            let mut forgotten = Vec::new();
            let forget = |at: Iova| {
                assert_eq!(memory.live(), live + upper + 1, "freed too early");
                forgotten.push(at.0);
                forgets
            };
            assert_eq!(tree.map(large, (), forget), (large.size, Ok(())));
            assert_eq!(forgotten, [LARGE_PAGE_SIZE]);
            assert_eq!(memory.live(), live + upper + usize::from(!forgets));
            for offset in (0..large.size).step_by(PAGE_SIZE as usize) {
                let found = tree.lookup(Iova(offset)).expect("mapped");
                assert_eq!(found.phys, Phys(large.phys.0 + offset));
                let is_large = forgets || offset < LARGE_PAGE_SIZE;
                assert_eq!(found.page_size == LARGE_PAGE_SIZE, is_large);
            }
            assert_eq!(tree.unmap(Iova(0), large.size, &mut unlinked), large.size);
        }
        unlinked.refresh();
    }
    drop(tree);
    memory.check_all_freed();
}

/// A table is not freed if a hole ends the unmap before it covers the whole table,
/// because others may own the rest.
#[test]
fn a_hole_keeps_the_table() {
    let memory = HostMemory::default();
    let mut tree = Checked::new(&memory, Depth::Third).expect("memory is not limited");
    let most = mapping(0, LARGE_PAGE_SIZE - PAGE_SIZE, false);
    assert_eq!(tree.map(most, None).0, most.size);
    assert_eq!(tree.unmap(0, LARGE_PAGE_SIZE), most.size);
    assert_eq!(tree.waiting(), 0);
    tree.finish();
}

/// Records the size of each mark, and whether IOVA 0 is still mapped at that time.
struct Marked<'t, 'm> {
    unlinked: Unlinked<'m>,
    tree: &'t DmaTable<&'m HostMemory>,
    marks: RefCell<Vec<(u64, bool)>>,
}

impl DeferFree for Marked<'_, '_> {
    fn defer_free(&mut self, table: Phys, shape: Shape) {
        self.unlinked.defer_free(table, shape);
    }

    fn mark(&self, size: u64) {
        let walk = self.tree.walk(|| Err(()));
        assert!(walk.is_err(), "marked outside the walk lock");
        // SAFETY: There is only one thread.
        let is_mapped = unsafe { self.tree.lookup(Iova(0)) }.is_some();
        self.marks.borrow_mut().push((size, is_mapped));
    }
}

/// Both marks are set under the walk lock, the first one before entries are emptied.
#[test]
fn long_unmaps_are_marked_under_the_walk_lock() {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), Depth::Third, (), AtomicU64::new)
        .expect("memory is not limited");
    let mut marked = Marked {
        unlinked: Unlinked::new(&memory),
        tree: &tree,
        marks: RefCell::default(),
    };
    for large in [false, true] {
        let size = 2 * LARGE_PAGE_SIZE;
        // SAFETY: There is only one thread, and all IOVAs are within reach.
        unsafe {
            assert_eq!(
                tree.map(mapping(0, size, large), (), |_| true),
                (size, Ok(()))
            );
            let unmapped = tree.unmap(Iova(0), 4 * size, &mut marked);
            assert_eq!(unmapped, size);
        }
        assert_eq!(marked.marks.take(), [(4 * size, true), (size, false)]);
    }
    marked.unlinked.refresh();
}
