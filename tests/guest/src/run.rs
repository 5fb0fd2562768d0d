// SPDX-License-Identifier: GPL-2.0
//! Mode "run": shows the machine, transfers data through the IOMMU, prints a verdict.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::block::{KIB, MIB, Transfer, rate};
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::counters::Counters;
use crate::function::Function;
use crate::nic::{Direction, Pair};
use crate::{kmsg, sysfs};

const NVME_BYTES: usize = 64 * MIB;
const SMALL_BYTES: usize = MIB;
const NIC_BYTES: usize = 16 * MIB;

/// Runs everything and prints the verdict line.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let phase = &cmdline.phase;
    let result = show_machine().and_then(|()| move_data(cmdline)).and_then(|()| clean_log());
    match &result {
        Ok(()) => say!("run: {phase}: PASS"),
        Err(error) => say!("run: {phase}: FAIL: {error:#}"),
    }
    Ok(result.is_ok())
}

fn show_machine() -> Result<()> {
    say!("kernel: Linux {}", sysfs::read("/proc/sys/kernel/osrelease")?);
    for line in kmsg::driver_lines(&kmsg::messages()?) {
        say!("boot log: {line}");
    }
    for iommu in sysfs::list("/sys/class/iommu") {
        say!("iommu: {} by {}", sysfs::name(&iommu), owner()?);
    }
    for function in Function::all() {
        show_function(&function)?;
    }
    Ok(())
}

/// Which driver the kernel uses, judged by the symbols of the C driver.
fn owner() -> Result<&'static str> {
    let symbols = std::fs::read_to_string("/proc/kallsyms")?;
    let is_c = symbols.contains(" s390_iommu_attach_device");
    Ok(if is_c { "the C driver" } else { "the Rust driver s390_iommu" })
}

fn show_function(function: &Function) -> Result<()> {
    let driver = function.driver().unwrap_or_else(|| "no driver".to_owned());
    let group = function.group().unwrap_or_else(|| "none".to_owned());
    let kind = function.group_type().unwrap_or_else(|_| "none".to_owned());
    let (address, ids) = (&function.address, function.ids()?);
    say!("function: {address} {ids} driver {driver} group {group} type {kind}");
    for line in function.reserved_lines().unwrap_or_default() {
        say!("function: {address} {line}");
    }
    Ok(())
}

fn move_data(cmdline: &Cmdline) -> Result<()> {
    // A different pattern in each phase, because both may use the same disk image.
    let seed = if cmdline.strict() { 0x5717 } else { 0x1a27 };
    let nvme = Function::first_of("nvme")?;
    let [near, far] = crate::nic::functions()?;
    let functions = [nvme, near, far];
    let before = read_all(&functions)?;
    move_nvme(&functions[0], seed)?;
    move_nic(seed)?;
    let after = read_all(&functions)?;
    for ((function, before), after) in functions.iter().zip(before).zip(after) {
        say!("counters: {} {}", function.address, after);
        check_moved(function, after - before)?;
    }
    Ok(())
}

fn read_all(functions: &[Function; 3]) -> Result<Vec<Counters>> {
    functions.iter().map(Counters::read).collect()
}

fn move_nvme(nvme: &Function, seed: u64) -> Result<()> {
    let disk = nvme.disk()?;
    let large = Transfer::new(seed, NVME_BYTES);
    let small = Transfer {
        start: NVME_BYTES as u64,
        request: 4 * KIB,
        ..Transfer::new(seed + 1, SMALL_BYTES)
    };
    for (transfer, what) in [(large, "1 MiB requests"), (small, "4 KiB requests")] {
        let start = Instant::now();
        let outcome = transfer.verify(&disk)?;
        say!(
            "nvme: {} MiB in {what}: written {:016x}, read back {:016x} (XXH64); write {:.0} MiB/s, read {:.0} MiB/s, {:.1} s in all",
            transfer.bytes / MIB,
            outcome.written,
            outcome.read,
            rate(transfer.bytes, outcome.write_time),
            rate(transfer.bytes, outcome.read_time),
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn move_nic(seed: u64) -> Result<()> {
    let pair = Pair::connect()?;
    let ways = [(Direction::ToFar, "igb to e1000e"), (Direction::FromFar, "e1000e to igb")];
    for (direction, what) in ways {
        let outcome = pair.transfer(seed + 2 + direction as u64, NIC_BYTES, direction)?;
        say!(
            "nic: {} MiB {what}: sent {:016x}, received {:016x} (XXH64); {:.1} MiB/s",
            NIC_BYTES / MIB,
            outcome.sent,
            outcome.received,
            rate(NIC_BYTES, outcome.time)
        );
    }
    Ok(())
}

/// Checks the counters that DMA must increase.
fn check_moved(function: &Function, moved: Counters) -> Result<()> {
    let address = &function.address;
    ensure!(moved.mapped > 0, "{address}: nothing was mapped: {moved}");
    ensure!(moved.unmapped > 0, "{address}: nothing was unmapped: {moved}");
    ensure!(moved.sync_map > 0, "{address}: no refresh after a map: {moved}");
    Ok(())
}

fn clean_log() -> Result<()> {
    let messages = kmsg::messages()?;
    let bad = kmsg::bad(&messages);
    ensure!(bad.is_empty(), "the kernel log has {} bad messages, the first: {}", bad.len(), bad[0]);
    Ok(())
}
