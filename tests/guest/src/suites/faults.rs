// SPDX-License-Identifier: GPL-2.0
//! The machine itself refuses instructions, under I/O.

use anyhow::{Result, ensure};

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::counters::Counters;
use crate::function::Function;
use crate::host;
use crate::ktap::Suite;

/// RPCIT, as the machine's faults call it.
const RPCIT: &str = "0x100";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    suite.test("busy for a while: the data is right", || {
        // Condition code 2, thirty times from the fortieth on.
        transfer_with(&nvme, 800, &format!("{RPCIT}:40:30:2:0"))
    });
    suite.test("no resources once: the data is right", || {
        transfer_with(&nvme, 801, &format!("{RPCIT}:30:1:1:16"))
    });
    suite.test("a first registration that is busy: the drive comes up", || {
        nvme.unbind()?;
        host::fault("nvme", "4:0:3:2:0")?;
        nvme.set_reset_method("bus")?;
        nvme.probe()?;
        transfer(&nvme, 802)?;
        nvme.set_reset_method("default")
    });
    Ok(())
}

fn transfer_with(nvme: &Function, seed: u64, fault: &str) -> Result<()> {
    host::fault("nvme", fault)?;
    transfer(nvme, seed)
}

/// More refreshes than any fault here waits for.
fn transfer(nvme: &Function, seed: u64) -> Result<()> {
    let before = Counters::read(nvme)?;
    Transfer::new(seed, 8 * MIB).verify(&nvme.disk()?)?;
    let moved = Counters::read(nvme)? - before;
    ensure!(moved.sync_map + moved.sync + moved.global > 0, "{moved}");
    Ok(())
}
