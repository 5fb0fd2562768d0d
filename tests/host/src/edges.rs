// SPDX-License-Identifier: GPL-2.0

//! Cases that random operations rarely reach: the fast paths reject misaligned addresses,
//! a live entry is found before an allocation, and a dump continues after a table was
//! freed.

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

/// Runs `test` on a tree in which the page at [`IOVA`] is mapped. This page must stay
/// mapped, and the next one unmapped.
fn beside_a_page(test: impl Fn(&DmaTable<&HostMemory>)) {
    let memory = HostMemory::default();
    let tree = DmaTable::new(&memory, memory.vacant(), Depth::Third, (), AtomicU64::new)
        .expect("memory is not limited");
    let first = (Iova(IOVA), Phys(PHYS), PAGE_SIZE);
    let mapping = Mapping {
        iova: first.0,
        phys: first.1,
        size: first.2,
        access: Access::READ_WRITE,
        large: false,
    };
    // SAFETY: There is only one thread, and all IOVAs are within reach.
    unsafe {
        assert_eq!(tree.map(mapping, (), |_| true), (PAGE_SIZE, Ok(())));
        test(&tree);
        let found = tree.lookup(first.0).expect("it stays mapped");
        assert_eq!(found.phys, first.1);
        assert!(tree.lookup(Iova(IOVA + PAGE_SIZE)).is_none());
    }
}

/// IOVAs after the mapped page and physical addresses, at least one of them misaligned
const MISALIGNED: [(Iova, Phys); 3] = [
    (Iova(IOVA + PAGE_SIZE + 0x10), Phys(PHYS)),
    (Iova(IOVA + PAGE_SIZE), Phys(PHYS + 0x10)),
    (Iova(IOVA + PAGE_SIZE + 0x10), Phys(PHYS + 0x10)),
];

#[test]
fn a_misaligned_page_is_not_mapped() {
    beside_a_page(|tree| {
        for (iova, phys) in MISALIGNED {
            // SAFETY: An assertion panics before anything is written.
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
            // SAFETY: An assertion panics before anything is written.
            let map = || unsafe { tree.map_present(tree.low(), iova, phys, 2, Access::READ_WRITE) };
            assert!(catch_unwind(AssertUnwindSafe(map)).is_err());
        }
    });
}

#[test]
fn a_misaligned_page_is_not_unmapped() {
    beside_a_page(|tree| {
        // SAFETY: An assertion panics before anything is written.
        let unmap = || unsafe { tree.unmap_page(tree.low(), Iova(IOVA + 0x10)) };
        assert!(catch_unwind(AssertUnwindSafe(unmap)).is_err());
    });
}

#[test]
fn nothing_is_found_beyond_the_reach() {
    beside_a_page(|tree| {
        let beyond = Depth::Third.reach() + 1 + IOVA;
        // SAFETY: There is only one thread.
        assert!(unsafe { tree.lookup(Iova(beyond)) }.is_none());
    });
}

/// A map over a live entry fails with `InUse` even if there is no memory.
#[test]
fn a_large_page_is_found_before_memory_is_asked_for() {
    let memory = HostMemory::default();
    let mut tree = Checked::new(&memory, Depth::Third).expect("memory is not limited");
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

/// The page table that a dump has paused in is freed: the dump continues after the empty
/// segment entry.
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

/// Contiguous pages with different permissions are separate ranges.
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
