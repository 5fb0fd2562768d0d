// SPDX-License-Identifier: GPL-2.0
//! A guest inside this guest: who it is, what it is given, and what lies where
//! on a drive that both write to.
//!
//! This guest is *L1*. It takes NVMe drives from their driver and gives them to
//! a QEMU of its own, whose guest is *L2*: the same program in mode "l2". L2
//! prints `L2: moved` when its transfers are over and waits for a line, so that
//! L1 can look at the domain of a function that is still in use.

pub mod l1;
pub mod l2;
mod qemu;

use anyhow::{Context, Result};

use crate::block::{KIB, MIB, Transfer};
use crate::console::say;
use crate::function::Function;
use crate::sysfs;

/// What L2 prints when it has moved its data; behind it, how many pages its domains map.
const MOVED: &str = "L2: moved";

/// Each round has its own part of a drive, so that all that was written is
/// still there in the end. The first one is for the suites.
const PART: u64 = 16 * MIB as u64;

/// A drive and the part of it that a round uses.
struct Drive {
    function: Function,
    /// Who it is, whatever its address: the host gives each drive another.
    serial: String,
    round: u64,
    /// How much L2 writes at once.
    request: usize,
}

impl Drive {
    fn of(function: Function, round: u64, request: usize) -> Result<Self> {
        // Before its disk is there, nothing in sysfs is.
        function.disk()?;
        let controllers = sysfs::list(function.path().join("nvme"));
        let controller = controllers.first();
        let controller = controller.with_context(|| format!("{}: no nvme", function.address))?;
        let serial = sysfs::read(controller.join("serial"))?.trim().to_owned();
        Ok(Self { function, serial, round, request })
    }

    /// The transfer with this number of the round. Seeds are those of no other
    /// drive and no other round.
    fn transfer(&self, number: u64, bytes: usize, request: usize, offset: usize) -> Transfer {
        let serial = self.serial.bytes().fold(0, |sum: u64, byte| sum * 256 + u64::from(byte));
        Transfer {
            seed: serial * 4096 + self.round * 16 + number,
            start: (self.round + 1) * PART + number * 2 * MIB as u64,
            bytes,
            request,
            offset,
        }
    }

    /// What L1 writes before, for L2 to read.
    fn before(&self) -> Transfer {
        self.transfer(0, MIB, 128 * KIB, 0)
    }

    /// What L2 writes: in large requests, and in small ones out of the middle
    /// of a page.
    fn by_l2(&self) -> [Transfer; 2] {
        [self.transfer(1, 2 * MIB, self.request, 0), self.transfer(2, 64 * KIB, 4 * KIB, 512)]
    }

    /// What L1 writes when it has the drive back.
    fn after(&self) -> Transfer {
        self.transfer(3, MIB, MIB, 0)
    }

    /// Prints what the file on the host must hold.
    fn announce(&self, transfer: &Transfer, sum: u64) {
        let (serial, start, bytes) = (&self.serial, transfer.start, transfer.bytes);
        say!("bytes: drive {serial} start {start} length {bytes} sum {sum:016x}");
    }
}
