// SPDX-License-Identifier: GPL-2.0
//! Background I/O for tests.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::OFlag;

use crate::block::{Buffer, KIB, MIB, Transfer};
use crate::function::Function;
use crate::{netlink, nic};

const ADDRESS: [u8; 4] = [10, 98, 0, 1];
const BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 255);
const PORT: u16 = 7001;
/// Packets per burst. Bursts keep packets in flight, and the gaps between them leave time
/// for other work on an emulated machine.
const BURST: u32 = 16;
const GAP: Duration = Duration::from_millis(2);

/// The disk of the last drive, which is not removed by tests.
pub fn other_disk() -> Result<PathBuf> {
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() > 1, "the machine has one drive, not two");
    drives[drives.len() - 1].disk()
}

/// Repeats verified transfers while `work` runs.
pub fn beside_transfers<T>(disk: &Path, seed: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let transfer = |round| Transfer::new(seed + round, MIB).verify(disk).map(drop);
    beside(transfer, work)
}

/// Repeats `again` while `work` runs, with the number of the round.
pub fn beside<T>(
    again: impl Fn(u64) -> Result<()> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) {
                again(round).with_context(|| format!("background work, round {round}"))?;
                round += 1;
            }
            Ok::<_, anyhow::Error>(round)
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        let rounds = other.join().map_err(|_| anyhow!("the other thread died"))??;
        ensure!(rounds > 0, "no round of background work was completed");
        result
    })
}

/// Reads a disk until it is removed or `is_over` is set; ignores errors.
pub fn read_to_its_end(disk: &Path, is_over: &AtomicBool) {
    let open = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(disk);
    let Ok(file) = open else { return };
    let mut buffer = Buffer::new(256 * KIB, 0);
    let mut at = 0;
    while !is_over.load(Ordering::Relaxed) && file.read_exact_at(&mut buffer, at).is_ok() {
        at = (at + 256 * KIB as u64) % (64 * MIB as u64);
    }
}

/// Brings both cards up and broadcasts packets on one of them while `work` runs. Either
/// card may be removed and come back.
pub fn beside_packets<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // A card may be missing temporarily.
                if send_for_a_while(&is_over).is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

fn send_for_a_while(is_over: &AtomicBool) -> Result<()> {
    for function in nic::functions()? {
        let interface = function.find_interface().context("no interface yet")?;
        let _ = netlink::address(&interface, ADDRESS);
        netlink::up(&interface)?;
    }
    let socket = UdpSocket::bind((Ipv4Addr::from(ADDRESS), PORT))?;
    socket.set_broadcast(true)?;
    let packet = [0x5a; 1400];
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            socket.send_to(&packet, (BROADCAST, PORT))?;
        }
        std::thread::sleep(GAP);
    }
    Ok(())
}
