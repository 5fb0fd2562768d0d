// SPDX-License-Identifier: GPL-2.0
//! PCI passthrough to a nested guest, and the layout of a drive that both guests write.
//!
//! This guest is *L1*. It unbinds NVMe drives from their driver and passes them to its
//! own QEMU, whose guest is *L2*: the same program in mode "l2". After its transfers L2
//! prints `L2: moved` and waits for a line, so that L1 can check the domain of a function
//! that is still in use.

pub mod l1;
pub mod l2;
mod qemu;

use anyhow::{Context, Result};

use crate::block::{KIB, MIB, Transfer};
use crate::console::say;
use crate::function::Function;
use crate::sysfs;

/// What L2 prints after its transfers, followed by the number of mapped pages
const MOVED: &str = "L2: moved";

/// Size of a part of a drive. Each round writes its own part, so nothing is overwritten.
/// The suites use the first part.
const PART: u64 = 16 * MIB as u64;

/// A drive, and the round that determines its part.
struct Drive {
    function: Function,
    /// Unique for each drive, so it identifies the drive in both guests.
    serial: String,
    round: u64,
    /// The size of L2's requests.
    request: usize,
}

impl Drive {
    fn of(function: Function, round: u64, request: usize) -> Result<Self> {
        // The controller is in sysfs only after the disk has come up.
        function.disk()?;
        let controllers = sysfs::list(function.path().join("nvme"));
        let controller = controllers.first();
        let controller = controller.with_context(|| format!("{}: no nvme", function.address))?;
        let serial = sysfs::read(controller.join("serial"))?.trim().to_owned();
        Ok(Self { function, serial, round, request })
    }

    /// The transfer with this number in the round. Its seed is unique across drives and
    /// rounds.
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

    /// What L1 writes before it boots L2, which reads it.
    fn before(&self) -> Transfer {
        self.transfer(0, MIB, 128 * KIB, 0)
    }

    /// What L2 writes: large requests, and small ones that start in the middle of a page.
    fn by_l2(&self) -> [Transfer; 2] {
        [self.transfer(1, 2 * MIB, self.request, 0), self.transfer(2, 64 * KIB, 4 * KIB, 512)]
    }

    /// What L1 writes after it has taken the drive back.
    fn after(&self) -> Transfer {
        self.transfer(3, MIB, MIB, 0)
    }

    /// Prints what the drive's file on the host must contain.
    fn announce(&self, transfer: &Transfer, sum: u64) {
        let (serial, start, bytes) = (&self.serial, transfer.start, transfer.bytes);
        say!("bytes: drive {serial} start {start} length {bytes} sum {sum:016x}");
    }
}
