// SPDX-License-Identifier: GPL-2.0

//! Calls that a caller must not make change nothing; a dump of a table that
//! changes meanwhile goes on at the next entry.

use crate::checked::Checked;
use crate::dma_table::{Access, Depth, DmaTable, Iova, Mapping, Phys, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::dump::{Dump, Step};
use crate::memory::HostMemory;
use std::sync::atomic::AtomicU64;

const PHYS: u64 = 0x1234_5000;

fn page(iova: u64) -> Mapping {
    Mapping {
        iova: Iova(iova),
        phys: Phys(PHYS),
        size: PAGE_SIZE,
        access: Access::READ_WRITE,
        large: false,
    }
}

/// The fast paths look at the alignment themselves.
#[test]
fn misaligned_pages() {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), Depth::Third, (), AtomicU64::new)
        .expect("there is memory");
    let free = Iova(2 * PAGE_SIZE);
    // SAFETY: There is one thread, and all lies within reach.
    unsafe {
        assert_eq!(tree.map(page(0), ()), (PAGE_SIZE, Ok(())));
        let (iova, access) = (Iova(free.0 + 1), Access::READ_WRITE);
        assert!(!tree.map_page(iova, Phys(PHYS), access), "IOVA");
        assert!(!tree.map_page(free, Phys(PHYS + 0x200), access), "address");
        assert!(
            !tree.map_in_leaf(iova, Phys(PHYS), 2, access),
            "IOVA of a run"
        );
        assert!(
            !tree.map_in_leaf(free, Phys(PHYS + 0x400), 2, access),
            "address of a run"
        );
        assert!(tree.lookup(free).is_none());
        assert!(!tree.unmap_page(Iova(0x123)), "unmap");
        assert!(tree.lookup(Iova(0)).is_some());
        assert!(tree.map_page(free, Phys(PHYS), access));
        assert!(tree.unmap_page(free));
    }
}

/// A page table takes the place of a large page while a dump stands in the middle
/// of it, and the other way round: what comes behind is found.
#[test]
fn dump_of_a_table_that_changes() {
    let next = Ok(crate::dma_table::Translation {
        phys: Phys(PHYS),
        page_size: PAGE_SIZE,
        access: Access::READ_WRITE,
    });
    let mut dump = Dump::new();
    // A page table with one page looked at.
    assert_eq!(dump.step(1, |_| Some(Err(PAGE_SIZE))), Step::Pause);
    // An empty entry of 1 MiB has come instead: the dump goes on right behind it.
    assert_eq!(dump.step(1, |_| Some(Err(LARGE_PAGE_SIZE))), Step::Pause);
    let found = |iova: Iova| match iova.0 {
        LARGE_PAGE_SIZE => Some(next),
        at if at < 2 * LARGE_PAGE_SIZE => Some(Err(PAGE_SIZE)),
        _ => None,
    };
    match dump.step(2, found) {
        Step::Run(run) => assert_eq!((run.iova, run.phys), (LARGE_PAGE_SIZE, PHYS)),
        other => panic!("{other:?}"),
    }
}

/// A map over what is mapped is refused as such, also where there is no memory.
#[test]
fn in_use_before_out_of_memory() {
    let memory = HostMemory::default();
    let mut tree = Checked::new(&memory, Depth::Third).expect("there is memory");
    assert_eq!(tree.map(page(0), None), (PAGE_SIZE, Ok(())));
    let again = tree.map(page(0), Some(0));
    assert_eq!(again, (0, Err(crate::dma_table::MapError::InUse)));
    let large = Mapping {
        phys: Phys(LARGE_PAGE_SIZE),
        size: LARGE_PAGE_SIZE,
        large: true,
        ..page(LARGE_PAGE_SIZE)
    };
    assert_eq!(tree.map(large, None), (LARGE_PAGE_SIZE, Ok(())));
    let inside = tree.map(page(LARGE_PAGE_SIZE + PAGE_SIZE), Some(0));
    assert_eq!(inside, (0, Err(crate::dma_table::MapError::InUse)));
    tree.finish();
}
