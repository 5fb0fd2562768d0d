// SPDX-License-Identifier: GPL-2.0
//! The hypervisor has no room now and then: a disk is slower, and no more than
//! that.

use anyhow::{Result, ensure};

use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::kmsg;
use crate::ktap::Suite;
use crate::module::Module;

/// Refuses every n-th refresh, of any function.
const SUPPORT: &str = "iommu_test";
/// How often: rarely, often, and as often as a second try can help.
const EVERY: [u64; 3] = [17, 5, 2];
const REQUEST: usize = 512 * KIB;
const BYTES: usize = 16 * MIB;

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    for every in EVERY {
        let name = format!("no room for refresh {every}, {}, ...: data right", 2 * every);
        suite.test(&name, || transfer(every));
    }
    Ok(())
}

fn transfer(every: u64) -> Result<()> {
    let disk = Function::first_of("nvme")?.disk()?;
    let support = Module::load(SUPPORT, &format!("no_room_every={every}"))?;
    let transfer = Transfer { request: REQUEST, ..Transfer::new(600 + every, BYTES) };
    let (result, messages) = kmsg::during(|| transfer.verify(&disk))?;
    support.unload()?;
    result?;
    let bad = ["critical space allocation", "I/O error"];
    let error = messages.iter().find(|message| bad.iter().any(|text| message.contains(text)));
    ensure!(error.is_none(), "the kernel says {error:?}");
    Ok(())
}
