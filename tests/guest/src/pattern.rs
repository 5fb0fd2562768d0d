// SPDX-License-Identifier: GPL-2.0
//! Pseudo-random test data and its checksum.
//!
//! Both are chosen for the emulated machine: xorshift and XXH64 cost about one
//! instruction a byte each, so that 64 MiB are made, summed and checked in a
//! second. XXH64 is 64 bits wide and sees order, which is what lost, stale or
//! swapped pages need; nobody attacks it here.

use xxhash_rust::xxh64::Xxh64;

/// An endless stream that a seed determines.
pub struct Stream {
    state: u64,
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give similar streams, and 0 is the one
        // state that xorshift never leaves.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { state: state | 1 }
    }

    /// Fills `buffer`, a multiple of 8 bytes long.
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
