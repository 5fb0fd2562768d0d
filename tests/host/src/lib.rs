// SPDX-License-Identifier: GPL-2.0

//! Host tests of the parts of the driver that do not need a kernel. The driver's own
//! files are compiled in. The tests add table memory that detects misuse, an independent
//! walker that implements only the format, and a tree that is compared with a plain map
//! after every operation.
//!
//! With `--cfg loom` all tables have two entries, so every level is filled and reclaimed
//! within a few pages, and the model checks are built.
//!
//! ```text
//! cargo test --release
//! RUSTFLAGS="--cfg loom" cargo test --release
//! ```
//!
//! The fuzzer is in `fuzz/`. To run it, see `fuzz/fuzz_targets/operations.rs`.

// The fuzzer does not use everything.
#![cfg_attr(not(test), allow(dead_code))]

/// The driver's own files.
#[allow(dead_code, unused_imports)]
#[path = "../../.."]
mod driver {
    /// Not the file `address_space.rs`, which needs a kernel.
    pub mod address_space {
        #[cfg(all(test, loom))]
        pub mod flush;
        #[cfg(all(test, loom))]
        pub mod members;
        pub mod pending;
    }
    #[path = "rust/atomic.rs"]
    pub mod atomic;
    pub mod dma_table;
    pub mod range;
}
// Not every build uses all of them.
#[allow(unused_imports)]
use driver::{address_space, atomic, dma_table, range};

/// What `address_space/` imports from `zpci.rs`.
#[cfg(all(test, loom))]
mod zpci {
    /// Why the machine refused an instruction.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Refusal {
        /// The hypervisor does not have enough resources.
        Resources,
    }
}

mod checked;
mod memory;
pub mod operations;
mod walker;

#[cfg(test)]
mod edges;
#[cfg(test)]
mod failures;
#[cfg(all(test, loom))]
mod flush;
#[cfg(all(test, not(loom)))]
mod lines;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod ranges;
#[cfg(test)]
mod reclaim;
#[cfg(all(test, not(loom)))]
mod stress;
#[cfg(all(test, loom))]
mod threads;
#[cfg(all(test, not(loom)))]
mod vacant;
