// SPDX-License-Identifier: GPL-2.0
//! The machine refuses now and then, while data moves: a disk and network cards
//! are slower, and no more than that.

use anyhow::{Context, Result, ensure};

use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{COME_UP, Function};
use crate::kmsg;
use crate::ktap::{Suite, skip};
use crate::module::Module;
use crate::nic::{Direction, Pair};
use crate::{shown, sysfs};

/// Refuses every n-th refresh, of any function.
const SUPPORT: &str = "iommu_test";
/// How often: rarely, often, and as often as a second try can help.
const EVERY: [u64; 3] = [17, 5, 2];
const REQUEST: usize = 512 * KIB;
const BYTES: usize = 16 * MIB;
/// The first operations on tables, one of which is refused: a reset needs one or
/// two, taking a function away and finding it again a few more.
const STEPS: u32 = 6;
/// Condition code and status: insufficient resources, function not enabled,
/// function in the error state, function gone.
const ANSWERS: [(u8, u8); 4] = [(1, 16), (1, 4), (1, 40), (3, 0)];

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    for every in EVERY {
        let name = format!("no resources for refresh {every}, {}, ...: data right", 2 * every);
        suite.test(&name, || shadowed(|| transfer(every)));
    }
    let pair = Pair::connect()?;
    for every in &EVERY[..2] {
        let name = format!("no resources for refresh {every}, {}, ...: network", 2 * every);
        suite.test(&name, || shadowed(|| send(&pair, *every)));
    }
    for (cc, status) in ANSWERS {
        let name = format!("resets refused with condition code {cc}, status {status}");
        suite.test(&name, || resets(&pair, cc, status));
    }
    Ok(())
}

/// Only a hypervisor that shadows the tables has no resources. Elsewhere a queue of
/// unmaps whose flush is refused gives its IOVAs away, and nobody can make up for it.
fn shadowed(test: impl FnOnce() -> Result<()>) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    if shown::is_there() && !shown::maps_need_refresh(&nvme)? {
        skip!("the machine does not shadow the tables");
    }
    test()
}

fn send(pair: &Pair, every: u64) -> Result<()> {
    let support = Module::load(SUPPORT, &format!("no_resources_every={every}"))?;
    let sent = pair
        .transfer(620 + every, 4 * MIB, Direction::ToFar)
        .and_then(|_| pair.transfer(640 + every, 4 * MIB, Direction::FromFar));
    support.unload()?;
    sent.map(drop)
}

/// The disk is reset while the network is at work, and an operation on its table is
/// refused. What a refused reset leaves, another one brings back.
fn resets(pair: &Pair, cc: u8, status: u8) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    for step in 1..=STEPS {
        let what = || format!("operation {step} refused");
        let words = format!("refuse_table={step} refuse_cc={cc} refuse_status={status}");
        let support = Module::load(SUPPORT, &words)?;
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| pair.transfer(660, 2 * MIB, Direction::ToFar));
            // Whether this succeeds is up to what was refused.
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
    ensure!(error.is_none(), "the kernel says {error:?}");
    Ok(())
}
