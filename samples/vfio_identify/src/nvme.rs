// SPDX-License-Identifier: GPL-2.0
//! The part of NVMe that is needed to execute one command.
//!
//! A controller fetches commands from a queue in memory and writes completions to
//! another one. Two registers, the doorbells, hold how far each queue is filled and
//! read. Everything is little endian.

use std::sync::atomic::{Ordering, fence};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::memory::Memory;
use crate::vfio::Bar;

const CAP_HIGH: usize = 0x04;
const CC: usize = 0x14;
/// The status register.
pub const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;

const CC_ENABLE: u32 = 1;
/// Entries of 64 bytes in the submission queue, of 16 in the completion queue.
const CC_ENTRY_SIZES: u32 = 4 << 20 | 6 << 16;
const CSTS_READY: u32 = 1;
/// A fatal error of the controller.
pub const CSTS_FATAL: u32 = 2;

/// Entries of each queue: one is in use, two is the minimum.
const ENTRIES: u32 = 2;
const SUBMISSIONS: usize = 0;
const COMPLETIONS: usize = 4096;
/// Each queue has its own page.
pub const QUEUES_SIZE: usize = 8192;

/// How long the controller may take.
pub const LIMIT: Duration = Duration::from_secs(10);
/// How long to sleep between two polls.
pub const PAUSE: Duration = Duration::from_micros(200);

/// A controller that was just started.
pub struct Controller<'a> {
    bar: &'a Bar,
    queues: &'a Memory,
    completion_doorbell: usize,
}

impl<'a> Controller<'a> {
    /// Stops the controller, and starts it with empty queues at an IOVA.
    pub fn start(bar: &'a Bar, queues: &'a Memory, iova: u64) -> Result<Self> {
        let stride = 4 << (bar.read(CAP_HIGH).context("read CAP")? & 0xf);
        let controller = Self { bar, queues, completion_doorbell: DOORBELLS + stride };
        controller.write(CC, 0)?;
        controller.wait_ready(0)?;
        queues.fill(0);
        controller.write(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))?;
        controller.write_address(ASQ, iova + SUBMISSIONS as u64)?;
        controller.write_address(ACQ, iova + COMPLETIONS as u64)?;
        controller.write(CC, CC_ENTRY_SIZES | CC_ENABLE)?;
        controller.wait_ready(CSTS_READY)?;
        Ok(controller)
    }

    fn write(&self, register: usize, value: u32) -> Result<()> {
        self.bar.write(register, value).with_context(|| format!("write register {register:#x}"))
    }

    fn write_address(&self, register: usize, address: u64) -> Result<()> {
        self.write(register, address as u32)?;
        self.write(register + 4, (address >> 32) as u32)
    }

    fn wait_ready(&self, ready: u32) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.bar.read(CSTS).context("read CSTS")?;
            ensure!(status != u32::MAX, "the controller does not answer");
            if status & CSTS_READY == ready {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the controller's status stays {status:#x}");
            sleep(PAUSE);
        }
    }

    /// Asks the controller to write its identity, 4 KiB, to an IOVA. Call this only
    /// once after a start.
    pub fn submit_identify(&mut self, iova: u64) -> Result<()> {
        const IDENTIFY: u32 = 0x06;
        const CONTROLLER: u32 = 0x01;
        let mut command = [0; 64];
        command[0..4].copy_from_slice(&IDENTIFY.to_le_bytes());
        command[24..32].copy_from_slice(&iova.to_le_bytes());
        command[40..44].copy_from_slice(&CONTROLLER.to_le_bytes());
        self.queues.write(SUBMISSIONS, &command);
        // The command must be in memory before the doorbell is written.
        fence(Ordering::SeqCst);
        self.write(DOORBELLS, 1)
    }

    /// The status of the command if it is complete; 0 is success.
    pub fn completion(&self) -> Option<u16> {
        let bytes = self.queues.read(COMPLETIONS + 14, 2);
        let status = u16::from_le_bytes([bytes[0], bytes[1]]);
        // The device wrote its other data before this, so read the data after it.
        fence(Ordering::SeqCst);
        // The phase of a new queue is 1; its memory contains 0.
        (status & 1 == 1).then_some(status >> 1)
    }

    /// Like [`Controller::submit_identify`], but waits for the completion.
    pub fn identify(&mut self, iova: u64) -> Result<()> {
        self.submit_identify(iova)?;
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.completion() {
                break status;
            }
            if Instant::now() > end {
                bail!("IDENTIFY is not completed: the controller's DMA does not work");
            }
            sleep(PAUSE);
        };
        self.write(self.completion_doorbell, 1)?;
        ensure!(status == 0, "IDENTIFY: status {status:#x}");
        Ok(())
    }
}
