// SPDX-License-Identifier: GPL-2.0
//! Mode "bench": runs a benchmark module and prints its results.
//!
//! `guest.bench=map` measures maps and unmaps, `guest.bench=flush` full flushes (both
//! `iommu_bench`), `guest.bench=scale` how maps and unmaps scale with CPUs and how much
//! memory tables need (`iommu_scale`), `guest.bench=functions` the cost of many functions
//! (`iommu_functions`), `guest.bench=throughput` real devices (`throughput.rs`). Each
//! result is a line `bench: ...`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::kmsg;
use crate::module::Module;
use crate::sysfs;
use crate::throughput;

/// The PCI device ID of a virtio random number generator.
const GENERATOR: &str = "0x1044";

/// Runs the benchmark. Returns an error if the module fails, `false` if the log is not
/// clean.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let nvme = Function::first_of("nvme")?;
    let (module, parameters) = match cmdline.value("guest.bench") {
        None | Some("map") => ("iommu_bench", "flush=0"),
        Some("flush") => ("iommu_bench", "flush=1"),
        Some("scale") => ("iommu_scale", ""),
        Some("functions") => {
            boot_figures()?;
            ("iommu_functions", "")
        }
        Some("throughput") => {
            throughput::run(cmdline)?;
            return Ok(true);
        }
        Some(other) => bail!("unknown guest.bench={other}"),
    };
    if module == "iommu_bench" {
        // The domain under test takes the function from the DMA API.
        nvme.unbind()?;
    }
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
        say!("bench: bad kernel message: {message:?}");
    }
    Ok(bad.is_empty())
}

/// The random number generators, which do no DMA through the IOMMU.
fn generators() -> Vec<Function> {
    let mut all = Function::all();
    all.retain(|function| {
        sysfs::read(function.path().join("device")).is_ok_and(|id| id.trim() == GENERATOR)
    });
    all
}

/// Prints how long the boot took, in milliseconds, and how much memory the kernel uses.
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

/// Unplugs all generators, one after the other.
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
