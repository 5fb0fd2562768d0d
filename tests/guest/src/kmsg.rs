// SPDX-License-Identifier: GPL-2.0
//! The kernel log.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

use crate::function::COME_UP;
use crate::sysfs;

/// What a healthy kernel never says. "Call Trace" and "Call trace" both exist.
const BAD: [&str; 16] = [
    "WARNING:",
    "BUG:",
    "BUG ",
    "Oops",
    "Call Trace",
    "Call trace",
    "Unable to handle",
    "INFO: rcu",
    "INFO: task",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU",
    "sleeping function called",
    "KASAN:",
    "rust_kernel: panicked",
];

/// What KCSAN says of a race, before the names of the functions.
const RACE: &str = "KCSAN: data-race in";

/// All messages in the log, without their prefixes.
pub fn messages() -> Result<Vec<String>> {
    read(&mut open()?)
}

/// Does something, and returns the messages that came meanwhile.
pub fn during<T>(action: impl FnOnce() -> T) -> Result<(T, Vec<String>)> {
    let mut tail = Tail::open()?;
    let result = action();
    Ok((result, tail.read()?))
}

/// Does something, and waits until a message says so.
pub fn wait_for(text: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut tail = Tail::open()?;
    action()?;
    sysfs::wait_for(&format!("message {text:?}"), COME_UP, || {
        let messages = tail.read().unwrap_or_default();
        messages.iter().any(|message| message.contains(text)).then_some(())
    })
}

/// What the kernel says from now on.
pub struct Tail(File);

impl Tail {
    /// Starts behind the last message.
    pub fn open() -> Result<Self> {
        let mut file = open()?;
        file.seek(SeekFrom::End(0)).context("go to the end of /dev/kmsg")?;
        Ok(Self(file))
    }

    /// The messages since then, or since they were read last.
    pub fn read(&mut self) -> Result<Vec<String>> {
        read(&mut self.0)
    }
}

fn open() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open("/dev/kmsg")
        .context("open /dev/kmsg")
}

/// The messages from here to the end.
fn read(file: &mut File) -> Result<Vec<String>> {
    let mut messages = Vec::new();
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => messages.extend(text(&record[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The oldest record was overwritten while it was read: go on.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(error) => return Err(error).context("read /dev/kmsg"),
        }
    }
    Ok(messages)
}

/// A record is "priority,sequence,time,flags;text" and lines of properties.
fn text(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (_, text) = record.split_once(';')?;
    Some(text.lines().next().unwrap_or_default().to_owned())
}

/// The messages that say that something is broken. Of races those of IOMMUs and zPCI
/// functions: the rest of the kernel has some that it knows of.
pub fn bad(messages: &[String]) -> Vec<&String> {
    let has = |message: &str, marks: &[&str]| marks.iter().any(|mark| message.contains(mark));
    let is_others = |message: &str| message.contains(RACE) && !has(message, &["iommu", "zpci"]);
    let is_bad = |message: &&String| has(message, &BAD) && !is_others(message);
    messages.iter().filter(is_bad).collect()
}

/// What the driver says of itself.
pub fn driver_lines(messages: &[String]) -> Vec<&String> {
    messages.iter().filter(|m| m.starts_with("s390_iommu:")).collect()
}
