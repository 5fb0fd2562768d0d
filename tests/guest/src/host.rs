// SPDX-License-Identifier: GPL-2.0
//! Requests to the host: plug and unplug devices and memory, inject failures of
//! instructions.
//!
//! A request is a line on the console, which the program that started the machine reads
//! (`tools/src/hotplug.rs`). It answers with a line when it has finished. Without that
//! program, the user does it by hand and presses Enter.

use anyhow::{Context, Result, ensure};

use crate::console::say;

/// Plugs a device, by its name on the host. When this returns, a scan finds it; the
/// event may come later.
pub fn plug(device: &str) -> Result<()> {
    ask("plug", device).map(drop)
}

/// Unplugs a device. The kernel has to release it first; the event for the removal may
/// come later.
pub fn unplug(device: &str) -> Result<()> {
    ask("unplug", device).map(drop)
}

/// Offers this much memory in addition to what the machine was started with. The
/// virtio-mem driver plugs or unplugs it after this returns.
pub fn memory(bytes: u64) -> Result<()> {
    ask("memory", &bytes.to_string()).map(drop)
}

/// Ends a fault.
pub const NO_FAULT: &str = "0:0:0:0:0";

/// Makes instructions for a device's function fail: `OP:SKIP:COUNT:CC:STATUS`, as
/// described in `integration/qemu/0006-fault.patch`.
pub fn fault(device: &str, what: &str) -> Result<()> {
    ask("fault", &format!("{device} {what}")).map(drop)
}

/// The same for a number of seconds, from a moment before this returns on.
pub fn fault_for(seconds: u64, device: &str, what: &str) -> Result<()> {
    ask("fault", &format!("{device} {what} {seconds}")).map(drop)
}

/// How many instructions are still going to fail.
pub fn faults_left(device: &str) -> Result<u64> {
    let left = ask("left", device)?;
    let count = left.trim().split(':').nth(2).and_then(|count| count.parse().ok());
    count.with_context(|| format!("cannot parse the faults left: {left:?}"))
}

fn ask(verb: &str, device: &str) -> Result<String> {
    say!("guest: want {verb} {device}");
    let mut answer = String::new();
    let length = std::io::stdin().read_line(&mut answer).context("read the console")?;
    ensure!(length > 0, "no answer from the host to {verb} {device}");
    Ok(answer)
}
