// SPDX-License-Identifier: GPL-2.0
//! Verified transfers to and from the NVMe drive.

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;

/// Name, request size, offset of the buffer in its page, total size
const SHAPES: [(&str, usize, usize, usize); 5] = [
    ("1 MiB requests", MIB, 0, 16 * MIB),
    ("4 KiB requests", 4 * KIB, 0, 2 * MIB),
    ("512 byte requests inside a page", 512, 1536, 256 * KIB),
    ("12 KiB requests across pages", 12 * KIB, 512, 3 * MIB),
    ("4 MiB requests", 4 * MIB, 0, 16 * MIB),
];

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let disk = Function::first_of("nvme")?.disk()?;
    for (seed, (what, request, offset, bytes)) in SHAPES.into_iter().enumerate() {
        let transfer = Transfer { request, offset, ..Transfer::new(100 + seed as u64, bytes) };
        suite.test(what, || transfer.verify(&disk).map(drop));
    }
    suite.test("two threads at once", || at_once(&disk));
    Ok(())
}

/// Simultaneous transfers to different parts of the disk, with different request sizes.
fn at_once(disk: &Path) -> Result<()> {
    let transfer = |seed, start: usize, request| Transfer {
        start: start as u64,
        request,
        ..Transfer::new(seed, 4 * MIB)
    };
    let transfers = [transfer(200, 64 * MIB, MIB), transfer(201, 128 * MIB, 8 * KIB)];
    std::thread::scope(|scope| {
        let spawn = |transfer: Transfer| scope.spawn(move || transfer.verify(disk));
        let threads: Vec<_> = transfers.into_iter().map(spawn).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread died"))??;
        }
        Ok(())
    })
}
