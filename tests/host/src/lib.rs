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

#[allow(dead_code)]
#[path = "../../../aperture.rs"]
mod aperture;
#[allow(dead_code)]
#[path = "../../../dma_table.rs"]
mod dma_table;
#[allow(dead_code)]
#[path = "../../../dump.rs"]
mod dump;
#[allow(dead_code)]
#[path = "../../../pending.rs"]
mod pending;

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
#[cfg(test)]
mod properties;
#[cfg(test)]
mod ranges;
#[cfg(test)]
mod reclaim;
#[cfg(all(test, loom))]
mod threads;
#[cfg(all(test, not(loom)))]
mod vacant;
