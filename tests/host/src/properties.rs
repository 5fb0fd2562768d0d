// SPDX-License-Identifier: GPL-2.0

//! Property tests with random sequences of operations: the tree, the walker and a plain
//! map must agree.
//!
//! A failing sequence is shrunk, and its seed is saved in `proptest-regressions/`, which
//! should be committed. Saved sequences run first.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::operations::{Anchor, Extent, Operation, Place, Scenario};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

/// The minimum number of operations of each of the six tests, which is more than a
/// million in total
const OPERATIONS: u64 = 200_000;
/// Length of the longest sequence; most are shorter
const LONGEST: usize = 160;

fn anchor() -> impl Strategy<Value = Anchor> {
    prop_oneof![
        3 => Just(Anchor::PageTable),
        2 => Just(Anchor::SegmentTable),
        1 => Just(Anchor::ThirdTable),
        1 => Just(Anchor::SecondTable),
        1 => Just(Anchor::Reach),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    // Few places, so that ranges overlap.
    let times = prop_oneof![3 => 0..4u8, 1 => any::<u8>()];
    let pages = prop_oneof![2 => Just(0), 2 => -4..4i16, 1 => -600..600i16];
    (anchor(), times, pages).prop_map(|(anchor, times, pages)| Place {
        anchor,
        times,
        pages,
    })
}

fn extent() -> impl Strategy<Value = Extent> {
    prop_oneof![
        40 => (0..8u16).prop_map(Extent::Pages),
        20 => (0..700u16).prop_map(Extent::Pages),
        20 => (0..4u8).prop_map(Extent::LargePages),
        1 => Just(Extent::SegmentTable),
    ]
}

fn budget() -> impl Strategy<Value = Option<u8>> {
    weighted(0.1, 0..3u8)
}

fn map() -> impl Strategy<Value = Operation> {
    let flags = (any::<bool>(), any::<bool>());
    (place(), extent(), any::<u32>(), flags, budget()).prop_map(
        |(at, extent, phys, (read_only, large), budget)| Operation::Map {
            at,
            extent,
            phys,
            read_only,
            large,
            budget,
        },
    )
}

fn unmap_earlier() -> impl Strategy<Value = Operation> {
    let nth = prop_oneof![0..4u8, 0..64u8];
    let moved = || prop_oneof![8 => Just(0), 1 => -3..3i8];
    (nth, moved(), moved()).prop_map(|(nth, start, end)| Operation::UnmapEarlier {
        nth,
        start,
        end,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        40 => map(),
        10 => (place(), extent()).prop_map(|(at, extent)| Operation::Unmap { at, extent }),
        40 => unmap_earlier(),
        6 => (place(), any::<u16>()).prop_map(|(at, offset)| Operation::Lookup { at, offset }),
        1 => (any::<bool>(), budget()).prop_map(|(twice, budget)| Operation::Widen {
            twice,
            budget,
        }),
        10 => Just(Operation::Refresh),
    ]
}

fn agree(depth: u8, large: bool, seeds: &'static str) {
    let config = ProptestConfig {
        cases: 4 * OPERATIONS as u32 / LONGEST as u32,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        ..ProptestConfig::default()
    };
    let sequences = vec(operation(), 1..=LONGEST);
    let done = AtomicU64::new(0);
    let result = TestRunner::new(config).run(&sequences, |operations| {
        done.fetch_add(operations.len() as u64, Ordering::Relaxed);
        let scenario = Scenario {
            depth,
            large,
            operations,
        };
        scenario.run();
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let done = done.into_inner();
    println!("{done} operations");
    assert!(done >= OPERATIONS);
}

macro_rules! agree {
    ($($name:ident: $depth:literal, $large:literal;)*) => {$(
        #[test]
        fn $name() {
            agree($depth, $large, concat!("proptest-regressions/", stringify!($name), ".txt"));
        }
    )*};
}

agree! {
    third_pages: 0, false;
    third_large: 0, true;
    second_pages: 1, false;
    second_large: 1, true;
    first_pages: 2, false;
    first_large: 2, true;
}
