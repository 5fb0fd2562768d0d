// SPDX-License-Identifier: GPL-2.0
//! Runs what real machines run (`hardware.rs`) in another process, on the second drive
//! while the first one is in use.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::Function;
use crate::ktap::Suite;

/// Opens a drive exclusively, as a file system would.
fn hold(disk: &Path) -> Result<File> {
    let flags = (OFlag::O_EXCL | OFlag::O_DIRECT).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(disk);
    file.with_context(|| format!("hold {}", disk.display()))
}

/// Runs the program on one function. Returns whether it passed, and its output.
fn program(function: &Function) -> Result<(bool, String)> {
    let output = Command::new("/proc/self/exe").arg(&function.address).output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let drives = Function::of_driver("nvme");
    let [used, spare] = &drives[..] else { bail!("{} drives, expected 2", drives.len()) };
    suite.test("a drive that is used is refused", || {
        let held = hold(&spare.disk()?)?;
        let (good, text) = program(spare)?;
        ensure!(!good && text.contains("in use") && !text.contains("KTAP"), "{text}");
        drop(held);
        Ok(())
    });
    let held = hold(&used.disk()?)?;
    suite.test("the suites pass on a spare drive", || {
        let (good, text) = program(spare)?;
        for line in text.lines() {
            say!("# {line}");
        }
        let failed: Vec<_> = text.lines().filter(|line| line.starts_with("not ok ")).collect();
        let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
        ensure!(good && failed.is_empty() && passed > 100, "{passed} passed, failed: {failed:?}");
        Ok(())
    });
    suite.test("the drive that is used is left alone", || {
        let mut page = crate::block::Buffer::new(4096, 0);
        held.read_exact_at(&mut page, 0).context("read from the drive in use")
    });
    Ok(())
}
