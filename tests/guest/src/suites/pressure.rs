// SPDX-License-Identifier: GPL-2.0
//! The machine refuses instructions during I/O. The disk and the network cards may only
//! become slower.

use anyhow::{Context, Result, ensure};

use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{COME_UP, Function};
use crate::kmsg;
use crate::ktap::{Suite, skip};
use crate::module::Module;
use crate::nic::{Direction, Pair};
use crate::{shown, sysfs};

/// The module that refuses every nth refresh of any function
const SUPPORT: &str = "iommu_test";
/// Intervals of refusals: rarely, often, and as often as a retry still helps
const EVERY: [u64; 3] = [17, 5, 2];
const REQUEST: usize = 512 * KIB;
const BYTES: usize = 16 * MIB;
/// How many of the first table operations are refused, one in each round. A reset needs
/// one or two, a recovery a few more.
const STEPS: u32 = 6;
/// Condition codes and statuses: insufficient resources, function not enabled, function
/// in the error state, function gone
const ANSWERS: [(u8, u8); 4] = [(1, 16), (1, 4), (1, 40), (3, 0)];

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    for every in EVERY {
        let name = format!("no resources for refresh {every}, {}, ...: data right", 2 * every);
        suite.test(&name, || shadowed(|| transfer(every)));
    }
    let pair = Pair::connect()?;
    let bytes = cmdline.transfer(4 * MIB)?;
    // The more packets are lost, the longer TCP waits before it sends one again.
    for (every, bytes) in [(EVERY[0], bytes), (EVERY[1], bytes / 8)] {
        let name = format!("no resources for refresh {every}, {}, ...: network", 2 * every);
        suite.test(&name, || shadowed(|| send(&pair, every, bytes)));
    }
    for (cc, status) in ANSWERS {
        let name = format!("resets refused with condition code {cc}, status {status}");
        suite.test(&name, || resets(&pair, cc, status, bytes / 2));
    }
    Ok(())
}

/// Runs a test only if a hypervisor shadows the tables, because no other machine runs out
/// of resources. Elsewhere the DMA API would reuse the IOVAs in its queue although their
/// flush was refused, and nothing could make up for that.
fn shadowed(test: impl FnOnce() -> Result<()>) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    if shown::is_there() && !shown::maps_need_refresh(&nvme)? {
        skip!("the machine does not shadow the tables");
    }
    test()
}

fn send(pair: &Pair, every: u64, bytes: usize) -> Result<()> {
    let support = Module::load(SUPPORT, &format!("no_resources_every={every}"))?;
    let sent = pair
        .transfer(620 + every, bytes, Direction::ToFar)
        .and_then(|_| pair.transfer(640 + every, bytes, Direction::FromFar));
    support.unload()?;
    sent.map(drop)
}

/// Resets the disk during network transfers, while one operation on its table is refused.
/// A recovery must repair what a failed reset leaves.
fn resets(pair: &Pair, cc: u8, status: u8, bytes: usize) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    for step in 1..=STEPS {
        let what = || format!("operation {step} refused");
        let args = format!("refuse_table={step} refuse_cc={cc} refuse_status={status}");
        let support = Module::load(SUPPORT, &args)?;
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| pair.transfer(660, bytes, Direction::ToFar));
            // Whether this succeeds depends on which operation was refused.
            let _ = sysfs::write(nvme.path().join("reset"), "1");
            let _ = sysfs::write(nvme.path().join("reset"), "1");
            sender.join().map_err(|_| anyhow::anyhow!("the sender died"))?
        });
        support.unload()?;
        sent.with_context(what)?;
        sysfs::write(nvme.path().join("recover"), "1").with_context(what)?;
        sysfs::wait_for("driver", COME_UP, || nvme.driver()).with_context(what)?;
        let transfer = Transfer::new(680 + u64::from(step), 2 * MIB);
        transfer.verify(&nvme.disk()?).with_context(what)?;
    }
    Ok(())
}

fn transfer(every: u64) -> Result<()> {
    let disk = Function::first_of("nvme")?.disk()?;
    let support = Module::load(SUPPORT, &format!("no_resources_every={every}"))?;
    let transfer = Transfer { request: REQUEST, ..Transfer::new(600 + every, BYTES) };
    let (result, messages) = kmsg::during(|| transfer.verify(&disk))?;
    support.unload()?;
    result?;
    let bad = ["critical space allocation", "I/O error", "may reach unmapped memory"];
    let error = messages.iter().find(|message| bad.iter().any(|text| message.contains(text)));
    ensure!(error.is_none(), "bad kernel message: {error:?}");
    Ok(())
}
