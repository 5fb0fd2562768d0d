// SPDX-License-Identifier: GPL-2.0
//! Verified transfers between two network cards.

use anyhow::Result;

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::nic::{Direction, Pair};

const BYTES: usize = 8 * MIB;

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let pair = Pair::connect()?;
    suite.test("igb to e1000e", || pair.transfer(300, BYTES, Direction::ToFar).map(drop));
    suite.test("e1000e to igb", || pair.transfer(301, BYTES, Direction::FromFar).map(drop));
    suite.test("with the disk at work", || beside_disk(&pair));
    Ok(())
}

fn beside_disk(pair: &Pair) -> Result<()> {
    let disk = Function::first_of("nvme")?.disk()?;
    let start = (192 * MIB) as u64;
    let transfer = Transfer { start, ..Transfer::new(302, 8 * MIB) };
    std::thread::scope(|scope| {
        let disk = scope.spawn(|| transfer.verify(&disk));
        let moved = pair.transfer(303, BYTES, Direction::FromFar);
        disk.join().map_err(|_| anyhow::anyhow!("the disk's thread died"))??;
        moved.map(drop)
    })
}
