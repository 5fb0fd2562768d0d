// SPDX-License-Identifier: GPL-2.0

//! Emptied entries that stay valid: a hypervisor that overlooks invalid segment entries
//! finds invalid page entries instead.

use std::sync::atomic::AtomicU64;

use crate::dma_table::{Access, Depth, DmaTable, Iova, Mapping, Phys, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::memory::{HostMemory, Unlinked};
use crate::walker::{self, Found, Level};

const GIB: u64 = 1 << 30;

fn mapping(iova: u64, phys: u64, size: u64, large: bool) -> Mapping {
    Mapping {
        iova: Iova(iova),
        phys: Phys(phys),
        size,
        access: Access::READ_WRITE,
        large,
    }
}

/// Maps and unmaps a range twice, to different memory. `between` checks the tree after
/// each unmap.
fn replace(depth: Depth, size: u64, large: [bool; 2], between: impl Fn(&HostMemory, u64)) {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), depth, (), AtomicU64::new)
        .expect("memory is not limited");
    tree.keep_entries_valid(|| Err(())).expect("no wait");
    let mut unlinked = Unlinked::new(&memory);
    let iova = 4 * GIB;
    let top = Level::TOPS[depth as usize - 1];
    let origin = tree.root().origin.0;
    // SAFETY: There is only one thread, and all IOVAs are within reach.
    unsafe {
        for (round, large) in large.into_iter().enumerate() {
            let phys = (round as u64 + 1) << 40;
            assert_eq!(
                tree.map(mapping(iova, phys, size, large), (), |_| true),
                (size, Ok(()))
            );
            let last = walker::find(&memory, origin, top, iova + size - PAGE_SIZE);
            let Ok(Found::Leaf(leaf)) = last else {
                panic!("round {round}: the last page is not mapped")
            };
            assert_eq!(
                leaf.phys & !(leaf.size - 1),
                (phys + size - PAGE_SIZE) & !(leaf.size - 1)
            );
            assert_eq!(tree.unmap(Iova(iova), size, &mut unlinked), size);
            unlinked.refresh();
            between(&memory, origin);
            assert!(tree.lookup(Iova(iova)).is_none());
            assert_eq!(tree.unmap(Iova(iova), size, &mut unlinked), 0);
            let used = tree.walk(|| Err(())).expect("no wait").next_used(Iova(0));
            assert_eq!(used, None, "a vacant entry counts as used");
            // The fast paths leave vacant tables alone.
            assert!(tree.empty_page(tree.low(), Iova(iova)).is_none());
            assert!(!tree.map_present(
                tree.low(),
                Iova(iova),
                Phys(PAGE_SIZE),
                16,
                Access::READ_WRITE
            ));
            assert!(!tree.unmap_page(tree.low(), Iova(iova)));
        }
        let one = mapping(iova + 0x3000, 0x5000, PAGE_SIZE, false);
        assert_eq!(tree.map(one, (), |_| true), (PAGE_SIZE, Ok(())));
        assert!(tree.unmap_page(tree.low(), one.iova));
    }
    assert!(memory.vacant_is_intact(), "a vacant table was written");
    drop(tree);
    memory.check_all_freed();
}

/// Checks with the walker that a walk ends at an invalid page entry in every MiB of the
/// unmapped range.
fn ends_at_pages(memory: &HostMemory, origin: u64, top: Level, iova: u64, size: u64) {
    for at in (iova..iova + size).step_by(LARGE_PAGE_SIZE as usize) {
        match walker::find(memory, origin, top, at) {
            Ok(Found::Invalid(level)) => assert_eq!(level, Level::Page, "at {at:#x}"),
            other => panic!("{other:?} at {at:#x}"),
        }
    }
}

#[test]
fn what_was_unmapped_ends_at_invalid_pages() {
    for depth in [Depth::Third, Depth::Second, Depth::First] {
        for size in [
            LARGE_PAGE_SIZE,
            2 * LARGE_PAGE_SIZE,
            64 * LARGE_PAGE_SIZE,
            2 * GIB,
            4 * GIB,
        ] {
            for large in [[false, true], [true, false]] {
                let top = Level::TOPS[depth as usize - 1];
                replace(depth, size, large, |memory, origin| {
                    ends_at_pages(memory, origin, top, 4 * GIB, size);
                });
            }
        }
    }
}
