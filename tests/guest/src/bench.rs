// SPDX-License-Identifier: GPL-2.0
//! Mode "bench": has a module measure, and prints its figures.
//!
//! `guest.bench=map` is what map and unmap cost, `guest.bench=flush` what a full
//! flush costs (`iommu_bench`), `guest.bench=scale` how they scale with the CPUs and
//! what tables take (`iommu_scale`), `guest.bench=functions` what many functions cost
//! (`iommu_functions`). A figure is a line `bench: ...`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::kmsg;
use crate::module::Module;
use crate::sysfs;
use crate::throughput;

/// What sysfs says of a random number generator.
const GENERATOR: &str = "0x1044";

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
        Some("functions") => {
            boot_figures()?;
            ("iommu_functions", "")
        }
        Some("throughput") => {
            throughput::run()?;
            return Ok(true);
        }
        Some(other) => bail!("guest.bench={other} is not known"),
    };
    let parameters = match module {
        "iommu_functions" => String::new(),
        _ => format!("bdf={} {parameters}", nvme.address),
    };
    let without = module == "iommu_functions" && generators().is_empty();
    let loaded = (!without).then(|| Module::load(module, &parameters));
    let messages = kmsg::messages()?;
    for line in
        messages.iter().filter_map(|message| message.strip_prefix(module)?.strip_prefix(": "))
    {
        say!("bench: {line}");
    }
    if let Some(loaded) = loaded {
        loaded?.unload()?;
    }
    if module == "iommu_functions" {
        unplug_all()?;
    }
    let bad = kmsg::bad(&messages);
    for message in &bad {
        say!("bench: the kernel log has {message:?}");
    }
    Ok(bad.is_empty())
}

/// The functions that do no DMA through the IOMMU.
fn generators() -> Vec<Function> {
    let mut all = Function::all();
    all.retain(|function| {
        sysfs::read(function.path().join("device")).is_ok_and(|id| id.trim() == GENERATOR)
    });
    all
}

/// When user space started, in milliseconds, and what the kernel has taken by then.
fn boot_figures() -> Result<()> {
    let uptime = sysfs::read("/proc/uptime")?;
    let seconds: f64 = uptime.split_whitespace().next().context("/proc/uptime")?.parse()?;
    let meminfo = sysfs::read("/proc/meminfo")?;
    let kib = |name: &str| -> Result<u64> {
        let mut lines = meminfo.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("/proc/meminfo: {name}"))?.parse()?)
    };
    let (slab, tables, percpu) = (kib("SUnreclaim")?, kib("SecPageTables")?, kib("Percpu")?);
    say!(
        "bench: booted {} {} {} {}",
        Function::all().len(),
        (seconds * 1000.0) as u64,
        slab + percpu,
        tables
    );
    Ok(())
}

/// Takes all generators away, one after the other.
fn unplug_all() -> Result<()> {
    let all = generators();
    let mut times = Vec::new();
    for function in &all {
        let slot = function.slot()?;
        let start = Instant::now();
        sysfs::write(slot, "0")?;
        times.push(start.elapsed());
    }
    times.sort();
    let total: Duration = times.iter().sum();
    if let Some(median) = times.get(times.len() / 2) {
        say!("bench: unplugged {} {} {}", all.len(), total.as_micros(), median.as_micros());
    }
    Ok(())
}
