// SPDX-License-Identifier: GPL-2.0

//! Tests of the driver's pure parts on the host. The driver's own files are
//! compiled in; around its tables are table memory that notices misuse, a walker that
//! was written from the format alone, and a tree that is compared with a plain
//! map after every operation.
//!
//! Built with `--cfg loom` all tables have two entries. Every level is then
//! filled and reclaimed within a few pages, and the model checks are built.
//!
//! ```text
//! cargo test --release
//! RUSTFLAGS="--cfg loom" cargo test --release
//! ```
//!
//! The fuzzer is in `fuzz/`; `fuzz/fuzz_targets/operations.rs` says how to run it.

// The fuzzer uses only a part.
#![cfg_attr(not(test), allow(dead_code))]

/// The driver's own files.
#[allow(dead_code, unused_imports)]
#[path = "../../.."]
mod driver {
    /// Without the file `address_space.rs`, which needs a kernel.
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
// Not all are used by every build.
#[allow(unused_imports)]
use driver::{address_space, atomic, dma_table, range};

/// What `address_space/` imports of `zpci.rs`.
#[cfg(all(test, loom))]
mod zpci {
    /// Why the machine refused an instruction.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum Refusal {
        /// The hypervisor has not enough resources.
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
