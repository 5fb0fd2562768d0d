// SPDX-License-Identifier: GPL-2.0

//! Apertures, windows and reserved regions (`range.rs`), and the marks of unmapped ranges
//! (`address_space/pending.rs`).

use proptest::prelude::*;

use crate::dma_table::Depth;
use crate::range::{reserved, window, Range};
use crate::walker::Level;

const GIB: u64 = 1 << 30;
/// The reach of tables with three, four and five levels
const REACHES: [u64; 3] = [(1 << 42) - 1, (1 << 53) - 1, u64::MAX];

fn ends(range: Range) -> (u64, u64) {
    (range.start(), range.last())
}

#[test]
fn ranges_have_inclusive_ends() {
    assert_eq!(Range::new(2, 1), None);
    assert_eq!(Range::new(5, 5).map(ends), Some((5, 5)));
    assert_eq!(
        Range::sized(0x1000, 0x1000).map(ends),
        Some((0x1000, 0x1fff))
    );
    assert_eq!(
        Range::sized(u64::MAX, 1).map(ends),
        Some((u64::MAX, u64::MAX))
    );
    assert_eq!(Range::sized(u64::MAX, 2), None);
    assert_eq!(Range::sized(0x1000, 0), None);
    assert_eq!(Range::new(0x1000, 0x1fff).map(Range::size), Some(0x1000));
    assert_eq!(Range::ALL.size(), 0);
}

/// A size of 0 is no range, even at address 0.
#[test]
fn a_range_of_no_bytes_at_zero() {
    assert_eq!(Range::sized(0, 0), None);
}

#[test]
fn ranges_are_clipped() {
    let clip = |a: (u64, u64), b: (u64, u64)| {
        let range = |(start, last)| Range::new(start, last).expect("not empty");
        range(a).clip(range(b)).map(ends)
    };
    assert_eq!(clip((0, 9), (5, 20)), Some((5, 9)));
    assert_eq!(clip((0, 9), (9, 20)), Some((9, 9)));
    assert_eq!(clip((0, 9), (10, 20)), None);
    assert_eq!(clip((10, 20), (0, 9)), None);
    assert_eq!(clip((0, u64::MAX), (3, 4)), Some((3, 4)));
}

/// [`Depth::for_reach`] returns the smallest depth that suffices, also with narrow
/// tables.
#[test]
fn depths_reach_what_they_say() {
    let depths = [Depth::Third, Depth::Second, Depth::First];
    for (depth, top) in depths.into_iter().zip(Level::TOPS) {
        assert_eq!(depth.reach(), top.last());
        assert_eq!(Depth::for_reach(depth.reach()), depth);
    }
    assert_eq!(Depth::for_reach(0), Depth::Third);
    for pair in depths.windows(2) {
        assert_eq!(Depth::for_reach(pair[0].reach() + 1), pair[1]);
    }
    if cfg!(not(loom)) {
        assert_eq!(depths.map(Depth::reach), REACHES);
    }
}

/// The documented example: a window from 4 GiB on, a machine with 32 GiB, and tables with
/// three levels.
#[test]
fn reserved_regions_as_documented() {
    let window = window(4 * GIB, u64::MAX, REACHES[0], 32 * GIB).expect("not empty");
    assert_eq!(
        reserved(window, REACHES[0]).map(|region| region.map(ends)),
        [
            Some((0x0, 0xffff_ffff)),
            Some((0x9_0000_0000, 0x3ff_ffff_ffff))
        ]
    );
}

#[test]
fn windows_that_leave_nothing() {
    assert_eq!(window(1 << 42, u64::MAX, REACHES[0], GIB), None);
    assert_eq!(window(GIB, GIB - 1, REACHES[0], GIB), None);
    assert_eq!(window(GIB, 2 * GIB, REACHES[0], 0), None);
}

#[test]
fn a_window_of_everything_reserves_nothing() {
    let all = window(0, u64::MAX, u64::MAX, u64::MAX).expect("not empty");
    assert_eq!(all, Range::ALL);
    assert_eq!(reserved(all, u64::MAX), [None, None]);
}

/// Addresses near powers of two, where off-by-one errors show, and random ones.
fn address() -> impl Strategy<Value = u64> {
    let near = (0..64u32, -2..=2i64).prop_map(|(bit, by)| (1u64 << bit).wrapping_add_signed(by));
    prop_oneof![near, any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The window is the intersection of all limits. Together with the reserved regions
    /// it covers each address of `[0, reach]` exactly once.
    #[test]
    fn window_and_reserved_regions_make_up_the_reach(
        start in address(), end in address(), reach in 0..3usize, limit in address(),
    ) {
        let reach = REACHES[reach];
        let mut stop = u128::from(end.min(reach)) + 1;
        if limit != u64::MAX {
            stop = stop.min(u128::from(start) + u128::from(limit));
        }
        let found = window(start, end, reach, limit);
        if stop <= u128::from(start) {
            prop_assert_eq!(found, None);
        } else {
            let found = found.expect("not empty");
            prop_assert_eq!(ends(found), (start, (stop - 1) as u64));
            let [below, above] = reserved(found, reach);
            let parts = [below, Some(found), above].into_iter().flatten();
            let mut next = 0u128;
            for part in parts {
                prop_assert_eq!(u128::from(part.start()), next);
                next = u128::from(part.last()) + 1;
            }
            prop_assert_eq!(next, u128::from(reach) + 1);
        }
    }
}

/// Not with `--cfg loom`: the model checker's atomics work only inside a model, and it
/// has its own checks.
#[cfg(not(loom))]
mod marks {
    use super::*;
    use crate::address_space::pending::{Flushes, Pending, MAX_RANGES};
    use proptest::collection::vec;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 20_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// A full flush covers everything that was marked, with a few ordered ranges.
        /// Each mark is flushed once, or again if the flush was refused.
        #[test]
        fn flushes_cover_what_was_marked(
            start in address(), size in address(), marks in vec((address(), 0..40u32), 1..40),
        ) {
            let window = Range::new(start, start.saturating_add(size)).expect("not empty");
            let pending = Pending::new(window);
            let mut flushes = Flushes::new();
            for &(start, bits) in &marks {
                pending.mark(start, start.saturating_add((1 << bits) - 1));
            }
            let covers = |ranges: &[Range], (start, bits): (u64, u32)| {
                let last = start.saturating_add((1 << bits) - 1);
                ranges.iter().any(|range| range.start() <= start && last <= range.last())
            };
            for done in [false, true] {
                let ticket = flushes.begin(&pending, true);
                let ranges = ticket.ranges.as_slice();
                prop_assert!(ranges.len() <= MAX_RANGES);
                prop_assert!(ranges.is_sorted_by(|a, b| a.last() + 1 < b.start()));
                for &mark in &marks {
                    prop_assert!(covers(ranges, mark), "{mark:x?} is not in {ranges:x?}");
                }
                prop_assert_eq!(flushes.end(&ticket, done), !done);
            }
            let ticket = flushes.begin(&pending, true);
            prop_assert!(ticket.ranges.as_slice().is_empty());
            flushes.end(&ticket, true);
        }

        /// A mark covers its own chunk and no other.
        #[test]
        fn a_page_marks_its_chunk(start in 0u64..1 << 41, chunk in 0u64..4095) {
            let start = start & !((1 << 20) - 1);
            let pending = Pending::new(Range::sized(start, 4095 << 20).expect("not empty"));
            let mut flushes = Flushes::new();
            pending.mark_one(start + (chunk << 20) + 0x7_3000);
            let expected = Range::sized(start + (chunk << 20), 1 << 20);
            prop_assert_eq!(flushes.next_known(&pending, 0), expected);
            let ticket = flushes.begin(&pending, true);
            prop_assert_eq!(ticket.ranges.as_slice().first().copied(), expected);
            prop_assert_eq!(ticket.ranges.as_slice().len(), 1);
        }
    }

    /// A range covers gaps as long as they are at most half of it.
    #[test]
    fn small_gaps_are_refreshed_too() {
        let pending = Pending::new(Range::sized(0, GIB).expect("not empty"));
        let mut flushes = Flushes::new();
        for chunk in [0, 2, 4, 7, 8, 9, 13] {
            pending.mark_one(chunk << 20);
        }
        let ticket = flushes.begin(&pending, true);
        let chunks =
            |first: u64, count: u64| Range::sized(first << 20, count << 20).expect("not empty");
        assert_eq!(ticket.ranges.as_slice(), [chunks(0, 5), chunks(7, 7)]);
        flushes.end(&ticket, true);
    }

    /// Ranges that a flush has taken stay known when an earlier flush ends.
    #[test]
    fn what_was_taken_stays_known() {
        let pending = Pending::new(Range::sized(0, GIB).expect("not empty"));
        let mut flushes = Flushes::new();
        let chunk = Range::sized(5 << 20, 1 << 20).expect("not empty");
        let early = flushes.begin(&pending, true);
        pending.mark_one(chunk.start());
        let taker = flushes.begin(&pending, true);
        assert_eq!(taker.ranges.as_slice(), [chunk]);
        assert!(!flushes.end(&early, true));
        let late = flushes.begin(&pending, true);
        assert_eq!(late.ranges.as_slice(), [chunk]);
    }

    /// Ranges that a flush has taken are also refreshed by a flush that begins meanwhile.
    /// After a refusal, the next flush to begin refreshes everything.
    #[test]
    fn flushes_that_overlap() {
        let pending = Pending::new(Range::sized(0, GIB).expect("not empty"));
        let mut flushes = Flushes::new();
        let chunk = Range::sized(5 << 20, 1 << 20).expect("not empty");
        pending.mark_one(chunk.start());
        let first = flushes.begin(&pending, true);
        let second = flushes.begin(&pending, true);
        assert_eq!(first.ranges.as_slice(), [chunk]);
        assert_eq!(second.ranges.as_slice(), [chunk]);
        // The second began before the first was refused.
        assert!(flushes.end(&first, false));
        assert!(flushes.end(&second, true));
        let third = flushes.begin(&pending, true);
        assert_eq!(third.ranges.as_slice(), [Range::ALL]);
        flushes.refused();
        assert!(flushes.end(&third, true));
        let fourth = flushes.begin(&pending, true);
        assert_eq!(fourth.ranges.as_slice(), [Range::ALL]);
        assert!(!flushes.end(&fourth, true));
        let fifth = flushes.begin(&pending, true);
        assert!(fifth.ranges.as_slice().is_empty());
        assert!(!flushes.end(&fifth, true));
        // Without a shadow, one refresh covers everything.
        let sixth = flushes.begin(&pending, false);
        assert_eq!(sixth.ranges.as_slice(), [Range::ALL]);
    }
}
