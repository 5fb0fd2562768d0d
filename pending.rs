// SPDX-License-Identifier: GPL-2.0

//! What was unmapped since the last full flush.
//!
//! `flush_iotlb_all` names no range, and refreshing a whole window is the
//! dearest instruction that a hypervisor has to serve. So unmaps mark which of
//! 4096 equal chunks of the window they touched, and a full flush refreshes
//! these only. Marking takes no lock: it is on the unmap path.
//!
//! # The protocol
//!
//! An unmap clears entries, then sets the bit of the chunk in its word, then
//! the bit of the word in the summary. A flush takes the summary, then the
//! words that it names. A mark whose summary bit comes too late is found by the
//! next flush, which is the one that the unmap's caller waits for: it is called
//! after the unmap returned. That a flush does not return before a concurrent
//! one has refreshed what that one took is up to the caller (a lock).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::aperture::Range;

const WORDS: usize = 64;
const WORD_BITS: u32 = u64::BITS;
/// log2 of how many chunks there are.
const CHUNK_BITS: u32 = 12;
/// The last chunk; it also stands for all beyond it.
const LAST_CHUNK: u64 = (1 << CHUNK_BITS) - 1;
/// log2 of the least size of a chunk, in bytes: what one segment entry spans.
const MIN_SHIFT: u32 = 20;

/// The marks.
pub(crate) struct Pending {
    shift: u32,
    summary: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Pending {
    /// No marks. Chunks are as small as 4096 of them can be to hold `last`
    /// (inclusive).
    pub(crate) fn new(last: u64) -> Self {
        let bits = u64::BITS - last.leading_zeros();
        Pending {
            shift: bits.saturating_sub(CHUNK_BITS).max(MIN_SHIFT),
            summary: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    fn chunk(&self, iova: u64) -> u64 {
        (iova >> self.shift).min(LAST_CHUNK)
    }

    /// Marks the chunks from the one of `start` to the one of `last`
    /// (inclusive).
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
        for word in first / 64..=end / 64 {
            let low = first.saturating_sub(word * 64);
            let high = (end - word * 64).min(63);
            self.mark_word(word as usize, (u64::MAX >> (63 - high)) & (u64::MAX << low));
        }
    }

    #[inline]
    fn mark_word(&self, word: usize, bits: u64) {
        if let Some(cell) = self.words.get(word) {
            cell.fetch_or(bits, Ordering::Release);
            self.summary.fetch_or(1 << word, Ordering::Release);
        }
    }

    /// Takes all marks, as few ranges as hold the marked chunks.
    pub(crate) fn take(&self, mut refresh: impl FnMut(Range)) {
        let mut run: Option<Range> = None;
        let mut summary = self.summary.swap(0, Ordering::AcqRel);
        while summary != 0 {
            let word = summary.trailing_zeros();
            summary &= summary - 1;
            let mut bits = match self.words.get(word as usize) {
                Some(cell) => cell.swap(0, Ordering::AcqRel),
                None => 0,
            };
            while bits != 0 {
                let chunk = self.range_of(word * WORD_BITS + bits.trailing_zeros());
                bits &= bits - 1;
                run = match run {
                    Some(before) if before.last().wrapping_add(1) == chunk.start() => {
                        Range::new(before.start(), chunk.last())
                    }
                    Some(before) => {
                        refresh(before);
                        Some(chunk)
                    }
                    None => Some(chunk),
                };
            }
        }
        if let Some(last) = run {
            refresh(last);
        }
    }

    fn range_of(&self, chunk: u32) -> Range {
        let start = u64::from(chunk) << self.shift;
        let last = if u64::from(chunk) == LAST_CHUNK {
            u64::MAX
        } else {
            start | ((1 << self.shift) - 1)
        };
        // The chunk's start is not after its last address.
        Range::new(start, last).unwrap_or(Range::ALL)
    }
}
