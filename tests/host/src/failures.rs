// SPDX-License-Identifier: GPL-2.0

//! Fails every allocation of each operation in turn. Existing mappings stay, nothing
//! beyond the reported bytes is mapped, a retry succeeds, and nothing leaks. [`Checked`]
//! verifies all of this except the retry.

use crate::checked::Checked;
use crate::dma_table::{Access, Depth, Iova, MapError, Mapping, Phys, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::memory::HostMemory;
use crate::walker::Level;

const DEPTHS: [Depth; 3] = [Depth::Third, Depth::Second, Depth::First];

fn mapping(iova: u64, size: u64, large: bool) -> Mapping {
    Mapping {
        iova: Iova(iova),
        phys: Phys(0x1234_5000_0000),
        size,
        access: Access::READ_ONLY,
        large,
    }
}

/// A tree in which these pages are mapped.
fn tree_with<'m>(memory: &'m HostMemory, depth: Depth, pages: &[u64]) -> Checked<'m> {
    let mut tree = Checked::new(memory, depth).expect("memory is not limited");
    for &iova in pages {
        let page = mapping(iova, PAGE_SIZE, false);
        assert_eq!(tree.map(page, None), (PAGE_SIZE, Ok(())));
    }
    tree
}

/// Repeats a map with one more successful allocation each time until it succeeds. Returns
/// the number of allocations. After each failure, a partial map is undone or completed.
fn fail_in_map(depth: Depth, pages: &[u64], whole: Mapping, undo: bool) -> u64 {
    for budget in 0.. {
        let memory = HostMemory::default();
        let mut tree = tree_with(&memory, depth, pages);
        let (bytes, result) = tree.map(whole, Some(budget));
        tree.agree_all();
        if result.is_ok() {
            tree.finish();
            return budget;
        }
        assert_eq!(result, Err(MapError::NoMemory));
        let mut rest = whole;
        if undo {
            assert_eq!(tree.unmap(whole.iova.0, whole.size), bytes);
        } else {
            rest.iova.0 += bytes;
            rest.phys.0 += bytes;
            rest.size -= bytes;
        }
        assert_eq!(tree.map(rest, None), (rest.size, Ok(())));
        tree.finish();
    }
    unreachable!()
}

/// Runs [`fail_in_map`] at each depth, with and without a mapped page before the range.
/// `tables` is how many tables the map allocates in an empty tree, below the region-third
/// table that always exists.
fn fail_in_maps(iova: u64, size: u64, large: bool, tables: u64) {
    let whole = mapping(iova, size, large);
    for undo in [false, true] {
        for depth in DEPTHS {
            if iova + (size - 1) <= depth.reach() {
                let made = fail_in_map(depth, &[], whole, undo);
                assert_eq!(made, tables);
                assert!(fail_in_map(depth, &[iova - PAGE_SIZE], whole, undo) < made);
            }
        }
    }
}

#[test]
fn map_one_page() {
    fail_in_maps(LARGE_PAGE_SIZE + PAGE_SIZE, PAGE_SIZE, false, 2);
}

#[test]
fn map_a_page_table() {
    fail_in_maps(LARGE_PAGE_SIZE, LARGE_PAGE_SIZE, false, 2);
}

#[test]
fn map_across_page_tables() {
    fail_in_maps(LARGE_PAGE_SIZE - PAGE_SIZE, 2 * PAGE_SIZE, false, 3);
}

#[test]
fn map_across_segment_tables() {
    let boundary = Level::RegionThird.span();
    fail_in_maps(boundary - PAGE_SIZE, 2 * PAGE_SIZE, false, 4);
}

#[test]
fn map_large_pages_across_segment_tables() {
    let boundary = Level::RegionThird.span();
    fail_in_maps(boundary - LARGE_PAGE_SIZE, 2 * LARGE_PAGE_SIZE, true, 2);
}

/// Maps two pages across the boundary between two tables of a level.
fn across(boundary: u64, depth: Depth, tables: u64) {
    let whole = mapping(boundary - PAGE_SIZE, 2 * PAGE_SIZE, false);
    for undo in [false, true] {
        assert_eq!(fail_in_map(depth, &[], whole, undo), tables);
    }
}

#[test]
fn map_across_region_third_tables() {
    across(Level::RegionSecond.span(), Depth::Second, 2 + 3);
    across(Level::RegionSecond.span(), Depth::First, 2 + 3);
}

#[test]
fn map_across_region_second_tables() {
    across(Level::RegionFirst.span(), Depth::First, 3 + 4);
}

/// A map with large pages finds an empty page table.
#[test]
fn map_large_pages_over_an_empty_page_table() {
    for budget in 0..2 {
        let memory = HostMemory::default();
        let mut tree = tree_with(&memory, Depth::Third, &[LARGE_PAGE_SIZE]);
        assert_eq!(tree.unmap(LARGE_PAGE_SIZE, PAGE_SIZE), PAGE_SIZE);
        let large = mapping(0, 2 * LARGE_PAGE_SIZE, true);
        assert_eq!(tree.map(large, Some(budget)), (large.size, Ok(())));
        tree.finish();
    }
}

#[test]
fn new_tree() {
    for (levels, depth) in (1..).zip(DEPTHS) {
        for budget in 0..levels {
            let memory = HostMemory::default();
            memory.limit(Some(budget));
            let tree = Checked::new(&memory, depth);
            assert_eq!(tree.err(), Some(MapError::NoMemory));
            memory.check_all_freed();
        }
        let memory = HostMemory::default();
        memory.limit(Some(levels));
        let tree = Checked::new(&memory, depth);
        tree.expect("the budget suffices").finish();
    }
}

#[test]
fn widen() {
    for (levels, from) in [(2, Depth::Third), (1, Depth::Second), (0, Depth::First)] {
        for budget in 0..=levels {
            let memory = HostMemory::default();
            let mut tree = tree_with(&memory, from, &[0, LARGE_PAGE_SIZE]);
            let result = tree.widen(Depth::First, Some(budget));
            assert_eq!(result.is_ok(), budget == levels);
            tree.agree_all();
            assert_eq!(tree.widen(Depth::First, None), Ok(()));
            let high = mapping(Depth::First.reach() - PAGE_SIZE + 1, PAGE_SIZE, false);
            assert_eq!(tree.map(high, None), (PAGE_SIZE, Ok(())));
            tree.finish();
        }
    }
}
