// SPDX-License-Identifier: GPL-2.0

//! What random operations hardly come to: the short ways refuse what is not aligned,
//! a live entry is found before memory is asked for, and a dump goes on where a
//! table has gone.

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::AtomicU64;

use crate::checked::Checked;
use crate::dma_table::dump::{Dump, Step};
use crate::dma_table::{
    Access, Depth, DmaTable, Iova, MapError, Mapping, Phys, Translation, LARGE_PAGE_SIZE, PAGE_SIZE,
};
use crate::memory::HostMemory;

const IOVA: u64 = LARGE_PAGE_SIZE;
const PHYS: u64 = 0x1234_5000_0000;

/// Gives a tree to `test` in which the page at [`IOVA`] is mapped, and looks whether
/// the one behind it still is not.
fn beside_a_page(test: impl Fn(&DmaTable<&HostMemory>)) {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), Depth::Third, (), AtomicU64::new)
        .expect("there is memory");
    let first = (Iova(IOVA), Phys(PHYS), PAGE_SIZE);
    let mapping = Mapping {
        iova: first.0,
        phys: first.1,
        size: first.2,
        access: Access::READ_WRITE,
        large: false,
    };
    // SAFETY: There is one thread, and all lies within reach.
    unsafe {
        assert_eq!(tree.map(mapping, ()), (PAGE_SIZE, Ok(())));
        test(&tree);
        let found = tree.lookup(first.0).expect("it stays mapped");
        assert_eq!(found.phys, first.1);
        assert!(tree.lookup(Iova(IOVA + PAGE_SIZE)).is_none());
    }
}

/// Addresses behind the mapped page of which one at least is not aligned.
const MISALIGNED: [(Iova, Phys); 3] = [
    (Iova(IOVA + PAGE_SIZE + 0x10), Phys(PHYS)),
    (Iova(IOVA + PAGE_SIZE), Phys(PHYS + 0x10)),
    (Iova(IOVA + PAGE_SIZE + 0x10), Phys(PHYS + 0x10)),
];

#[test]
fn a_misaligned_page_is_not_mapped() {
    beside_a_page(|tree| {
        for (iova, phys) in MISALIGNED {
            // SAFETY: The assertion ends it before it writes.
            let map = || {
                unsafe { tree.empty_page(tree.low(), iova) }
                    .map(|page| page.fill(phys, Access::READ_WRITE))
            };
            assert!(catch_unwind(AssertUnwindSafe(map)).is_err());
        }
    });
}

#[test]
fn a_misaligned_run_is_not_mapped() {
    beside_a_page(|tree| {
        for (iova, phys) in MISALIGNED {
            // SAFETY: The assertion ends it before it writes.
            let map = || unsafe { tree.map_present(tree.low(), iova, phys, 2, Access::READ_WRITE) };
            assert!(catch_unwind(AssertUnwindSafe(map)).is_err());
        }
    });
}

#[test]
fn a_misaligned_page_is_not_unmapped() {
    beside_a_page(|tree| {
        // SAFETY: The assertion ends it before it writes.
        let unmap = || unsafe { tree.unmap_page(tree.low(), Iova(IOVA + 0x10)) };
        assert!(catch_unwind(AssertUnwindSafe(unmap)).is_err());
    });
}

#[test]
fn nothing_is_found_beyond_the_reach() {
    beside_a_page(|tree| {
        let beyond = Depth::Third.reach() + 1 + IOVA;
        // SAFETY: There is one thread.
        assert!(unsafe { tree.lookup(Iova(beyond)) }.is_none());
    });
}

/// In use is in use, also where there is no memory.
#[test]
fn a_large_page_is_found_before_memory_is_asked_for() {
    let memory = HostMemory::default();
    let mut tree = Checked::new(&memory, Depth::Third).expect("there is memory");
    let large = Mapping {
        iova: Iova(IOVA),
        phys: Phys(PHYS),
        size: LARGE_PAGE_SIZE,
        access: Access::READ_WRITE,
        large: true,
    };
    assert_eq!(tree.map(large, None), (LARGE_PAGE_SIZE, Ok(())));
    let page = Mapping {
        size: PAGE_SIZE,
        large: false,
        ..large
    };
    assert_eq!(tree.map(page, Some(0)), (0, Err(MapError::InUse)));
    tree.finish();
}

/// A dump was in a page table that is gone when it comes back: it goes on where the
/// empty segment entry ends.
#[test]
fn a_dump_goes_on_behind_an_entry_that_it_is_inside_of() {
    let asked = Cell::new(0);
    let find = |iova: Iova| {
        asked.set(iova.0);
        match iova.0 {
            0 => Some(Err(PAGE_SIZE)),
            at if at < 4 * LARGE_PAGE_SIZE => Some(Err(LARGE_PAGE_SIZE)),
            _ => None,
        }
    };
    let mut dump = Dump::new();
    for expected in [0, PAGE_SIZE, LARGE_PAGE_SIZE, 2 * LARGE_PAGE_SIZE] {
        assert_eq!(dump.step(1, find), Step::Pause);
        assert_eq!(asked.get(), expected);
    }
}

/// Pages that follow each other in all but their permissions are two ranges.
#[test]
fn a_dump_parts_other_permissions() {
    let find = |iova: Iova| {
        let access = match iova.0 / PAGE_SIZE {
            0 => Access::READ_ONLY,
            1 => Access::READ_WRITE,
            _ => return None,
        };
        Some(Ok(Translation {
            phys: Phys(PHYS + iova.0),
            page_size: PAGE_SIZE,
            access,
        }))
    };
    let mut dump = Dump::new();
    for (iova, access) in [(0, Access::READ_ONLY), (PAGE_SIZE, Access::READ_WRITE)] {
        let Step::Run(run) = dump.step(3, find) else {
            panic!("no range at {iova:#x}")
        };
        assert_eq!(
            (run.iova, run.last, run.access),
            (iova, iova + (PAGE_SIZE - 1), access)
        );
    }
    assert_eq!(dump.step(3, find), Step::End);
}
