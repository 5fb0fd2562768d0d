// SPDX-License-Identifier: GPL-2.0

//! What was unmapped since the last full flush.
//!
//! `flush_iotlb_all` names no range, and refreshing a whole window is the
//! dearest instruction that a hypervisor has to serve. So unmaps mark which of
//! 4096 equal chunks of the window they touched, and a full flush refreshes
//! these only. All unmaps do, also those that are flushed by range: whoever asks
//! for a full flush may mean them. Marking takes no lock: it is on the unmap
//! path.
//!
//! # The protocol
//!
//! An unmap clears entries, then sets the bit of the chunk. A full flush takes
//! the bits, then refreshes. An unmap that the flush has to serve returned
//! before it was called, so its bit is there. That a flush does not return
//! before a concurrent one has refreshed what that one took is up to the caller
//! (a lock).

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
    words: [AtomicU64; WORDS],
}

impl Pending {
    /// No marks. Chunks are as small as 4096 of them can be to hold `last`
    /// (inclusive).
    pub(crate) fn new(last: u64) -> Self {
        let bits = u64::BITS - last.leading_zeros();
        Pending {
            shift: bits.saturating_sub(CHUNK_BITS).max(MIN_SHIFT),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    fn chunk(&self, iova: u64) -> u64 {
        // Wraps never, and so needs no check: the shift is below 64.
        iova.wrapping_shr(self.shift).min(LAST_CHUNK)
    }

    /// Marks the chunk of `iova`.
    #[inline]
    pub(crate) fn mark_one(&self, iova: u64) {
        let chunk = self.chunk(iova);
        self.mark_word((chunk / 64) as usize, 1 << (chunk % 64));
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
        }
    }

    /// Takes all marks, as few ranges as hold the marked chunks.
    pub(crate) fn take(&self, mut refresh: impl FnMut(Range)) {
        let mut run: Option<Range> = None;
        for (word, cell) in (0..).zip(&self.words) {
            if cell.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = cell.swap(0, Ordering::AcqRel);
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
