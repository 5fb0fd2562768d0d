// SPDX-License-Identifier: GPL-2.0
//! Minimal rtnetlink: brings an interface up or down, sets its address, moves it to a
//! network namespace.
//!
//! A netlink crate would add about fifty dependencies, and the initramfs need not have
//! busybox.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{recv, send, socket};

/// A netlink request without its header.
struct Request {
    kind: u16,
    flags: i32,
    payload: Vec<u8>,
}

impl Request {
    fn attribute(mut self, kind: u16, value: [u8; 4]) -> Self {
        // The length includes the header of 4 bytes. A value of 4 bytes needs no padding.
        self.payload.extend(8u16.to_ne_bytes());
        self.payload.extend(kind.to_ne_bytes());
        self.payload.extend(value);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        const HEADER: usize = 16;
        let length = (HEADER + self.payload.len()) as u32;
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | self.flags) as u16;
        let mut bytes = Vec::from(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number and port ID: 0, because the socket has only one request.
        bytes.extend([0; 8]);
        bytes.extend(&self.payload);
        bytes
    }

    /// Sends the request and waits for the kernel's answer.
    fn execute(&self) -> Result<()> {
        let socket = open()?;
        send(socket.as_raw_fd(), &self.bytes(), MsgFlags::empty()).context("send to netlink")?;
        let mut answer = [0; 4096];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        match error_of(&answer[..length]) {
            Some(0) => Ok(()),
            Some(code) => Err(nix::Error::from_raw(-code)).context("the kernel refused"),
            None => bail!("the reply is not an NLMSG_ERROR message"),
        }
    }
}

fn open() -> Result<OwnedFd> {
    let route = SockProtocol::NetlinkRoute;
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, route)
        .context("open a netlink socket")
}

/// The error code in an NLMSG_ERROR message, 0 for success.
fn error_of(message: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    (i32::from(kind) == libc::NLMSG_ERROR).then_some(code)
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).with_context(|| format!("no network interface {interface}"))
}

/// A request that changes a link: `struct ifinfomsg`.
fn link(interface: &str, flags: u32, change: u32) -> Result<Request> {
    // Family and device type: unspecified
    let mut payload = vec![0; 4];
    payload.extend(index(interface)?.to_ne_bytes());
    payload.extend(flags.to_ne_bytes());
    payload.extend(change.to_ne_bytes());
    Ok(Request { kind: libc::RTM_NEWLINK, flags: 0, payload })
}

/// Brings an interface up.
pub fn up(interface: &str) -> Result<()> {
    let up = libc::IFF_UP as u32;
    link(interface, up, up)?.execute().with_context(|| format!("bring {interface} up"))
}

/// Takes an interface down.
pub fn down(interface: &str) -> Result<()> {
    let up = libc::IFF_UP as u32;
    link(interface, 0, up)?.execute().with_context(|| format!("take {interface} down"))
}

/// Moves an interface to the network namespace behind `namespace`.
pub fn move_to(interface: &str, namespace: BorrowedFd) -> Result<()> {
    let fd = namespace.as_raw_fd().to_ne_bytes();
    let request = link(interface, 0, 0)?.attribute(libc::IFLA_NET_NS_FD, fd);
    request.execute().with_context(|| format!("move {interface} to another namespace"))
}

/// Gives an interface an IPv4 address in a /24 network.
pub fn address(interface: &str, address: [u8; 4]) -> Result<()> {
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index
    let mut payload = vec![libc::AF_INET as u8, 24, 0, 0];
    payload.extend(index(interface)?.to_ne_bytes());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let request = Request { kind: libc::RTM_NEWADDR, flags, payload };
    let request = request.attribute(libc::IFA_LOCAL, address).attribute(libc::IFA_ADDRESS, address);
    request.execute().with_context(|| format!("give {interface} an address"))
}
