// SPDX-License-Identifier: GPL-2.0
//! Mode "bench": has a module measure, and prints its figures.
//!
//! `guest.bench=map` is what map and unmap cost, `guest.bench=flush` what a full
//! flush costs (`iommu_bench`), `guest.bench=scale` how they scale with the CPUs and
//! what tables take (`iommu_scale`). A figure is a line `bench: ...`.

use anyhow::{bail, Result};

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::kmsg;
use crate::module::Module;

/// Measures; an error is one of the module's, or a log that is not clean.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let nvme = Function::first_of("nvme")?;
    let (module, parameters) = match cmdline.value("guest.bench") {
        None | Some("map") => ("iommu_bench", "flush=0"),
        Some("flush") => {
            // The domain under test takes the function from the DMA API.
            nvme.unbind()?;
            ("iommu_bench", "flush=1")
        }
        Some("scale") => ("iommu_scale", ""),
        Some(other) => bail!("guest.bench={other} is not known; use map, flush or scale"),
    };
    let loaded = Module::load(module, &format!("bdf={} {parameters}", nvme.address));
    let messages = kmsg::messages()?;
    for line in
        messages.iter().filter_map(|message| message.strip_prefix(module)?.strip_prefix(": "))
    {
        say!("bench: {line}");
    }
    loaded?.unload()?;
    let bad = kmsg::bad(&messages);
    for message in &bad {
        say!("bench: the kernel log has {message:?}");
    }
    Ok(bad.is_empty())
}
