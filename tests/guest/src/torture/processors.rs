// SPDX-License-Identifier: GPL-2.0
//! Processors and memory go and come while data moves.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Campaign, work};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::{Suite, skip};
use crate::sysfs;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "processors", 100);
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

/// What can be switched off in a folder.
fn with_switch(folder: &str) -> Result<Vec<PathBuf>> {
    let switches = sysfs::list(folder).into_iter().map(|path| path.join("online"));
    let mut switches: Vec<_> = switches.filter(|path| path.is_file()).collect();
    // The first one is what everything else runs on.
    if !switches.is_empty() {
        switches.remove(0);
    }
    if switches.is_empty() {
        skip!("nothing in {folder} can be switched off");
    }
    Ok(switches)
}

/// Not everything can go at any time: memory may be in use for good.
fn switch(campaign: &mut Campaign, switches: &[PathBuf]) -> Result<()> {
    let mut went = 0;
    for _ in 0..campaign.rounds {
        let path = &switches[campaign.rng.usize(..switches.len())];
        let is_on = sysfs::read(path)? == "1";
        let done = sysfs::write(path, if is_on { "0" } else { "1" });
        went += u64::from(is_on && done.is_ok());
        ensure!(is_on || done.is_ok(), "{}: it does not come back: {done:?}", path.display());
    }
    for path in switches {
        if sysfs::read(path)? == "0" {
            sysfs::write(path, "1")?;
        }
    }
    ensure!(went > 0, "nothing of {} things went", switches.len());
    Ok(())
}
