// SPDX-License-Identifier: GPL-2.0
//! A user-space driver for an igb VF through VFIO: sends and receives raw Ethernet
//! packets with buffers that it maps itself. Names are from the 82576 datasheet.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::block::{Buffer, KIB};
use crate::function::Function;
use crate::iommufd::{Space, region};
use crate::sysfs;

const BAR: u32 = 0;
const CONFIG: u32 = 7;
/// Offset of the command register in config space, and its bus master bit
const COMMAND: (u64, u16) = (4, 4);

const V2PMAILBOX: u64 = 0xc40;
const VMBMEM: u64 = 0x800;
const RXQ: u64 = 0x2800;
const TXQ: u64 = 0x3800;
// Registers of a queue
const BAL: u64 = 0;
const BAH: u64 = 4;
const LEN: u64 = 8;
const SRRCTL: u64 = 0xc;
const TAIL: u64 = 0x18;
const DCTL: u64 = 0x28;

const MAILBOX_REQ: u32 = 1;
const MAILBOX_ACK: u32 = 2;
const MAILBOX_VFU: u32 = 4;
const MAILBOX_PFSTS: u32 = 0x10;
const VF_RESET: u32 = 1;
const QUEUE_ENABLE: u32 = 1 << 25;
/// Advanced descriptors with one buffer of 2 KiB
const ONE_BUFFER: u32 = 1 << 25 | 2;
/// An advanced data descriptor: end of packet, report status, insert the FCS
const DATA: u32 = 0x2b30_0000;
const DONE: u32 = 1;
/// Descriptors in a ring, the minimum
const RING: usize = 8;
const DESCRIPTOR: usize = 16;

const PAGE: usize = 4 * KIB;
const PATIENCE: Duration = Duration::from_secs(20);

/// The VF, with one page for both rings and one for the packets of each direction.
pub struct Vf {
    device: File,
    registers: u64,
    space: Space,
    rings: Buffer,
    to_send: Buffer,
    received: Buffer,
    iova: u64,
    sent: usize,
}

impl Vf {
    /// Starts a function that is bound to vfio-pci. The PF's driver has to be up because
    /// it enables the queues.
    pub fn start(function: &Function) -> Result<Self> {
        let space = Space::new()?;
        let device = space.attach(function)?;
        let iova = space.ranges()?.first().context("there are no usable IOVAs")?.0;
        let page = || Buffer::new(PAGE, 0);
        let registers = region(&device, BAR)?;
        let (rings, to_send, received) = (page(), page(), page());
        let vf = Self { device, registers, space, rings, to_send, received, iova, sent: 0 };
        for (page, iova) in [&vf.rings, &vf.to_send, &vf.received].into_iter().zip(vf.iovas()) {
            vf.space.map(page, iova)?;
        }
        let config = region(&vf.device, CONFIG)?;
        vf.device.write_all_at(&COMMAND.1.to_le_bytes(), config + COMMAND.0)?;
        vf.ask_for_queues()?;
        vf.start_queue(TXQ, 0)?;
        vf.set(RXQ + SRRCTL, ONE_BUFFER)?;
        vf.start_queue(RXQ, RING * DESCRIPTOR)?;
        Ok(vf)
    }

    fn iovas(&self) -> [u64; 3] {
        [0, 1, 2].map(|index| self.iova + index * PAGE as u64)
    }

    fn get(&self, register: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.device.read_exact_at(&mut bytes, self.registers + register)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn set(&self, register: u64, value: u32) -> Result<()> {
        let at = self.registers + register;
        self.device.write_all_at(&value.to_le_bytes(), at).context("write a register")
    }

    /// The PF's driver enables the queues of a VF that reports a reset.
    fn ask_for_queues(&self) -> Result<()> {
        let mailbox = |bit| self.get(V2PMAILBOX).is_ok_and(|value| value & bit != 0).then_some(());
        sysfs::wait_for("the mailbox", PATIENCE, || {
            self.set(V2PMAILBOX, MAILBOX_VFU).ok()?;
            mailbox(MAILBOX_VFU)
        })?;
        self.set(VMBMEM, VF_RESET)?;
        self.set(V2PMAILBOX, MAILBOX_REQ)?;
        sysfs::wait_for("the PF's answer", PATIENCE, || mailbox(MAILBOX_PFSTS))?;
        self.set(V2PMAILBOX, MAILBOX_ACK)
    }

    fn start_queue(&self, queue: u64, offset: usize) -> Result<()> {
        let iova = self.iova + offset as u64;
        self.set(queue + BAL, iova as u32)?;
        self.set(queue + BAH, (iova >> 32) as u32)?;
        self.set(queue + LEN, (RING * DESCRIPTOR) as u32)?;
        self.set(queue + DCTL, QUEUE_ENABLE)
    }

    fn descriptor(&mut self, at: usize, address: u64, low: u32, high: u32) {
        let descriptor = &mut self.rings[at..at + DESCRIPTOR];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&low.to_le_bytes());
        descriptor[12..].copy_from_slice(&high.to_le_bytes());
    }

    /// What the device wrote back to the second half of a descriptor.
    fn written(&self, at: usize) -> (u32, u32) {
        let half = |at: usize| {
            let bytes = &self.rings[at..at + 4];
            // SAFETY: inside the ring. The device may write it at any time, so the read
            // is volatile.
            u32::from_le(unsafe { bytes.as_ptr().cast::<u32>().read_volatile() })
        };
        (half(at + 8), half(at + 12))
    }

    /// Sends a packet and waits until the device reports it as sent.
    pub fn send(&mut self, packet: &[u8]) -> Result<()> {
        let at = self.put(packet)?;
        let done = || (self.written(at).1 & DONE != 0).then_some(());
        sysfs::wait_for("a packet to be sent", PATIENCE, done)
    }

    /// Queues a packet without waiting. Returns the offset of its descriptor.
    pub fn put(&mut self, packet: &[u8]) -> Result<usize> {
        self.to_send[..packet.len()].copy_from_slice(packet);
        let length = packet.len() as u32;
        let at = self.sent % RING * DESCRIPTOR;
        self.descriptor(at, self.iovas()[1], DATA | length, length << 14);
        self.sent += 1;
        self.set(TXQ + TAIL, (self.sent % RING) as u32)?;
        Ok(at)
    }

    /// Receives a packet, and calls `meanwhile` repeatedly until one arrives.
    pub fn receive(&mut self, mut meanwhile: impl FnMut() -> Result<()>) -> Result<Vec<u8>> {
        let at = RING * DESCRIPTOR;
        self.descriptor(at, self.iovas()[2], 0, 0);
        self.set(RXQ + TAIL, 1)?;
        let length = sysfs::wait_for("a packet to be received", PATIENCE, || {
            meanwhile().ok()?;
            std::thread::sleep(Duration::from_millis(50));
            let (status, length) = self.written(at);
            (status & DONE != 0).then_some((length & 0xffff) as usize)
        })?;
        Ok(self.received[..length].to_vec())
    }

    /// Unmaps the page with the packets to send.
    pub fn unmap_packets(&self) -> Result<()> {
        self.space.unmap(self.iovas()[1], PAGE as u64)
    }
}
