// SPDX-License-Identifier: GPL-2.0
//! Virtual functions of a network card: created, used for DMA by their driver and by this
//! program through VFIO, removed while in use, and created again.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType};
use nix::sys::socket::{recv, send, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::block::MIB;
use crate::cmdline::Cmdline;
use crate::counters::Counters;
use crate::function::{COME_UP, Function};
use crate::igbvf::Vf;
use crate::kmsg;
use crate::ktap::Suite;
use crate::module;
use crate::netlink;
use crate::nic::{self, Direction, Pair};
use crate::pattern::Stream;
use crate::sysfs;

use super::hotplug;

const VFS: usize = 2;
/// The fewest pages that a transfer maps: the driver maps buffers once and reuses them
const MAPPED: u64 = 100;
/// The EtherType for local experiments
const ETHERTYPE: u16 = 0x88b5;
const PACKET: usize = 1024;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let bytes = cmdline.transfer(2 * MIB)?;
    let transfer = |vf: &Function, seed| transfer(vf, seed, bytes);
    let [card, far] = nic::functions()?;
    // A module, so that it does not bind VFs that are meant for vfio-pci.
    module::load("igbvf", "")?;
    // Keep the card up: whenever it is reset or goes down, the VFs lose their queues,
    // which their driver notices only after 10 seconds.
    netlink::up(&card.interface()?)?;
    // The card must not reply to ARP requests for a VF's address, or it would receive the
    // packets instead.
    sysfs::write("/proc/sys/net/ipv4/conf/all/arp_ignore", "1")?;
    for (round, seed) in ["made", "made again"].into_iter().zip([840, 860]) {
        let mut vfs = Vec::new();
        suite.test(&format!("VFs are {round}, in groups of their own"), || {
            vfs = make(&card)?;
            Ok(())
        });
        for (vf, seed) in vfs.iter().zip(seed..) {
            suite.test(&format!("DMA by {}", vf.address), || transfer(vf, seed));
        }
        let [first, second] = &vfs[..] else { continue };
        suite.test(&format!("{} over VFIO: DMA, and none after an unmap", second.address), || {
            second.hand_to("vfio-pci")?;
            by_vfio(second, &far.interface()?, seed + 5)
        });
        suite.test(&format!("DMA by {} goes on", first.address), || transfer(first, seed + 6));
        suite.test(&format!("the slot of {} off and on", first.address), || {
            hotplug::slot(first)?;
            transfer(first, seed + 7)
        });
        suite.test("VFs are removed", || remove(&card, &vfs));
    }
    netlink::down(&card.interface()?)?;
    suite.test("the card works afterwards", || {
        Pair::connect()?.transfer(880, bytes, Direction::ToFar).map(drop)
    });
    Ok(())
}

fn make(card: &Function) -> Result<Vec<Function>> {
    sysfs::write(card.path().join("sriov_numvfs"), &VFS.to_string())?;
    let find = |i| {
        let link = card.path().join(format!("virtfn{i}"));
        let address = sysfs::wait_for("a VF", COME_UP, || sysfs::link_name(&link))?;
        let vf = Function { address };
        let driver = sysfs::wait_for("the VF's driver", COME_UP, || vf.driver())?;
        ensure!(driver == "igbvf", "{}: the driver is {driver}", vf.address);
        // Wait until the interface is named, or it takes the name of a card that is in
        // another namespace.
        vf.interface()?;
        Ok(vf)
    };
    let vfs: Vec<_> = (0..VFS).map(find).collect::<Result<_>>()?;
    for vf in &vfs {
        let group = vf.group().context("a VF has no group")?;
        let members = sysfs::list(vf.path().join("iommu_group/devices")).len();
        ensure!(members == 1, "group {group} of {} has {members} members", vf.address);
        ensure!(vf.reserved()? == card.reserved()?, "{}: the window differs", vf.address);
    }
    Ok(vfs)
}

fn transfer(vf: &Function, seed: u64, bytes: usize) -> Result<()> {
    let before = Counters::read(vf)?;
    let pair = Pair::connect_from(vf)?;
    pair.transfer(seed, bytes, Direction::ToFar)?;
    pair.transfer(seed + 10, bytes, Direction::FromFar)?;
    let moved = Counters::read(vf)? - before;
    ensure!(moved.mapped >= MAPPED, "{}: {moved}", vf.address);
    Ok(())
}

/// Sends and receives packets in mapped memory, then tries to send one from unmapped
/// memory.
fn by_vfio(function: &Function, interface: &str, seed: u64) -> Result<()> {
    let wire = Wire::on(interface)?;
    let mut vf = Vf::start(function)?;
    let sent = packet(seed);
    let received = sysfs::wait_for("a packet of the VF's", COME_UP, || {
        vf.send(&sent).ok()?;
        wire.receive()
    })?;
    ensure!(received == sent, "the VF sent wrong data");
    let sent = packet(seed + 100);
    let received = vf.receive(|| wire.send(&sent))?;
    ensure!(received.starts_with(&sent), "the VF received wrong data");
    vf.unmap_packets()?;
    while wire.receive().is_some() {}
    let unmapped = packet(seed + 200);
    kmsg::wait_for("reports an error for PCI function", || vf.put(&unmapped).map(drop))?;
    ensure!(wire.receive().as_ref() != Some(&unmapped), "the VF has read unmapped memory");
    Ok(())
}

/// A broadcast packet from a locally administered address.
fn packet(seed: u64) -> Vec<u8> {
    let mut packet = vec![0; PACKET];
    packet[..6].fill(0xff);
    packet[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    packet[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    Stream::new(seed).fill(&mut packet[16..]);
    packet
}

fn remove(card: &Function, vfs: &[Function]) -> Result<()> {
    sysfs::write(card.path().join("sriov_numvfs"), "0")?;
    for vf in vfs {
        ensure!(!vf.path().exists(), "{} is still there", vf.address);
    }
    Ok(())
}

/// A raw packet socket on another card.
struct Wire {
    socket: OwnedFd,
    interface: String,
}

impl Wire {
    fn on(interface: &str) -> Result<Self> {
        netlink::up(interface)?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        let mut address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETHERTYPE.to_be(),
            sll_ifindex: if_nametoindex(interface)?.cast_signed(),
            // SAFETY: all fields are integers, for which zero is valid.
            ..unsafe { std::mem::zeroed() }
        };
        let length = size_of_val(&address) as u32;
        // SAFETY: the address is of the socket's family, and the length is its size.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw mut address).cast(), length) };
        Errno::result(result).context("bind to a card")?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(200))?;
        Ok(Self { socket, interface: interface.to_owned() })
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), packet, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives a packet with our EtherType, if one arrives before the timeout.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 2 * PACKET];
        let length = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()).ok()?;
        packet.truncate(length);
        Some(packet)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Best effort: a card that stays up does not disturb later tests.
        let _ = netlink::down(&self.interface);
    }
}
