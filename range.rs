// SPDX-License-Identifier: GPL-2.0

//! Ranges of IOVAs: a function's window, what a flush covers, reserved regions.
//!
//! All ends are inclusive, so a range may end at the last 64-bit address. Pure functions,
//! no state.

/// A range of addresses, in bytes, both ends inclusive.
///
/// # Invariants
///
/// `start <= last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    start: u64,
    last: u64,
}

impl Range {
    /// All addresses.
    pub(crate) const ALL: Range = Range {
        start: 0,
        last: u64::MAX,
    };

    /// The lower and the upper half of all addresses.
    pub(crate) const HALVES: [Range; 2] = [
        Range {
            start: 0,
            last: u64::MAX >> 1,
        },
        Range {
            start: 1 << 63,
            last: u64::MAX,
        },
    ];

    /// The range from `start` to `last`, or `None` if that is empty.
    pub(crate) const fn new(start: u64, last: u64) -> Option<Self> {
        if start <= last {
            // INVARIANT: Just checked.
            Some(Range { start, last })
        } else {
            None
        }
    }

    /// The range of `size` bytes from `start`, or `None` if it is empty or exceeds the last
    /// address.
    #[inline]
    pub(crate) const fn sized(start: u64, size: u64) -> Option<Self> {
        if size == 0 {
            return None;
        }
        Range::new(start, start.wrapping_add(size - 1))
    }

    /// The first address.
    #[inline]
    pub(crate) const fn start(self) -> u64 {
        self.start
    }

    /// The last address.
    #[inline]
    pub(crate) const fn last(self) -> u64 {
        self.last
    }

    /// Its size in bytes; 0 for all 2^64.
    pub(crate) const fn size(self) -> u64 {
        (self.last - self.start).wrapping_add(1)
    }

    /// From the start of this one to the last address of either.
    pub(crate) fn through(self, other: Range) -> Self {
        Range {
            // INVARIANT: `start` is not after `self.last`.
            start: self.start,
            last: core::cmp::max(self.last, other.last),
        }
    }

    /// The intersection with `other`.
    pub(crate) fn clip(self, other: Range) -> Option<Self> {
        Range::new(
            core::cmp::max(self.start, other.start),
            core::cmp::min(self.last, other.last),
        )
    }
}

/// The IOVAs that a function can use: from `start_dma` to the lowest of
/// `end_dma` (inclusive), what a table of the function's `reach` (inclusive)
/// maps, and `limit` bytes (`u64::MAX`: any number). `None` if there are none.
pub(crate) fn window(start_dma: u64, end_dma: u64, reach: u64, limit: u64) -> Option<Range> {
    let granted = Range::new(start_dma, core::cmp::min(end_dma, reach))?;
    if limit == u64::MAX {
        return Some(granted);
    }
    let wanted = Range::new(start_dma, start_dma.saturating_add(limit.checked_sub(1)?))?;
    granted.clip(wanted)
}

/// The parts of `[0, reach]` below and above a window: the reserved regions of a function.
/// They depend only on the function.
pub(crate) fn reserved(window: Range, reach: u64) -> [Option<Range>; 2] {
    let below = window.start.checked_sub(1);
    let above = window.last.checked_add(1);
    [
        below.and_then(|last| Range::new(0, last)),
        above.and_then(|start| Range::new(start, reach)),
    ]
}
