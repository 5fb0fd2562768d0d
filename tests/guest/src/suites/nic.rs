// SPDX-License-Identifier: GPL-2.0
//! Verified transfers between two network cards.

use anyhow::Result;

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::nic::{Direction, Pair};

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let bytes = cmdline.transfer(8 * MIB)?;
    let pair = Pair::connect()?;
    suite.test("igb to e1000e", || pair.transfer(300, bytes, Direction::ToFar).map(drop));
    suite.test("e1000e to igb", || pair.transfer(301, bytes, Direction::FromFar).map(drop));
    suite.test("with the disk at work", || beside_disk(&pair, bytes));
    Ok(())
}

fn beside_disk(pair: &Pair, bytes: usize) -> Result<()> {
    let disk = Function::first_of("nvme")?.disk()?;
    let start = (192 * MIB) as u64;
    let transfer = Transfer { start, ..Transfer::new(302, bytes) };
    std::thread::scope(|scope| {
        let disk = scope.spawn(|| transfer.verify(&disk));
        let moved = pair.transfer(303, bytes, Direction::FromFar);
        disk.join().map_err(|_| anyhow::anyhow!("the disk's thread died"))??;
        moved.map(drop)
    })
}
