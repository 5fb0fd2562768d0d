// SPDX-License-Identifier: GPL-2.0
//! The kernel log.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

use crate::function::COME_UP;
use crate::sysfs;

/// What a healthy kernel never prints. Both "Call Trace" and "Call trace" exist.
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

/// How KCSAN's report of a race begins, before the names of the functions
const RACE: &str = "KCSAN: data-race in";

/// All messages in the log, without their prefixes
pub fn messages() -> Result<Vec<String>> {
    read(&mut open()?)
}

/// Runs `action`. Returns its result and the messages that were printed meanwhile.
pub fn during<T>(action: impl FnOnce() -> T) -> Result<(T, Vec<String>)> {
    let mut tail = Tail::open()?;
    let result = action();
    Ok((result, tail.read()?))
}

/// Runs `action`, then waits for a message that contains `text`.
pub fn wait_for(text: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut tail = Tail::open()?;
    action()?;
    sysfs::wait_for(&format!("message {text:?}"), COME_UP, || {
        let messages = tail.read().unwrap_or_default();
        messages.iter().any(|message| message.contains(text)).then_some(())
    })
}

/// Reads the messages that the kernel prints from now on.
pub struct Tail(File);

impl Tail {
    /// Starts after the last message.
    pub fn open() -> Result<Self> {
        let mut file = open()?;
        file.seek(SeekFrom::End(0)).context("seek to the end of /dev/kmsg")?;
        Ok(Self(file))
    }

    /// The messages since `open` or since the previous `read`.
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

/// Reads the messages from the current position to the end.
fn read(file: &mut File) -> Result<Vec<String>> {
    let mut messages = Vec::new();
    let mut record = [0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => messages.extend(text(&record[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The oldest record was overwritten while it was read: continue.
            Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
            Err(error) => return Err(error).context("read /dev/kmsg"),
        }
    }
    Ok(messages)
}

/// The text of a record: "priority,sequence,time,flags;text", then lines of properties.
fn text(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (_, text) = record.split_once(';')?;
    Some(text.lines().next().unwrap_or_default().to_owned())
}

/// How reports begin and end: a warning's, KASAN's, and lockdep's
const BEGINS: [&str; 3] = ["[ cut here ]", "BUG: KASAN:", "WARNING: possible circular locking"];
const ENDS: [&str; 3] = ["[ end trace", "==========", "INFO: lockdep is turned off"];
/// What is in the reports of known bugs of Linux (`Documentation/torture.rst`). igb frees a
/// packet before it unmaps it, and the check of freed pages (`iommu.debug_pagealloc=`)
/// notices. An interrupt of a function may be handled while its handler is freed. VFs are
/// removed in the opposite order of locks.
const KNOWN: [[&str; 2]; 3] = [
    ["__iommu_debug_check_unmapped", "igb_poll"],
    ["use-after-free in __handle_irq_event_percpu", "zpci_floating_irq_handler"],
    ["(pci_rescan_remove_lock)", "pcibios_release_device"],
];

/// The messages that report a bug. Races count only if the report names a function of
/// the IOMMU or zPCI code, because the rest of the kernel has known ones.
pub fn bad(messages: &[String]) -> Vec<&String> {
    let has = |message: &str, marks: &[&str]| marks.iter().any(|mark| message.contains(mark));
    let is_others = |message: &str| message.contains(RACE) && !has(message, &["iommu", "zpci"]);
    let is_bad = |message: &&String| has(message, &BAD) && !is_others(message);
    let is_known = |report: &[String]| {
        let is_in = |mark: &&str| report.iter().any(|message| message.contains(*mark));
        KNOWN.iter().any(|marks| marks.iter().all(is_in))
    };
    let mut bad = Vec::new();
    for part in messages.split_inclusive(|message| has(message, &ENDS)) {
        let start = part.iter().position(|message| has(message, &BEGINS));
        let (before, report) = part.split_at(start.unwrap_or(part.len()));
        bad.extend(before.iter().filter(is_bad));
        if !is_known(report) {
            bad.extend(report.iter().filter(is_bad));
        }
    }
    bad
}

/// The driver's messages.
pub fn driver_lines(messages: &[String]) -> Vec<&String> {
    messages.iter().filter(|m| m.starts_with("s390_iommu:")).collect()
}
