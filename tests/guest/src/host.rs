// SPDX-License-Identifier: GPL-2.0
//! What only the owner of the machine can do: plug and unplug devices and memory, have
//! instructions refused.
//!
//! A wish is a line on the console, which the program that started the machine
//! reads (`tools/src/hotplug.rs`). It answers with a line when it was done; by
//! hand, that is the Enter key.

use anyhow::{Context, Result, ensure};

use crate::console::say;

/// Has a device plugged, by the name that it has on the host. When this
/// returns, a scan finds it; the event for it may come later.
pub fn plug(device: &str) -> Result<()> {
    ask("plug", device).map(drop)
}

/// Has a device taken away. The kernel has to let it go for that; the event
/// for its end may come later.
pub fn unplug(device: &str) -> Result<()> {
    ask("unplug", device).map(drop)
}

/// Has this much memory offered beside what the machine was started with; its driver
/// takes and gives it back after this returns.
pub fn memory(bytes: u64) -> Result<()> {
    ask("memory", &bytes.to_string()).map(drop)
}

/// Has instructions for a device's function refused, `OP:SKIP:COUNT:CC:STATUS`, as
/// `integration/qemu/0006-fault.patch` describes it.
pub fn fault(device: &str, what: &str) -> Result<()> {
    ask("fault", &format!("{device} {what}")).map(drop)
}

/// How many instructions are still to be refused.
pub fn faults_left(device: &str) -> Result<u64> {
    let left = ask("left", device)?;
    let count = left.trim().split(':').nth(2).and_then(|count| count.parse().ok());
    count.with_context(|| format!("what is left is {left:?}"))
}

fn ask(verb: &str, device: &str) -> Result<String> {
    say!("guest: want {verb} {device}");
    let mut answer = String::new();
    let length = std::io::stdin().read_line(&mut answer).context("read the console")?;
    ensure!(length > 0, "nobody is there to {verb} {device}");
    Ok(answer)
}
