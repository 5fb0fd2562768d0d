// SPDX-License-Identifier: GPL-2.0
//! This program as an ordinary process on a running system: runs suites on functions
//! that are not in use, and describes the machine.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::{self, Function};
use crate::{kmsg, module, shown, suites, sysfs};

const USAGE: &str = "guest FUNCTION... [guest.suite=SUITE,...]\n\
    Runs tests on NVMe functions, named as 0001:00:00.0, whose data is lost.";

/// The default suites, none of which assumes an emulator
pub const SUITES: &str = "nvme,counters,observability,api,dma,remap,attach,transitions,refuse,\
     flush,fallback,stress,hotplug";

/// Files that describe the machine, and how many of their first lines are shown
const FILES: [(&str, usize); 4] =
    [("/proc/version", 1), ("/proc/cmdline", 1), ("/proc/cpuinfo", 8), ("/proc/sysinfo", 60)];

/// Runs the suites. Returns whether all of them passed.
pub fn run(arguments: &[String]) -> Result<bool> {
    let (args, addresses): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|argument| argument.contains('='));
    if addresses.is_empty() {
        bail!("{USAGE}");
    }
    for address in &addresses {
        spare(&Function { address: (*address).clone() })?;
    }
    function::restrict_to(addresses.into_iter().cloned().collect());
    module::look_beside_program()?;
    for (path, lines) in FILES {
        for line in sysfs::read(path).unwrap_or_default().lines().take(lines) {
            say!("# {path}: {line}");
        }
    }
    for line in kmsg::driver_lines(&kmsg::messages()?) {
        say!("# log: {line}");
    }
    for function in Function::all() {
        describe(&function)?;
    }
    let mut text =
        format!("{} guest.mode=test guest.suite={SUITES}", sysfs::read("/proc/cmdline")?);
    for arg in args {
        text += &format!(" {arg}");
    }
    suites::run(&Cmdline::parse(&text)?)
}

/// Fails if the system uses the drive.
fn spare(function: &Function) -> Result<()> {
    let address = &function.address;
    let driver = function.driver();
    ensure!(driver.as_deref() == Some("nvme"), "{address}: the driver is {driver:?}, not nvme");
    let disk = function.disk()?;
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(OFlag::O_EXCL.bits());
    options.open(&disk).map(drop).with_context(|| format!("{address}: {} in use", disk.display()))
}

fn describe(function: &Function) -> Result<()> {
    let address = &function.address;
    for file in ["vendor", "device", "class", "pchid", "pfgid", "pft", "port", "uid", "vfn"] {
        let path = function.path().join(file);
        say!("# {address}: {file} {}", sysfs::read(path).unwrap_or_default());
    }
    say!("# {address}: group type {}", function.group_type()?);
    for line in function.reserved_lines()? {
        say!("# {address}: {line}");
    }
    if shown::is_there() {
        for line in shown::function(function)?.lines() {
            say!("# {address}: {line}");
        }
    }
    Ok(())
}
