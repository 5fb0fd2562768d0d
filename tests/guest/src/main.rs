// SPDX-License-Identifier: GPL-2.0
//! The `/init` of the test guest.
//!
//! Mounts file systems, prints `guest: start`, runs the mode that the kernel command line
//! selects (`guest.mode=run|test|kselftest|bench|passthrough|l2|shell`), prints
//! `guest: done status=N` as the last line, and powers the machine off. Started as an
//! ordinary process, it runs suites on a real machine instead (`hardware.rs`).

mod bench;
mod block;
mod cmdline;
mod console;
mod counters;
mod function;
mod hardware;
mod host;
mod igbvf;
mod iommufd;
mod kmsg;
mod kselftest;
mod ktap;
mod module;
mod netlink;
mod nic;
mod passthrough;
mod pattern;
mod run;
mod setup;
mod shell;
mod shown;
mod state;
mod suites;
mod switch_root;
mod sysfs;
mod throughput;
mod torture;
mod tracing;

use cmdline::{Cmdline, Mode};
use console::say;

fn main() {
    if std::process::id() != 1 {
        return on_running_system();
    }
    // Everything before this line is from the kernel, even what looks like test results:
    // KUnit prints some during boot.
    say!("guest: start");
    let status = match boot() {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            say!("guest: {error:#}");
            2
        }
    };
    say!("guest: done status={status}");
    setup::power_off();
}

/// Runs as an ordinary process, which exits with a status.
fn on_running_system() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match hardware::run(&arguments) {
        Ok(true) => (),
        Ok(false) => std::process::exit(1),
        Err(error) => {
            say!("guest: {error:#}");
            std::process::exit(2);
        }
    }
}

/// Prepares the machine and runs the mode. Returns whether it passed.
fn boot() -> anyhow::Result<bool> {
    let is_on_drive = switch_root::is_done();
    if !is_on_drive {
        setup::mount_all()?;
    }
    let cmdline = Cmdline::read()?;
    if cmdline.wants_driver() {
        setup::load_driver()?;
        setup::wait_for_drivers();
    }
    if let (Some(driver), false) = (cmdline.value("guest.root"), is_on_drive) {
        switch_root::go(driver)?;
    }
    match cmdline.mode {
        Mode::Run => run::run(&cmdline),
        Mode::Test => suites::run(&cmdline),
        Mode::Kselftest => kselftest::run(&cmdline),
        Mode::Bench => bench::run(&cmdline),
        Mode::Passthrough => passthrough::l1::run(&cmdline),
        Mode::L2 => passthrough::l2::run(&cmdline),
        Mode::Shell => shell::run().map(|()| true),
    }
}
