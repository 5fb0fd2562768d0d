// SPDX-License-Identifier: GPL-2.0
//! Tests that depend on refreshes fail if the machine loses the refreshes: the proof that
//! they would find a driver that misses a flush. The machine must not shadow the tables,
//! so that only unmaps and flushes need refreshes.

use anyhow::{Result, ensure};

use super::modules;
use crate::cmdline::Cmdline;
use crate::host;
use crate::ktap::Suite;

/// Every RPCIT completes with condition code 0, and does nothing.
const LOST: &str = "0x100:0:1000000:0:0";

/// Modules and their tests
const TESTS: [(&str, &str); 9] = [
    ("dma", "an IOVA mapped again means the new page"),
    ("dma", "DMA to an IOVA that was mapped is refused"),
    ("dma", "a full flush ends the mapping of a page"),
    ("dma", "a full flush ends the mapping of a run of pages"),
    ("remap", "strict: 4K mapped again"),
    ("remap", "strict: 4K unmapped"),
    ("remap", "strict: 1M unmapped"),
    ("remap", "lazy: 4K mapped again"),
    ("remap", "lazy: 64M unmapped"),
];

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    for (module, test) in TESTS {
        suite.test(&format!("{module}: {test}: fails"), || {
            ensure!(modules::passes(module, test, host::NO_FAULT)?, "it fails in any case");
            ensure!(!modules::passes(module, test, LOST)?, "it passes although refreshes are lost");
            Ok(())
        });
    }
    Ok(())
}
