// SPDX-License-Identifier: GPL-2.0

//! What was unmapped since the last full flush, and the full flushes under way.
//!
//! `flush_iotlb_all` has no range, and a refresh of a whole window is the most expensive
//! instruction that a hypervisor has to emulate. So unmaps mark which of 4096 equal
//! chunks of the window they touched, and a full flush refreshes only these, in at most
//! [`MAX_RANGES`] ranges. Only *queued* unmaps, which wait for a full flush, need a mark.
//! Other unmaps are refreshed by range before their caller continues. (Long ones set
//! marks as well, for an attach that comes before that refresh, see
//! [`Flushes::next_known`].) Marking is on the unmap path, so it takes no lock.
//!
//! # The protocol
//!
//! An unmap clears entries, then sets the bit of the chunk. A full flush takes the bits
//! ([`Flushes::begin`]), then refreshes, then ends ([`Flushes::end`]). An unmap that the
//! flush must cover has returned before the flush began. So its bit is set, or another
//! flush has taken it.
//!
//! Flushes may overlap and do not wait for each other. What one of them has taken is
//! remembered until no flush is under way, and a flush that begins meanwhile refreshes it
//! as well. So a flush never returns before everything that it must cover is refreshed,
//! no matter which flush took the bits.
//!
//! After a refused flush, every flush refreshes everything, until one that began after
//! the refusal succeeds.
//!
//! The caller holds a lock for `begin`, `end`, `refused` and `next_known`, but not for the
//! refreshes. `begin` executes a full barrier: the core's flush queue counts the flushes
//! that began, and the unmapper reads this counter after a barrier of its own.

use crate::{
    atomic::{
        fence,
        AtomicU64,
        Ordering, //
    },
    dma_table::LINE,
    range::Range, //
};

/// The model checker explores one word; the protocol does not depend on their number.
const MARK_WORDS: usize = if cfg!(loom) { 1 } else { 64 };
const WORD_BITS: u32 = u64::BITS;
/// The last chunk. It stands for all that is outside of the window.
const OUTSIDE: u64 = MARK_WORDS as u64 * 64 - 1;
/// log2 of the least size of a chunk, in bytes: what one segment entry spans.
const MIN_SHIFT: u32 = 20;
/// The largest number of ranges that a full flush refreshes for each device. One more
/// refresh costs an exit to the hypervisor; a longer range costs a walk of what lies in
/// between.
pub(crate) const MAX_RANGES: usize = 8;

/// The marks.
#[repr(C)]
pub(crate) struct Pending {
    /// The number of the window's first chunk, counted from IOVA 0.
    first: u64,
    shift: u32,
    /// Keeps what is only read apart from what is written.
    _apart: [u64; LINE / 8],
    marks: [AtomicU64; MARK_WORDS],
}

impl Pending {
    /// No marks. Chunks are as small as possible for all of the window.
    pub(crate) fn new(window: Range) -> Self {
        let mut shift = MIN_SHIFT;
        while (window.last() >> shift) - (window.start() >> shift) >= OUTSIDE {
            shift += 1;
        }
        Pending {
            first: window.start() >> shift,
            shift,
            _apart: [0; LINE / 8],
            marks: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    #[inline]
    fn chunk(&self, iova: u64) -> u64 {
        // The shift is below 64. An IOVA below the window wraps around, and so counts as
        // outside.
        iova.wrapping_shr(self.shift)
            .wrapping_sub(self.first)
            .min(OUTSIDE)
    }

    /// Marks the chunk of `iova`.
    #[inline]
    pub(crate) fn mark_one(&self, iova: u64) {
        let chunk = self.chunk(iova);
        self.mark_word((chunk / 64) as usize, 1 << (chunk % 64));
    }

    /// Marks the chunks from that of `start` to that of `last` (inclusive).
    #[inline]
    pub(crate) fn mark(&self, start: u64, last: u64) {
        let first = self.chunk(start);
        let end = self.chunk(last);
        if first == end {
            self.mark_word((first / 64) as usize, 1 << (first % 64));
        } else {
            self.mark_run(first, end);
        }
    }

    #[cold]
    fn mark_run(&self, first: u64, end: u64) {
        if first > end {
            // From below the window into it.
            return self.mark_word((OUTSIDE / 64) as usize, 1 << (OUTSIDE % 64));
        }
        for word in first / 64..=end / 64 {
            let low = first.saturating_sub(word * 64);
            let high = (end - word * 64).min(63);
            self.mark_word(word as usize, (u64::MAX >> (63 - high)) & (u64::MAX << low));
        }
    }

    #[inline]
    fn mark_word(&self, word: usize, bits: u64) {
        if let Some(cell) = self.marks.get(word) {
            cell.fetch_or(bits, Ordering::Release);
        }
    }

    /// The range of a chunk.
    fn range_of(&self, chunk: u64) -> Range {
        if chunk == OUTSIDE {
            return Range::ALL;
        }
        let start = (self.first + chunk) << self.shift;
        // The chunk's start is not after its last address.
        Range::new(start, start | ((1 << self.shift) - 1)).unwrap_or(Range::ALL)
    }
}

/// The numbers of the bits that are set, from the lowest one on.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit.into())
    }
}

/// At most [`MAX_RANGES`] ranges in ascending order. A range also covers gaps, as long as
/// they are at most half of it: this saves refreshes, and at most doubles the walk. When
/// there are more ranges, they are merged into the last one, with all gaps.
#[derive(Clone, Copy)]
pub(crate) struct Ranges {
    ranges: [Range; MAX_RANGES],
    count: usize,
    /// How many bytes of gaps the last range may still cover.
    gaps_left: u64,
}

impl Ranges {
    const NONE: Ranges = Ranges {
        ranges: [Range::ALL; MAX_RANGES],
        count: 0,
        gaps_left: 0,
    };

    /// Everything.
    pub(crate) const ALL: Ranges = Ranges {
        count: 1,
        ..Ranges::NONE
    };

    /// The ranges.
    pub(crate) fn as_slice(&self) -> &[Range] {
        &self.ranges[..self.count.min(MAX_RANGES)]
    }

    /// Adds a range after the last one.
    fn push(&mut self, next: Range) {
        if next == Range::ALL {
            *self = Ranges::ALL;
            return;
        }
        if let Some(last) = self.ranges[..self.count.min(MAX_RANGES)].last_mut() {
            let gap = next.start().saturating_sub(last.last()).saturating_sub(1);
            if gap <= self.gaps_left || self.count == MAX_RANGES {
                *last = last.through(next);
                self.gaps_left = self
                    .gaps_left
                    .saturating_sub(gap)
                    .saturating_add(next.size());
                return;
            }
        }
        if let Some(slot) = self.ranges.get_mut(self.count) {
            *slot = next;
            self.count += 1;
            self.gaps_left = next.size();
        }
    }
}

/// A full flush under way.
pub(crate) struct Ticket {
    /// What to refresh.
    pub(crate) ranges: Ranges,
    refusals: u64,
}

/// All full flushes under way, and the marks that they took.
pub(crate) struct Flushes {
    under_way: u32,
    taken: [u64; MARK_WORDS],
    /// Whether a refresh was refused since the last flush of everything.
    everything: bool,
    /// How many refreshes were refused.
    refusals: u64,
}

impl Flushes {
    /// None.
    pub(crate) const fn new() -> Self {
        Flushes {
            under_way: 0,
            taken: [0; MARK_WORDS],
            everything: false,
            refusals: 0,
        }
    }

    /// Begins a full flush: takes the marks. Without `by_range`, it refreshes everything,
    /// for machines where less does not cost less.
    pub(crate) fn begin(&mut self, pending: &Pending, by_range: bool) -> Ticket {
        // See the head of this file.
        fence(Ordering::SeqCst);
        self.under_way += 1;
        let mut ranges = Ranges::NONE;
        for ((word, cell), taken) in (0..).zip(&pending.marks).zip(&mut self.taken) {
            if cell.load(Ordering::Relaxed) != 0 {
                *taken |= cell.swap(0, Ordering::AcqRel);
            }
            for bit in Bits(*taken) {
                ranges.push(pending.range_of(word * u64::from(WORD_BITS) + bit));
            }
        }
        if self.everything || !by_range {
            ranges = Ranges::ALL;
        }
        Ticket {
            ranges,
            refusals: self.refusals,
        }
    }

    /// Ends a full flush. `done` is true if no device can still be using what was unmapped
    /// before the flush began. Returns whether the next flush must make up for a refused
    /// one.
    pub(crate) fn end(&mut self, ticket: &Ticket, done: bool) -> bool {
        self.under_way -= 1;
        if !done {
            self.refused();
        } else if ticket.refusals == self.refusals && ticket.ranges.is_everything() {
            self.everything = false;
        }
        if self.under_way == 0 {
            self.taken = [0; MARK_WORDS];
        }
        self.everything
    }

    /// The first chunk ending at or after `iova` that may not be refreshed yet: it is
    /// marked, or a flush under way took its mark. After a refusal, everything. The marks
    /// stay set.
    pub(crate) fn next_known(&self, pending: &Pending, iova: u64) -> Option<Range> {
        if self.everything {
            return Some(Range::ALL);
        }
        let cells = (0..).zip(pending.marks.iter().zip(&self.taken));
        let chunks = cells.flat_map(|(word, (cell, taken))| {
            Bits(cell.load(Ordering::Acquire) | taken)
                .map(move |bit| word * u64::from(WORD_BITS) + bit)
        });
        chunks
            .map(|chunk| pending.range_of(chunk))
            .find(|range| range.last() >= iova)
    }

    /// A refresh was refused.
    pub(crate) fn refused(&mut self) {
        self.everything = true;
        self.refusals += 1;
    }
}

impl Ranges {
    fn is_everything(&self) -> bool {
        self.count == 1 && self.ranges[0] == Range::ALL
    }
}
