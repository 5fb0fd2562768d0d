// SPDX-License-Identifier: GPL-2.0
//! The host refuses a drive's instructions at random, or is busy for seconds. The other
//! drive and the network cards are at work and must not notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Campaign, work};
use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{COME_UP, Function};
use crate::ktap::Suite;
use crate::{host, sysfs};

/// The drive's name on the host
const DEVICE: &str = "nvme";
/// Operations of the instructions: a refresh (`integration/qemu/0006-fault.patch`), and
/// those of "Modify PCI Function Controls" that register, deregister and re-register the
/// table, and reset the error state
const REFRESH: u32 = 0x100;
const REGISTER: u32 = 4;
const OPERATIONS: [u32; 6] = [REFRESH, REGISTER, 5, 6, 7, 9];
/// Condition codes and statuses: busy, and insufficient resources for a refresh. If there
/// are only a few, they are retried and nobody notices.
const BUSY: (u8, u8) = (2, 0);
const NO_RESOURCES: (u8, u8) = (1, 16);
/// More of them: not enabled, in the error state, blocked, invalid address space, already
/// enabled, no address space, gone
const ANSWERS: [(u8, u8); 9] =
    [BUSY, NO_RESOURCES, (1, 4), (1, 8), (1, 12), (1, 20), (1, 24), (1, 28), (3, 0)];
/// How long the host is busy
const SECONDS: u64 = 3;
/// More than any test uses up: a million last less than three seconds
const ENDLESS: u32 = u32::MAX;

/// One round of a test, and its number
type Round = fn(&mut Campaign, &Function, u64) -> Result<()>;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "refusals", 30)?;
    let rounds = campaign.rounds;
    let nvme = Function::first_of("nvme")?;
    let tests: [(&str, Round); 2] = [("refusals that pass", passing), ("any refusals", any)];
    for (what, round) in tests {
        suite.test(&format!("{what}, at random, {rounds} times"), || {
            repeat(&mut campaign, &nvme, round)
        });
    }
    suite.test(&format!("refreshes are busy for {SECONDS} s"), || {
        busy(REFRESH, || transfer(&nvme, 1600))
    });
    suite.test(&format!("a registration is busy for {SECONDS} s"), || {
        busy(REGISTER, || nvme.reset_by("bus"))?;
        transfer(&nvme, 1601)
    });
    Ok(())
}

fn repeat(campaign: &mut Campaign, nvme: &Function, round: Round) -> Result<()> {
    let other = work::other_disk()?;
    let kind = nvme.group_type()?;
    let seed = campaign.rng.u64(..) >> 8;
    let result = work::beside_transfers(&other, seed, || {
        work::beside_packets(|| {
            (0..campaign.rounds).try_for_each(|number| {
                round(campaign, nvme, number).with_context(|| format!("round {number}"))
            })
        })
    });
    host::fault(DEVICE, host::NO_FAULT)?;
    result?;
    nvme.unbind()?;
    nvme.set_group_type(&kind)?;
    nvme.probe()
}

/// What happens to the drive while its instructions are refused
fn act(campaign: &mut Campaign, nvme: &Function) -> Result<()> {
    let seed = campaign.rng.u64(..) >> 8;
    match campaign.rng.u8(..4) {
        0 => transfer(nvme, seed),
        1 => nvme.reset_by("bus"),
        // Bound again, on the same domain or on another
        choice => {
            nvme.unbind()?;
            let switched = if choice == 2 { Ok(()) } else { switch_type(nvme) };
            sysfs::write("/sys/bus/pci/drivers_probe", &nvme.address)?;
            switched
        }
    }
}

fn switch_type(nvme: &Function) -> Result<()> {
    let is_strict = nvme.group_type()? == "DMA";
    nvme.set_group_type(if is_strict { "DMA-FQ" } else { "DMA" })
}

fn transfer(nvme: &Function, seed: u64) -> Result<()> {
    Transfer::new(seed, MIB).verify(&nvme.disk()?).map(drop)
}

fn text(operation: u32, skip: u32, count: u32, (code, status): (u8, u8)) -> String {
    format!("{operation}:{skip}:{count}:{code}:{status}")
}

fn fault(operation: u32, skip: u32, count: u32, answer: (u8, u8)) -> Result<()> {
    host::fault(DEVICE, &text(operation, skip, count, answer))
}

/// Busy answers, or a single one without resources: whatever is done succeeds.
fn passing(campaign: &mut Campaign, nvme: &Function, round: u64) -> Result<()> {
    let rng = &mut campaign.rng;
    let skip = rng.u32(..30);
    match rng.bool() {
        true => fault(OPERATIONS[rng.usize(..3)], skip, rng.u32(1..20), BUSY)?,
        false => fault(REFRESH, skip, 1, NO_RESOURCES)?,
    }
    act(campaign, nvme)?;
    transfer(nvme, 1620 + round)
}

/// Any answer. What is done may fail, and the function may end in the error state; a
/// recovery makes it work again.
fn any(campaign: &mut Campaign, nvme: &Function, round: u64) -> Result<()> {
    let rng = &mut campaign.rng;
    let (operation, answer) = (OPERATIONS[rng.usize(..6)], ANSWERS[rng.usize(..9)]);
    fault(operation, rng.u32(..8), rng.u32(1..4), answer)?;
    let _ = act(campaign, nvme);
    host::fault(DEVICE, host::NO_FAULT)?;
    let what = || format!("operation {operation:#x}, answer {answer:?}");
    sysfs::write(nvme.path().join("recover"), "1").with_context(what)?;
    sysfs::wait_for("driver", COME_UP, || nvme.driver()).with_context(what)?;
    transfer(nvme, 1680 + round).with_context(what)
}

/// Runs `work`, which cannot end before the host is no longer busy. A processor may wait
/// for that in an interrupt, so the host itself ends it.
fn busy(operation: u32, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    host::fault_for(SECONDS, DEVICE, &text(operation, 0, ENDLESS, BUSY))?;
    work()?;
    let time = start.elapsed();
    ensure!(time >= Duration::from_secs(SECONDS), "nothing was busy: it took {time:?}");
    Ok(())
}
