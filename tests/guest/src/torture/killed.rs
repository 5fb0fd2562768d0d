// SPDX-License-Identifier: GPL-2.0
//! Kills a program that uses a function through VFIO, with DMA in flight, at random
//! moments. Afterwards the function works with its native driver.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Campaign, storms};
use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::state;
use crate::sysfs;

/// The function returns to its native driver once in this many rounds
const NATIVE: u64 = 10;
/// How many more pages of tables may be in use at the end, because the DMA API's flush
/// queues of other functions delay frees
const NOISE: u64 = 64;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "killed", 200)?;
    let nvme = Function::first_of("nvme")?;
    let rounds = campaign.rounds;
    let name = format!("a program with DMA in flight is killed, {rounds} times");
    suite.test(&name, || kill_each(&mut campaign, &nvme));
    suite.test("the disk works afterwards", || {
        Transfer::new(1500, 4 * MIB).verify(&nvme.disk()?).map(drop)
    });
    Ok(())
}

fn lend(nvme: &Function) -> Result<()> {
    nvme.unbind()?;
    nvme.set_override("vfio-pci")?;
    nvme.probe()
}

fn give_back(nvme: &Function) -> Result<()> {
    nvme.unbind()?;
    nvme.set_override("")?;
    nvme.probe()
}

/// How long the program runs if it is not killed.
fn whole(nvme: &Function) -> Result<Duration> {
    let start = Instant::now();
    let status = storms::user(nvme)?.wait()?;
    ensure!(status.success(), "vfio_identify: {status}");
    Ok(start.elapsed())
}

fn kill_each(campaign: &mut Campaign, nvme: &Function) -> Result<()> {
    lend(nvme)?;
    let result = kill_lent(campaign, nvme);
    give_back(nvme)?;
    result
}

fn kill_lent(campaign: &mut Campaign, nvme: &Function) -> Result<()> {
    let whole = whole(nvme)?;
    let before = state::table_pages()?;
    let mut early = 0;
    for round in 0..campaign.rounds {
        let mut child = storms::user(nvme)?;
        let after = whole.mul_f64(campaign.rng.f64());
        std::thread::sleep(after);
        early += u64::from(child.try_wait()?.is_none());
        child.kill()?;
        child.wait()?;
        if round % NATIVE == NATIVE - 1 {
            give_back(nvme).with_context(|| format!("round {round}"))?;
            let transfer = Transfer::new(1510 + round, MIB);
            transfer.verify(&nvme.disk()?).with_context(|| format!("round {round}"))?;
            lend(nvme)?;
        }
    }
    ensure!(early > campaign.rounds / 4, "only {early} were killed before they exited");
    let few = || (state::table_pages().ok()? <= before + NOISE).then_some(());
    sysfs::wait_for("end of tables", Duration::from_secs(10), few)
}
