// SPDX-License-Identifier: GPL-2.0
//! Data that moves while something else happens.

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
/// Always something in flight, and time for others on an emulated machine.
const BURST: u32 = 16;
const GAP: Duration = Duration::from_millis(2);

/// The disk of the machine's last drive, which stays when the first one goes.
pub fn other_disk() -> Result<PathBuf> {
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() > 1, "the machine has one drive, not two");
    drives[drives.len() - 1].disk()
}

/// Writes and reads back while something is done, again and again: every byte must
/// be right, whatever is done.
pub fn beside_transfers<T>(disk: &Path, seed: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let transfer = |round| Transfer::new(seed + round, MIB).verify(disk).map(drop);
    beside(transfer, work)
}

/// The same, for anything that is repeated and given the number of its round.
pub fn beside<T>(
    again: impl Fn(u64) -> Result<()> + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) {
                again(round).with_context(|| format!("beside, round {round}"))?;
                round += 1;
            }
            Ok::<_, anyhow::Error>(round)
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        let rounds = other.join().map_err(|_| anyhow!("the other thread died"))??;
        ensure!(rounds > 0, "nothing was done beside");
        result
    })
}

/// Reads a disk until it is gone, and does not mind its end.
pub fn read_to_its_end(disk: &Path, is_over: &AtomicBool) {
    let open = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(disk);
    let Ok(file) = open else { return };
    let mut buffer = Buffer::new(256 * KIB, 0);
    let mut at = 0;
    while !is_over.load(Ordering::Relaxed) && file.read_exact_at(&mut buffer, at).is_ok() {
        at = (at + 256 * KIB as u64) % (64 * MIB as u64);
    }
}

/// Brings both cards up and has one send to whoever listens, while something is
/// done; either card may go and come.
pub fn beside_packets<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // A card that is not there now is there later.
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
