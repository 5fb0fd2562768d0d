// SPDX-License-Identifier: GPL-2.0
//! Fault injection into allocations, one by one or at random: calls fail cleanly or are
//! retried, data stays intact, and nothing leaks.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::ioctl::AddressSpace;
use super::{Campaign, work};
use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::{COME_UP, Function};
use crate::kmsg;
use crate::ktap::{Suite, skip};
use crate::nic::{Direction, Pair};
use crate::{state, sysfs};

const KINDS: [&str; 2] = ["/sys/kernel/debug/failslab", "/sys/kernel/debug/fail_page_alloc"];
/// Selects which of this thread's next allocations fails
const NTH: &str = "/proc/thread-self/fail-nth";
/// How many allocations of a call are failed one by one before some are skipped
const EACH: u64 = 24;
/// How long the transfers run while allocations fail at random
const LONG: Duration = Duration::from_secs(30);

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "allocations", 40)?;
    let_any_fail()?;
    let nvme = Function::first_of("nvme")?;
    let_the_driver_fail()?;
    suite.test("a slot is switched on", || slot(&mut campaign, &nvme));
    suite.test("a driver is bound", || bind(&mut campaign, &nvme));
    suite.test("an address space of iommufd, a function in it, maps", || {
        iommufd(&mut campaign, &nvme)
    });
    let_fail(0, u64::MAX)?;
    suite.test("at random, a disk is at work", || at_random(|| busy_disk(&nvme)));
    suite.test("at random, network cards are at work", || {
        let pair = Pair::connect()?;
        at_random(|| busy_network(&pair))
    });
    suite.test("the disk works afterwards", || {
        Transfer::new(1400, 4 * MIB).verify(&nvme.disk()?).map(drop)
    });
    Ok(())
}

/// Enables fault injection for all allocations, including those that may sleep. None
/// fails yet.
pub fn let_any_fail() -> Result<()> {
    if !Path::new(KINDS[0]).exists() {
        skip!("the kernel has no CONFIG_FAILSLAB");
    }
    for kind in KINDS.map(Path::new) {
        sysfs::write(kind.join("probability"), "0")?;
        sysfs::write(kind.join("times"), "-1")?;
        // Do not log a call trace for each failure.
        sysfs::write(kind.join("verbose"), "0")?;
        sysfs::write(kind.join("ignore-gfp-wait"), "N")?;
    }
    let pages = Path::new(KINDS[1]);
    sysfs::write(pages.join("ignore-gfp-highmem"), "N")?;
    sysfs::write(pages.join("min-order"), "0")
}

/// Fails the nth allocation of a call. Returns the call's result, and whether there were
/// as many allocations.
fn with_failure<T>(nth: u64, call: impl FnOnce() -> T) -> Result<(T, bool)> {
    // The failure is armed after the file was opened, so the open itself does not count.
    sysfs::write(NTH, &nth.to_string())?;
    let result = call();
    let left: u64 = sysfs::read(NTH)?.parse()?;
    if left > 0 {
        sysfs::write(NTH, "0")?;
    }
    Ok((result, left == 0))
}

/// Fails only allocations that the driver makes itself or that are made in functions that
/// it calls. The PCI core, for example, does not handle a failure to name a device.
fn let_the_driver_fail() -> Result<()> {
    let (start, end) = code_of_driver()?;
    let_fail(start, end)
}

/// Fails only allocations with an address in this range in their call trace.
fn let_fail(start: u64, end: u64) -> Result<()> {
    for kind in KINDS.map(Path::new) {
        sysfs::write(kind.join("require-start"), &format!("{start:#x}"))?;
        sysfs::write(kind.join("require-end"), &format!("{end:#x}"))?;
        sysfs::write(kind.join("stacktrace-depth"), "32")?;
    }
    Ok(())
}

/// The address range of the driver's code: the largest cluster of its symbols.
fn code_of_driver() -> Result<(u64, u64)> {
    const APART: u64 = 1 << 20;
    let symbols = sysfs::read("/proc/kallsyms")?;
    let addresses = symbols.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (address, kind, name) = (fields.next()?, fields.next()?, fields.next()?);
        let is_code = kind.eq_ignore_ascii_case("t") && name.contains("s390_iommu");
        is_code.then(|| u64::from_str_radix(address, 16).ok())?
    });
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort_unstable();
    let together = addresses.chunk_by(|a, b| b - a < APART).max_by_key(|group| group.len());
    let together = together.context("no symbols of the driver")?;
    Ok((together[0], together[together.len() - 1]))
}

/// Repeats a call and fails its allocations one by one: each of the first ones, and a
/// random selection of the rest. `check` gets the result of each call.
fn each<T>(
    campaign: &mut Campaign,
    mut call: impl FnMut() -> Result<T>,
    mut check: impl FnMut(Result<T>) -> Result<()>,
) -> Result<()> {
    let (mut nth, mut tried) = (1, 0);
    loop {
        let (result, has_failed) = with_failure(nth, &mut call)?;
        if !has_failed {
            say!("# allocations: {tried} of {} have failed, one after the other", nth - 1);
            ensure!(tried > 0, "the call makes no allocation that can fail");
            // No allocation failed, so the call must succeed.
            return check(Ok(result.with_context(|| format!("after {nth} allocations"))?));
        }
        tried += 1;
        check(result).with_context(|| format!("allocation {nth} failed"))?;
        ensure!(tried < EACH + 10 * campaign.rounds, "too many allocations");
        nth += if tried < EACH { 1 } else { campaign.rng.u64(1..=2 * nth / EACH + 1) };
    }
}

/// Turns a slot on: the part of the driver, and that of the PCI core.
fn slot(campaign: &mut Campaign, nvme: &Function) -> Result<()> {
    let slot = nvme.slot()?;
    sysfs::write(&slot, "0")?;
    let call = || sysfs::write(&slot, "1");
    each(campaign, call, |_| {
        // Whatever failed, turning the slot off and on again must help.
        let _ = sysfs::write(&slot, "0");
        sysfs::write(&slot, "1")?;
        sysfs::wait_for("driver", COME_UP, || nvme.driver())?;
        nvme.disk()?;
        sysfs::write(&slot, "0")
    })?;
    sysfs::write(&slot, "1")?;
    Transfer::new(1410, MIB).verify(&nvme.disk()?).map(drop)
}

/// Binds a driver, which allocates and maps memory. The domain is new each time, because a
/// used one may have all tables that this needs.
fn bind(campaign: &mut Campaign, nvme: &Function) -> Result<()> {
    let kind = nvme.group_type()?;
    let renew = || {
        nvme.unbind()?;
        // The domain stays if only flushes become deferred.
        nvme.set_group_type("DMA-FQ")?;
        nvme.set_group_type("DMA")
    };
    renew()?;
    let call = || sysfs::write("/sys/bus/pci/drivers/nvme/bind", &nvme.address);
    each(campaign, call, |_| renew())?;
    nvme.set_group_type(&kind)?;
    nvme.probe()?;
    Transfer::new(1411, MIB).verify(&nvme.disk()?).map(drop)
}

/// Calls iommufd like a program. A call may fail, but must not leak tables, and works
/// when it is repeated.
fn iommufd(campaign: &mut Campaign, nvme: &Function) -> Result<()> {
    nvme.unbind()?;
    nvme.set_override("vfio-pci")?;
    nvme.probe()?;
    let before = state::table_pages()?;
    let address = &nvme.address;
    let result = each(
        campaign,
        || AddressSpace::with_maps(address),
        |result| {
            drop(result);
            let same = || (state::table_pages().ok()? <= before).then_some(());
            sysfs::wait_for("end of tables", Duration::from_secs(5), same)
        },
    );
    nvme.unbind()?;
    nvme.set_override("")?;
    nvme.probe()?;
    result?;
    Transfer::new(1412, MIB).verify(&nvme.disk()?).map(drop)
}

/// Fails 5 % of the allocations that must not sleep, such as those of transfers. All
/// others succeed, or this program would not survive.
fn at_random(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let set = |name: &str, value: &str| {
        KINDS.iter().try_for_each(|kind| sysfs::write(Path::new(kind).join(name), value))
    };
    set("ignore-gfp-wait", "Y")?;
    set("probability", "5")?;
    let result = work();
    set("probability", "0")?;
    set("ignore-gfp-wait", "N")?;
    result
}

fn busy_disk(nvme: &Function) -> Result<()> {
    let disk = nvme.disk()?;
    let end = Instant::now() + LONG;
    let mut round = 0;
    let (result, messages) = kmsg::during(|| {
        while Instant::now() < end {
            let request = [4 * KIB, 64 * KIB, 512 * KIB][round as usize % 3];
            Transfer { request, ..Transfer::new(1420 + round, 4 * MIB) }.verify(&disk)?;
            round += 1;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    result.with_context(|| format!("transfer {round}"))?;
    let error = messages.iter().find(|message| message.contains("I/O error"));
    ensure!(error.is_none(), "bad kernel message: {error:?}");
    Ok(())
}

fn busy_network(pair: &Pair) -> Result<()> {
    let end = Instant::now() + LONG;
    let disk = work::other_disk()?;
    work::beside_transfers(&disk, 1450, || {
        let mut round = 0;
        while Instant::now() < end {
            pair.transfer(1460 + round, MIB, Direction::ToFar)?;
            pair.transfer(1480 + round, MIB, Direction::FromFar)?;
            round += 2;
        }
        Ok(())
    })
}
