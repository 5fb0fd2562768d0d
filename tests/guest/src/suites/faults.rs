// SPDX-License-Identifier: GPL-2.0
//! The emulated machine refuses instructions during I/O.

use anyhow::{Result, ensure};

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::host;
use crate::ktap::Suite;

use super::modules;

/// Operation number of RPCIT in an injected fault
const RPCIT: &str = "0x100";
/// A re-registration is refused (condition code 1, status 24), and the function loses its
/// table.
const LOST_TABLE: &str = "0x206:0:1:1:24";
/// Every re-registration is refused: the machine does not have the instruction.
const NO_REREGISTRATION: &str = "6:0:1000000:1:24";

/// A test of DMA on a domain that it attaches
const LARGE: &str = "DMA to large mappings";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    suite.test("busy for a while: the data is right", || {
        // Condition code 2, 30 times, after the first 40
        transfer_with(&nvme, 800, &format!("{RPCIT}:40:30:2:0"))
    });
    suite.test("no resources once: the data is right", || {
        transfer_with(&nvme, 801, &format!("{RPCIT}:30:1:1:16"))
    });
    suite.test("a reset whose registration is busy: the data is right", || {
        host::fault("nvme", "4:0:3:2:0")?;
        nvme.reset_by("bus")?;
        transfer(&nvme, 802)
    });
    for (what, fault) in [
        ("a re-registration is refused and costs the table", LOST_TABLE),
        ("no re-registration", NO_REREGISTRATION),
    ] {
        suite.test(&format!("{what}: DMA on the next domain"), || {
            ensure!(modules::passes("dma", LARGE, fault)?, "no DMA");
            Ok(())
        });
    }
    Ok(())
}

fn transfer_with(nvme: &Function, seed: u64, fault: &str) -> Result<()> {
    host::fault("nvme", fault)?;
    transfer(nvme, seed)
}

/// Verifies a transfer that needs enough instructions to use up the injected fault.
fn transfer(nvme: &Function, seed: u64) -> Result<()> {
    Transfer::new(seed, 8 * MIB).verify(&nvme.disk()?)?;
    let left = host::faults_left("nvme")?;
    ensure!(left == 0, "{left} refusals are left, so the test is void");
    Ok(())
}
