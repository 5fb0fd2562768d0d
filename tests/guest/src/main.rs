// SPDX-License-Identifier: GPL-2.0
//! The `/init` of the test guest.
//!
//! Mounts what it needs, reads on the kernel command line what to do
//! (`guest.mode=run|test|kselftest|bench|passthrough|l2|shell`), does it, prints
//! `guest: done status=N` as the last line and powers the machine off. Its first line is
//! `guest: start`. Where it is not the first process it is a program for real machines
//! (`hardware.rs`).

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
    // Whatever stands above this line is the kernel's, also what looks like
    // test results: KUnit prints those while the machine boots.
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

/// Of a process among others, that ends as they do.
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

/// Prepares the machine and runs what was asked for; says whether it was good.
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
