// SPDX-License-Identifier: GPL-2.0
//! A function works in its domain again after resets, recovery, hotplug and rebinding.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{COME_UP, Function};
use crate::ktap::Suite;
use crate::sysfs;

const ROUNDS: u64 = 3;

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    suite.test("reset by the function", || repeat(&nvme, 600, reset_function));
    suite.test("reset by the platform", || repeat(&nvme, 605, reset));
    suite.test("reset with transfers in flight", || reset_in_flight(&nvme));
    suite.test("recover", || repeat(&nvme, 610, recover));
    suite.test("slot off and on", || repeat(&nvme, 620, slot));
    suite.test("driver unbound and bound", || repeat(&nvme, 630, rebind));
    suite.test("reset of a function without a driver", || repeat(&nvme, 640, reset_unbound));
    suite.test("slots of all functions off and on", || all_slots(&nvme));
    Ok(())
}

/// Repeats an action. The disk must work each time, and the group's type must not change.
fn repeat(nvme: &Function, seed: u64, action: fn(&Function) -> Result<()>) -> Result<()> {
    let kind = nvme.group_type()?;
    for round in 0..ROUNDS {
        action(nvme)?;
        verify(nvme, seed + round)?;
    }
    let now = nvme.group_type()?;
    ensure!(now == kind, "the group's type was {kind}, now it is {now}");
    Ok(())
}

fn verify(nvme: &Function, seed: u64) -> Result<()> {
    Transfer::new(seed, 2 * MIB).verify(&nvme.disk()?).map(drop)
}

fn reset(nvme: &Function) -> Result<()> {
    nvme.set_reset_method("bus")?;
    sysfs::write(nvme.path().join("reset"), "1")
}

fn reset_function(nvme: &Function) -> Result<()> {
    nvme.set_reset_method("flr")?;
    sysfs::write(nvme.path().join("reset"), "1")
}

/// The transfer must succeed, because the driver repeats the requests that were lost.
fn reset_in_flight(nvme: &Function) -> Result<()> {
    let disk = nvme.disk()?;
    let transfer = Transfer::new(650, 16 * MIB);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| transfer.verify(&disk));
        for _ in 0..ROUNDS {
            std::thread::sleep(Duration::from_millis(50));
            reset(nvme)?;
        }
        writer.join().map_err(|_| anyhow::anyhow!("the writer died"))?.map(drop)
    })
}

/// Makes the kernel remove the device and scan for it again.
fn recover(nvme: &Function) -> Result<()> {
    sysfs::write(nvme.path().join("recover"), "1")
}

/// Turns the function's slot off, then on again.
pub fn slot(function: &Function) -> Result<()> {
    let slot = function.slot()?;
    sysfs::write(&slot, "0")?;
    ensure!(!function.path().exists(), "the slot is off, but the function still exists");
    sysfs::write(&slot, "1")?;
    sysfs::wait_for("driver", COME_UP, || function.driver()).map(drop)
}

fn rebind(nvme: &Function) -> Result<()> {
    nvme.unbind()?;
    nvme.probe()
}

fn reset_unbound(nvme: &Function) -> Result<()> {
    nvme.unbind()?;
    reset(nvme)?;
    nvme.probe()
}

/// Turns all slots off, then on again. The last function frees what they share.
fn all_slots(nvme: &Function) -> Result<()> {
    let functions = Function::all();
    let slots: Result<Vec<_>> = functions.iter().map(Function::slot).collect();
    let slots = slots?;
    for slot in &slots {
        sysfs::write(slot, "0")?;
    }
    ensure!(Function::all().is_empty(), "all slots are off, but there are still functions");
    for slot in &slots {
        sysfs::write(slot, "1")?;
    }
    for function in &functions {
        sysfs::wait_for("driver", COME_UP, || function.driver())?;
    }
    verify(nvme, 660)
}
