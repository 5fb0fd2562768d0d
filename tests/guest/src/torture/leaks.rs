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
const SETTLE: Duration = Duration::from_secs(1);

/// What the driver holds without functions, before and after a boot's suites, if
/// `guest.leaks=` asks for it.
pub struct Leaks {
    pages: u64,
    kibibytes: u64,
}

impl Leaks {
    /// All functions go and come back.
    pub fn before() -> Result<Self> {
        let functions = Function::all();
        let slots: Result<Vec<_>> = functions.iter().map(Function::slot).collect();
        let slots = slots?;
        all_off()?;
        // What waits in a queue of unmaps is freed a moment later.
        std::thread::sleep(SETTLE);
        let leaks =
            Self { pages: state::table_pages()?, kibibytes: state::meminfo("SecPageTables")? };
        for slot in &slots {
            sysfs::write(slot, "1")?;
        }
        for function in &functions {
            sysfs::wait_for("driver", COME_UP, || function.driver())?;
        }
        Ok(leaks)
    }

    /// The last of a boot's suites: it ends without functions.
    pub fn run(&self, suite: &mut Suite) {
        suite.test("all functions go", all_off);
        suite.test("as many tables are left as before", || self.no_more_tables());
        suite.test("kmemleak finds nothing", no_leaks);
    }

    fn no_more_tables(&self) -> Result<()> {
        let same = || (state::table_pages().ok()? == self.pages).then_some(());
        let done = sysfs::wait_for("end of tables", COME_UP, same);
        ensure!(done.is_ok(), "{} pages were left, now {}", self.pages, state::table_pages()?);
        let now = state::meminfo("SecPageTables")?;
        ensure!(now == self.kibibytes, "SecPageTables: {} kB, now {now}", self.kibibytes);
        Ok(())
    }
}

fn all_off() -> Result<()> {
    for function in Function::all() {
        sysfs::write(function.slot()?, "0")?;
    }
    ensure!(Function::all().is_empty(), "all slots are off and there are functions");
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
