// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the parts that need no machine: ranges, marks, dumps, tables in
//! memory of the kernel's own allocator and in big endian, and which functions a
//! domain accepts.

use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    }, //
};

use crate::{
    address_space::{
        members::Member,
        pending::{
            Flushes,
            Pending, //
        },
        readers, //
    },
    dma_table::{
        dump::{
            Dump,
            Run,
            Step, //
        },
        memory::TablePages,
        Access,
        DeferFree,
        Depth,
        DmaTable,
        Iova,
        MapError,
        Mapping,
        Memory,
        Phys,
        Shape,
        Vacant,
        LARGE_PAGE_SIZE,
        PAGE_SIZE, //
    },
    domain::Domain,
    function::{
        Function,
        Space, //
    },
    iommu::{
        Gfp,
        Prot, //
    },
    range::{
        self,
        Range, //
    },
    zpci::{
        Iota,
        Zdev, //
    }, //
};

const GIB: u64 = 1 << 30;

/// Keeps unlinked tables until `free` is called: no machine reads them.
struct Unlinked(KVec<(Phys, Shape)>);

impl Unlinked {
    fn new() -> Self {
        Unlinked(KVec::new())
    }

    fn free(&mut self, tree: &DmaTable<TablePages>) {
        for (table, shape) in self.0.drain_all() {
            // SAFETY: The table came from this tree, which does not link to it any more.
            unsafe { tree.memory().free(table, shape) }
        }
    }
}

impl DeferFree for Unlinked {
    fn defer_free(&mut self, table: Phys, shape: Shape) {
        assert!(self.0.push((table, shape), GFP_KERNEL).is_ok());
    }
}

/// Vacant tables for all tests; they are never freed.
fn vacant() -> Result<Vacant> {
    static VACANT: SetOnce<Vacant> = SetOnce::new();

    if VACANT.as_ref().is_none() {
        VACANT.populate(Vacant::new(&TablePages::of_domain(0), Gfp::KERNEL)?);
    }
    VACANT.copy().ok_or(ENOMEM)
}

fn tree(depth: Depth) -> Result<DmaTable<TablePages>> {
    Ok(DmaTable::new(
        TablePages::of_domain(0),
        vacant()?,
        depth,
        Gfp::KERNEL,
        Into::into,
    )?)
}

fn mapping(iova: u64, phys: u64, size: u64) -> Mapping {
    Mapping {
        iova: Iova(iova),
        phys: Phys(phys),
        size,
        access: Access::READ_WRITE,
        large: (iova | phys | size) & (LARGE_PAGE_SIZE - 1) == 0,
    }
}

fn map(tree: &DmaTable<TablePages>, mapping: Mapping) -> (u64, Result<(), MapError>) {
    // SAFETY: A test has its tree for itself.
    unsafe { tree.map(mapping, Gfp::KERNEL, |_| true) }
}

fn unmap(tree: &DmaTable<TablePages>, iova: u64, size: u64) -> u64 {
    let mut unlinked = Unlinked::new();
    // SAFETY: A test has its tree for itself.
    let bytes = unsafe { tree.unmap(Iova(iova), size, &mut unlinked) };
    unlinked.free(tree);
    bytes
}

fn phys(tree: &DmaTable<TablePages>, iova: u64) -> Option<u64> {
    // SAFETY: A test has its tree for itself.
    unsafe { tree.lookup(Iova(iova)) }.map(|found| found.phys.0)
}

#[kunit_tests(s390_iommu_aperture)]
mod apertures {
    use super::*;

    fn regions(start: u64, end: u64, limit: u64, reach: u64) -> [Option<(u64, u64)>; 2] {
        match range::window(start, end, reach, limit) {
            Some(window) => range::reserved(window, reach)
                .map(|region| region.map(|range| (range.start(), range.last()))),
            None => [None, None],
        }
    }

    #[test]
    fn a_machine_of_32_gib() {
        let reach = Depth::Third.reach();
        assert_eq!(
            regions(4 * GIB, u64::MAX, 32 * GIB, reach),
            [
                Some((0, 0xffff_ffff)),
                Some((0x9_0000_0000, 0x3ff_ffff_ffff))
            ]
        );
    }

    #[test]
    fn ends_are_inclusive() {
        assert_eq!(regions(0, u64::MAX, u64::MAX, u64::MAX), [None, None]);
        assert_eq!(
            regions(PAGE_SIZE, 0xffff, u64::MAX, u64::MAX),
            [Some((0, 0xfff)), Some((0x1_0000, u64::MAX))]
        );
        assert!(range::window(2, 1, u64::MAX, u64::MAX).is_none());
        assert!(range::window(0, 1, u64::MAX, 0).is_none());
        assert!(range::window(1 << 42, u64::MAX, Depth::Third.reach(), GIB).is_none());
    }

    #[test]
    fn full_flushes_name_what_was_marked() -> Result {
        let pending = Pending::new(Range::sized(GIB, 64 * GIB).ok_or(EINVAL)?);
        let mut flushes = Flushes::new();
        let mut taken = |done| {
            let ticket = flushes.begin(&pending, true);
            flushes.end(&ticket, done);
            ticket.ranges
        };
        assert!(taken(true).as_slice().is_empty());
        let chunk = 32 << 20;
        pending.mark(GIB + chunk, GIB + chunk);
        pending.mark(GIB + 2 * chunk - 1, GIB + 2 * chunk);
        pending.mark_one(60 * GIB);
        let ranges = taken(true);
        let Some(&[low, high]) = ranges.as_slice().first_chunk() else {
            return Err(EINVAL);
        };
        assert_eq!(Some(low), Range::new(GIB + chunk, GIB + 3 * chunk - 1));
        assert_eq!(Some(high), Range::sized(60 * GIB, chunk));
        assert!(taken(true).as_slice().is_empty());
        pending.mark_one(0);
        assert_eq!(taken(true).as_slice(), [Range::ALL]);
        assert!(taken(false).as_slice().is_empty());
        assert_eq!(taken(true).as_slice(), [Range::ALL]);
        assert!(taken(true).as_slice().is_empty());
        Ok(())
    }

    #[test]
    fn ranges_clip() {
        let window = Range::sized(16, 16);
        assert_eq!(Range::sized(0, 16).and_then(|low| low.clip(window?)), None);
        assert_eq!(
            Range::new(0, 16).and_then(|low| low.clip(window?)),
            Range::new(16, 16)
        );
        assert!(Range::sized(1, u64::MAX).is_some());
        assert!(Range::sized(2, u64::MAX).is_none());
        assert!(Range::sized(0, 0).is_none());
    }
}

#[kunit_tests(s390_iommu_dma_table)]
mod tables {
    use super::*;

    const DEPTHS: [Depth; 3] = [Depth::Third, Depth::Second, Depth::First];

    #[test]
    fn maps_and_gives_everything_back() -> Result {
        for depth in DEPTHS {
            let tree = tree(depth)?;
            let empty = tree.memory().bytes();
            for (large, size) in [(false, 64 << 20), (true, 4 * GIB)] {
                let mut range = mapping(4 * GIB, 0x4000_0000, size);
                range.large = large;
                assert_eq!(map(&tree, range), (size, Ok(())));
                assert_eq!(phys(&tree, 4 * GIB + 0x12_3456), Some(0x4012_3456));
                assert_eq!(phys(&tree, 4 * GIB + size), None);
                assert_eq!(map(&tree, range), (0, Err(MapError::InUse)));
                assert_eq!(unmap(&tree, 4 * GIB, size), size);
                assert_eq!(phys(&tree, 4 * GIB), None);
            }
            // Segment tables that the unmap covered only in part stay.
            assert_eq!(unmap(&tree, 4 * GIB, 2 * GIB), 0);
            assert_eq!(map(&tree, mapping(4 * GIB, 0, 4 * GIB)).0, 4 * GIB);
            assert_eq!(unmap(&tree, 4 * GIB, 4 * GIB), 4 * GIB);
            let upper = tree.memory().bytes() - empty;
            assert!(upper <= 2 * Shape::Upper.bytes());
        }
        Ok(())
    }

    #[test]
    fn refuses_what_is_live_and_stops_at_holes() -> Result {
        let tree = tree(Depth::Third)?;
        assert_eq!(
            map(&tree, mapping(0x8000, 0x1000, 0x2000)),
            (0x2000, Ok(()))
        );
        let over = mapping(0, 0x10_0000, 0x10_0000);
        let over = Mapping {
            large: false,
            ..over
        };
        assert_eq!(map(&tree, over), (0, Err(MapError::InUse)));
        assert_eq!(phys(&tree, 0x0), None);
        assert_eq!(phys(&tree, 0x9abc), Some(0x2abc));
        assert_eq!(unmap(&tree, 0x7000, 0x3000), 0);
        assert_eq!(unmap(&tree, 0x8000, 0x10_0000 - 0x8000), 0x2000);
        assert_eq!(unmap(&tree, 0x8000, 0x1000), 0);
        Ok(())
    }

    #[test]
    fn a_large_page_is_not_split() -> Result {
        let tree = tree(Depth::Third)?;
        let large = mapping(LARGE_PAGE_SIZE, 7 * LARGE_PAGE_SIZE, LARGE_PAGE_SIZE);
        assert_eq!(map(&tree, large), (LARGE_PAGE_SIZE, Ok(())));
        assert_eq!(unmap(&tree, LARGE_PAGE_SIZE, PAGE_SIZE), 0);
        assert_eq!(
            phys(&tree, LARGE_PAGE_SIZE + 1),
            Some(7 * LARGE_PAGE_SIZE + 1)
        );
        let page = mapping(LARGE_PAGE_SIZE + PAGE_SIZE, 0x1000, PAGE_SIZE);
        assert_eq!(map(&tree, page), (0, Err(MapError::InUse)));
        assert_eq!(
            unmap(&tree, LARGE_PAGE_SIZE, LARGE_PAGE_SIZE),
            LARGE_PAGE_SIZE
        );
        assert_eq!(map(&tree, page), (PAGE_SIZE, Ok(())));
        Ok(())
    }

    #[test]
    fn a_large_page_replaces_an_empty_table() -> Result {
        let tree = tree(Depth::Third)?;
        let page = mapping(LARGE_PAGE_SIZE + PAGE_SIZE, 0x1000, PAGE_SIZE);
        let large = mapping(LARGE_PAGE_SIZE, 7 * LARGE_PAGE_SIZE, LARGE_PAGE_SIZE);
        assert_eq!(map(&tree, page), (PAGE_SIZE, Ok(())));
        assert_eq!(map(&tree, large), (0, Err(MapError::InUse)));
        assert_eq!(unmap(&tree, page.iova.0, PAGE_SIZE), PAGE_SIZE);
        let bytes = tree.memory().bytes();
        assert_eq!(map(&tree, large), (LARGE_PAGE_SIZE, Ok(())));
        assert!(tree.memory().bytes() < bytes);
        assert_eq!(phys(&tree, large.iova.0 + 1), Some(large.phys.0 + 1));
        Ok(())
    }

    #[test]
    fn grows_at_the_top() -> Result {
        let tree = tree(Depth::Third)?;
        let old = tree.root();
        assert_eq!(map(&tree, mapping(0, 0x1000, 0x4000)), (0x4000, Ok(())));
        tree.widen(Depth::First, Gfp::KERNEL)?;
        assert_eq!(tree.root().depth, Depth::First);
        assert!(tree.root().origin != old.origin);
        assert_eq!(phys(&tree, 0x3fff), Some(0x4fff));
        let far = mapping(0xffff_ffff_ffff_0000, 0x2000, 0x1_0000);
        assert_eq!(map(&tree, far), (0x1_0000, Ok(())));
        assert_eq!(phys(&tree, u64::MAX), Some(0x1_1fff));
        tree.widen(Depth::Second, Gfp::KERNEL)?;
        assert_eq!(tree.root().depth, Depth::First);
        Ok(())
    }
}

/// Functions that do not exist: no test here issues an instruction.
#[kunit_tests(s390_iommu_domain)]
mod domains {
    use super::*;

    /// Masks of table types: region-third, as in the emulator; also region-second; also
    /// region-first.
    const THIRD: u8 = 0x40;
    const SECOND: u8 = 0x60;
    const FIRST: u8 = 0x70;
    /// The first IOVA that needs a table of four levels, and of five.
    const DEEP: u64 = Depth::Third.reach() + 1;
    const DEEPEST: u64 = Depth::Second.reach() + 1;

    /// A function and the structure that the subsystem keeps for it.
    struct Bare {
        function: Arc<Function>,
        /// Dropped after the function, which uses it.
        _zdev: KBox<MaybeUninit<bindings::zpci_dev>>,
    }

    impl Bare {
        fn new(window: (u64, u64), masks: u8) -> Result<Self> {
            let mut zdev = KBox::<bindings::zpci_dev>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
            let raw = zdev.as_mut_ptr();
            // SAFETY: It was allocated above, is zeroed, and nobody else has it.
            unsafe {
                (*raw).start_dma = window.0;
                (*raw).end_dma = window.1;
                (*raw).dtsm = masks;
            }
            // SAFETY: It outlives the function, by the order of the fields.
            let found = unsafe { Zdev::from_raw(NonNull::new(raw).ok_or(EINVAL)?) };
            let init = Function::new(found, &crate::BLOCKED, |_| Iota::IDENTITY, u64::MAX)?;
            Ok(Bare {
                function: Arc::pin_init(init, GFP_KERNEL)?,
                _zdev: zdev,
            })
        }

        /// A function with a window of 1 GiB from `start` on.
        fn at(start: u64, masks: u8) -> Result<Self> {
            Self::new((start, start + GIB - 1), masks)
        }

        fn end_dma(&self) -> u64 {
            self.function.zdev().dma_range().1
        }
    }

    /// Makes a function a member until this value is dropped.
    struct Attached<'a>(Arc<Space>, &'a Function);

    impl<'a> Attached<'a> {
        fn of(domain: &Domain, bare: &'a Bare) -> Result<Self> {
            admit(domain, &bare.function)?;
            Ok(Attached(domain.space().clone(), &bare.function))
        }
    }

    impl Drop for Attached<'_> {
        fn drop(&mut self) {
            self.0.remove(self.1);
            readers::wait_for_readers();
        }
    }

    fn admit(domain: &Domain, function: &Arc<Function>) -> Result {
        let widened = |last| domain.widen_aperture(last);
        domain.space().admit(function.as_arc_borrow(), widened)
    }

    fn domain_for(bare: &Bare) -> Result<Pin<KBox<Domain>>> {
        Domain::for_function(&bare.function, PAGE_SIZE, vacant()?)
    }

    #[test]
    fn the_window_is_clamped_once_for_all_to_see() -> Result {
        let third = Bare::new((GIB, u64::MAX), THIRD)?;
        assert_eq!(third.end_dma(), Depth::Third.reach());
        assert_eq!(third.function.window().last(), Depth::Third.reach());
        let first = Bare::new((GIB, u64::MAX), FIRST)?;
        assert_eq!(first.end_dma(), u64::MAX);
        // There is no window beyond the reach of its tables.
        assert!(Bare::at(DEEP, THIRD).is_err());
        Ok(())
    }

    #[test]
    fn a_domain_grows_for_a_new_member() -> Result {
        let near = Bare::at(4 * GIB, FIRST)?;
        let domain = domain_for(&near)?;
        let tops = [domain.space().root()];
        let _near = Attached::of(&domain, &near)?;
        assert_eq!(domain.aperture_last(), Depth::Third.reach());
        assert!(domain.space().root() == tops[0]);

        let far = Bare::at(DEEP, SECOND)?;
        {
            let _far = Attached::of(&domain, &far)?;
            assert_eq!(domain.aperture_last(), Depth::Second.reach());
            assert!(domain.space().root() != tops[0]);
        }
        // The table stays as deep when the function has left.
        assert_eq!(domain.aperture_last(), Depth::Second.reach());
        let farthest = Bare::at(DEEPEST, FIRST)?;
        let _farthest = Attached::of(&domain, &farthest)?;
        assert_eq!(domain.aperture_last(), u64::MAX);
        Ok(())
    }

    #[test]
    fn who_does_not_fit_is_refused_and_nothing_grows() -> Result {
        let third = Bare::at(4 * GIB, THIRD)?;
        let far = Bare::at(DEEP, FIRST)?;
        let domain = domain_for(&third)?;
        let top = domain.space().root();
        {
            // The member cannot use a table as deep as the new function needs.
            let _third = Attached::of(&domain, &third)?;
            assert_eq!(admit(&domain, &far.function), Err(EINVAL));
            assert_eq!(domain.aperture_last(), Depth::Third.reach());
            assert!(domain.space().root() == top);
            // The refused function is no member either.
            let another = Bare::at(8 * GIB, THIRD)?;
            let _another = Attached::of(&domain, &another)?;
        }
        let _far = Attached::of(&domain, &far)?;
        // The new function cannot use the table as it is.
        assert_eq!(admit(&domain, &third.function), Err(EINVAL));
        assert_eq!(domain.aperture_last(), Depth::Second.reach());
        Ok(())
    }

    #[test]
    fn mappings_stay_while_it_grows() -> Result {
        let near = Bare::at(4 * GIB, FIRST)?;
        let domain = domain_for(&near)?;
        let space = domain.space();
        let map = |iova| {
            let prot = Prot::from((bindings::IOMMU_READ | bindings::IOMMU_WRITE) as c_int);
            let mut bytes = 0;
            // SAFETY: A test has its domain for itself.
            let result = unsafe {
                domain.share().map(
                    iova,
                    0x1000,
                    PAGE_SIZE as usize,
                    16,
                    prot,
                    Gfp::KERNEL,
                    &mut bytes,
                )
            };
            result.map(|()| assert_eq!(bytes, 16 * 4096))
        };
        // SAFETY: As above.
        let phys = |iova| unsafe { space.lookup(iova) }.map(|translation| translation.phys.0);
        map(4 * GIB)?;
        let far = Bare::at(DEEP, FIRST)?;
        let _far = Attached::of(&domain, &far)?;
        map(DEEP)?;
        assert_eq!(phys(4 * GIB + 0x2345), Some(0x3345));
        assert_eq!(phys(DEEP + 0x2345), Some(0x3345));
        assert_eq!(phys(DEEP + 4 * GIB + 0x2345), None);
        Ok(())
    }
}

#[kunit_tests(s390_iommu_dump)]
mod dumps {
    use super::*;

    /// All ranges of a tree, found in steps of `budget` entries, each step in its own
    /// walk.
    fn dump(tree: &DmaTable<TablePages>, budget: usize) -> Result<KVec<Run>> {
        let mut runs = KVec::new();
        let mut dump = Dump::new();
        loop {
            let walk = tree.walk(|| Ok::<(), Error>(()))?;
            match dump.step(budget, |iova| walk.find(iova)) {
                Step::Run(run) => runs.push(run, GFP_KERNEL)?,
                Step::Pause => (),
                Step::End => return Ok(runs),
            }
        }
    }

    fn run(mapping: Mapping) -> Run {
        Run {
            iova: mapping.iova.0,
            last: mapping.iova.0 + (mapping.size - 1),
            phys: mapping.phys.0,
            page_size: if mapping.large {
                LARGE_PAGE_SIZE
            } else {
                PAGE_SIZE
            },
            access: mapping.access,
        }
    }

    #[test]
    fn merges_what_goes_on_and_nothing_else() -> Result {
        let last = Depth::First.reach() - (PAGE_SIZE - 1);
        let read_only = Mapping {
            access: Access::READ_ONLY,
            ..mapping(0x7000, 0x8000, 0x1000)
        };
        let ranges = [
            mapping(0x1000, 0x1000, 0x2000),
            // The physical address does not continue,
            mapping(0x3000, 0x5000, 0x1000),
            // the IOVA does not continue,
            mapping(0x5000, 0x6000, 0x2000),
            // the access differs,
            read_only,
            // the page size differs.
            mapping(
                LARGE_PAGE_SIZE - 0x1000,
                4 * LARGE_PAGE_SIZE - 0x1000,
                0x1000,
            ),
            mapping(LARGE_PAGE_SIZE, 4 * LARGE_PAGE_SIZE, 2 * LARGE_PAGE_SIZE),
            mapping(3 * LARGE_PAGE_SIZE, 6 * LARGE_PAGE_SIZE, 0x1000),
            mapping(last, 0x7000, PAGE_SIZE),
        ];
        let tree = tree(Depth::First)?;
        for range in ranges {
            assert_eq!(map(&tree, range), (range.size, Ok(())));
        }
        // Across the ends of page tables, segment tables and region tables.
        for end in [5 * LARGE_PAGE_SIZE, 2 * GIB, 1 << 42, 1 << 53] {
            for page in [end - PAGE_SIZE, end] {
                let page = mapping(page, page, PAGE_SIZE);
                assert_eq!(map(&tree, page), (PAGE_SIZE, Ok(())));
            }
        }
        for budget in [1, 100, 1 << 20] {
            let found = dump(&tree, budget)?;
            assert_eq!(found.len(), ranges.len() + 4);
            for range in ranges {
                assert!(found.contains(&run(range)));
            }
            for end in [5 * LARGE_PAGE_SIZE, 2 * GIB, 1 << 42, 1 << 53] {
                let both = mapping(end - PAGE_SIZE, end - PAGE_SIZE, 2 * PAGE_SIZE);
                assert!(found.contains(&run(both)));
            }
            assert!(found.windows(2).all(|pair| pair[0].last < pair[1].iova));
        }
        Ok(())
    }

    #[test]
    fn nothing_is_an_empty_dump() -> Result {
        for depth in [Depth::Third, Depth::Second, Depth::First] {
            assert!(dump(&tree(depth)?, 1000)?.is_empty());
        }
        Ok(())
    }

    #[test]
    fn tables_stay_while_there_is_a_reader() -> Result {
        let tree = tree(Depth::Third)?;
        let range = mapping(2 * GIB, 0x1000, 2 * GIB);
        let before = tree.memory().bytes();
        assert_eq!(map(&tree, range), (range.size, Ok(())));
        let full = tree.memory().bytes();
        let walk = tree.walk(|| Ok::<(), Error>(()))?;
        assert_eq!(unmap(&tree, 2 * GIB, 2 * GIB), 2 * GIB);
        assert_eq!(tree.memory().bytes(), full);
        assert!(walk.find(Iova(2 * GIB)) == Some(Err(PAGE_SIZE)));
        drop(walk);
        // They are used again, and go with the next unmap.
        assert_eq!(map(&tree, range), (range.size, Ok(())));
        assert_eq!(tree.memory().bytes(), full);
        assert_eq!(unmap(&tree, 2 * GIB, 2 * GIB), 2 * GIB);
        assert_eq!(tree.memory().bytes(), before);
        Ok(())
    }
}
