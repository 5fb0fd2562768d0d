// SPDX-License-Identifier: GPL-2.0
//! CPU and memory hotplug during I/O.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Campaign, work};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::{Suite, skip};
use crate::sysfs;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "processors", 100)?;
    let rounds = campaign.rounds;
    let drives = Function::of_driver("nvme");
    let disk = drives.last().context("no drive")?.disk()?;
    suite.test(&format!("processors go and come under I/O, {rounds} times"), || {
        let processors = with_switch("/sys/devices/system/cpu")?;
        work::beside_transfers(&disk, 1200, || switch(&mut campaign, &processors))
    });
    suite.test(&format!("memory goes and comes under I/O, {rounds} times"), || {
        let blocks = with_switch("/sys/devices/system/memory")?;
        work::beside_transfers(&disk, 1300, || switch(&mut campaign, &blocks))
    });
    Ok(())
}

/// The `online` files in a directory.
fn with_switch(folder: &str) -> Result<Vec<PathBuf>> {
    let switches = sysfs::list(folder).into_iter().map(|path| path.join("online"));
    let mut switches: Vec<_> = switches.filter(|path| path.is_file()).collect();
    // Keep the first one online.
    if !switches.is_empty() {
        switches.remove(0);
    }
    if switches.is_empty() {
        skip!("nothing in {folder} can be set offline");
    }
    Ok(switches)
}

/// Sets random ones offline or online. Setting one offline may fail, because memory may
/// be in use permanently.
fn switch(campaign: &mut Campaign, switches: &[PathBuf]) -> Result<()> {
    let mut went = 0;
    for _ in 0..campaign.rounds {
        let path = &switches[campaign.rng.usize(..switches.len())];
        let is_on = sysfs::read(path)? == "1";
        let done = sysfs::write(path, if is_on { "0" } else { "1" });
        went += u64::from(is_on && done.is_ok());
        ensure!(is_on || done.is_ok(), "{}: does not come back online: {done:?}", path.display());
    }
    for path in switches {
        if sysfs::read(path)? == "0" {
            sysfs::write(path, "1")?;
        }
    }
    ensure!(went > 0, "none of {} could be set offline", switches.len());
    Ok(())
}
