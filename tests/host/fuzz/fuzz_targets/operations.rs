// SPDX-License-Identifier: GPL-2.0

//! Fuzzes the translation tables with sequences of operations, and compares the tree with
//! an independent walker and a plain map. See `host::operations`.
//!
//! With cargo-fuzz and a nightly compiler: `cargo fuzz run operations`. With the compiler
//! that builds the kernel, in the directory `fuzz`:
//!
//! ```text
//! RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
//!     -Cllvm-args=-sanitizer-coverage-level=4 \
//!     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
//!     -Cllvm-args=-sanitizer-coverage-pc-table \
//!     -Cllvm-args=-sanitizer-coverage-trace-compares" \
//! cargo run --release --target x86_64-unknown-linux-gnu -- -runs=20000 corpus/operations
//! ```

#![no_main]

use host::operations::Scenario;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|scenario: Scenario| scenario.run());
