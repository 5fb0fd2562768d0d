// SPDX-License-Identifier: GPL-2.0
//! Mode "bench": has the module `iommu_bench` measure, and prints its figures.
//!
//! `guest.bench=map` is what map and unmap cost, `guest.bench=flush` what a full
//! flush costs. A figure is a line `bench: ...`.

use anyhow::{Result, bail};

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::kmsg;
use crate::module::Module;

const MODULE: &str = "iommu_bench";

/// Measures; an error is one of the module's, or a log that is not clean.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let nvme = Function::first_of("nvme")?;
    let flush = match cmdline.value("guest.bench") {
        None | Some("map") => 0,
        Some("flush") => {
            // The domain under test takes the function from the DMA API.
            nvme.unbind()?;
            1
        }
        Some(other) => bail!("guest.bench={other} is not known; use map or flush"),
    };
    let loaded = Module::load(MODULE, &format!("bdf={} flush={flush}", nvme.address));
    let messages = kmsg::messages()?;
    for line in messages.iter().filter_map(|message| message.strip_prefix("iommu_bench: ")) {
        say!("bench: {line}");
    }
    loaded?.unload()?;
    let bad = kmsg::bad(&messages);
    for message in &bad {
        say!("bench: the kernel log has {message:?}");
    }
    Ok(bad.is_empty())
}
