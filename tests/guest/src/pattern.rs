// SPDX-License-Identifier: GPL-2.0
//! Pseudo-random test data and its checksum.
//!
//! Both are fast on the emulated machine: xorshift and XXH64 cost about one instruction
//! per byte each, so 64 MiB are generated, summed and checked in a second. XXH64 has 64
//! bits and depends on the order of the data, so it detects lost, stale and swapped
//! pages. It need not be cryptographic.

use xxhash_rust::xxh64::Xxh64;

/// An endless stream, determined by a seed.
pub struct Stream {
    state: u64,
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        // Similar seeds must not give similar streams, and xorshift never leaves the
        // state 0.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { state: state | 1 }
    }

    /// Fills `buffer`, whose length must be a multiple of 8.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut state = self.state;
        for word in buffer.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes());
        }
        self.state = state;
    }
}

/// A running checksum.
pub struct Sum(Xxh64);

impl Sum {
    pub fn new() -> Self {
        Self(Xxh64::new(0))
    }

    pub fn add(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub fn value(&self) -> u64 {
        self.0.digest()
    }
}
