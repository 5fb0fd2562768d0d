// SPDX-License-Identifier: GPL-2.0
//! Nothing is left of what was done: no table, no object that nobody knows.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::console::say;
use crate::function::{COME_UP, Function};
use crate::ktap::{Suite, skip};
use crate::{state, sysfs};

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
/// It names no object that is younger.
const AGE: Duration = Duration::from_secs(6);

/// The last of a boot's suites, if `guest.leaks=` asks for it: it ends without functions.
pub fn run(suite: &mut Suite) {
    suite.test("all functions go", || {
        for function in Function::all() {
            sysfs::write(function.slot()?, "0")?;
        }
        ensure!(Function::all().is_empty(), "all slots are off and there are functions");
        Ok(())
    });
    suite.test("without functions there are no tables", no_tables);
    suite.test("kmemleak finds nothing", no_leaks);
}

/// The last function gives back what all share. The kernel frees some of it later.
fn no_tables() -> Result<()> {
    let none = || (state::table_pages().ok()? == 0).then_some(());
    let done = sysfs::wait_for("end of tables", COME_UP, none);
    ensure!(done.is_ok(), "{} pages are left", state::table_pages()?);
    let kibibytes = state::meminfo("SecPageTables")?;
    ensure!(kibibytes == 0, "SecPageTables: {kibibytes} kB");
    Ok(())
}

/// What was found at the first look may be on its way: it must be there at the second.
fn no_leaks() -> Result<()> {
    if !Path::new(KMEMLEAK).exists() {
        skip!("the kernel has no kmemleak");
    }
    for _ in 0..2 {
        std::thread::sleep(AGE);
        sysfs::write(KMEMLEAK, "scan")?;
    }
    let found = sysfs::read(KMEMLEAK)?;
    for line in found.lines() {
        say!("# kmemleak: {line}");
    }
    let objects = found.lines().filter(|line| line.starts_with("unreferenced object")).count();
    ensure!(objects == 0, "{objects} objects are leaked");
    Ok(())
}
