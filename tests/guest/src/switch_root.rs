// SPDX-License-Identifier: GPL-2.0
//! Switches from the initramfs to a root file system on a drive, which can be mounted
//! because the driver is loaded. This program is then started again from the drive.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::console::say;
use crate::function::Function;

/// The argument of the program when it runs from the drive
const MARK: &str = "on-drive";
const ROOT: &str = "/mnt";
/// Mounts that move to the new root
const MOUNTS: [&str; 4] = ["/proc", "/sys", "/dev", "/tmp"];

/// Whether the program runs from the drive.
pub fn is_done() -> bool {
    std::env::args().any(|argument| argument == MARK)
}

/// Switches to the root on the drive of a PCI driver's first function. Returns only with
/// an error.
pub fn go(driver: &str) -> Result<Infallible> {
    let disk = Function::first_of(driver)?.disk()?;
    let none = None::<&str>;
    mount(Some(&disk), ROOT, Some("ext2"), MsFlags::empty(), none)
        .with_context(|| format!("mount {}", disk.display()))?;
    for path in MOUNTS {
        let target = format!("{ROOT}{path}");
        mount(Some(path), target.as_str(), none, MsFlags::MS_MOVE, none)
            .with_context(|| format!("move {path}"))?;
    }
    say!("guest: {} is the root from here on", disk.display());
    let error = Command::new("/bin/busybox")
        .args(["switch_root", ROOT, "/sbin/init", MARK])
        .env_clear()
        .exec();
    Err(error).context("start switch_root")
}
