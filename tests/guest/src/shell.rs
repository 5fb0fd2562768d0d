// SPDX-License-Identifier: GPL-2.0
//! An interactive shell on the console.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::libc;

use crate::console::say;

const BUSYBOX: &str = "/bin/busybox";

/// Runs a shell until it exits.
pub fn run() -> Result<()> {
    ensure!(Path::new(BUSYBOX).exists(), "no {BUSYBOX}: this initramfs has no shell");
    let installed = Command::new(BUSYBOX).args(["--install", "-s", "/bin"]).status()?;
    ensure!(installed.success(), "busybox --install failed");
    say!("guest: a shell; \"exit\" switches the machine off");
    let mut shell = Command::new(BUSYBOX);
    shell.arg("sh").env("PATH", "/bin").env("HOME", "/tmp").env("PS1", "guest# ");
    attach_console(&mut shell)?;
    shell.status().context("run the shell")?;
    Ok(())
}

/// Gives the child its own session with the console as the controlling terminal, for job
/// control.
fn attach_console(shell: &mut Command) -> Result<()> {
    let open = || OpenOptions::new().read(true).write(true).open(console_path());
    let console = open().context("open the console")?;
    shell.stdin(console.try_clone()?).stdout(console.try_clone()?).stderr(Stdio::from(console));
    let lead_session = || {
        nix::unistd::setsid()?;
        // SAFETY: descriptor 0 is the console, opened above.
        match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure only makes two system calls and does not allocate.
    unsafe { shell.pre_exec(lead_session) };
    Ok(())
}

/// The device behind `/dev/console`, which itself cannot be a controlling terminal.
fn console_path() -> String {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    match active.split_whitespace().next_back() {
        Some(name) => format!("/dev/{name}"),
        None => "/dev/console".to_owned(),
    }
}
