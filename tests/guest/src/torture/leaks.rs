// SPDX-License-Identifier: GPL-2.0
//! Checks for leaks after all suites: tables, and objects that kmemleak reports.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::{COME_UP, Function};
use crate::ktap::{Suite, skip};
use crate::{state, sysfs};

const KMEMLEAK: &str = "/sys/kernel/debug/kmemleak";
/// Minimum age of the objects that kmemleak reports
const AGE: Duration = Duration::from_secs(6);
/// How a report of an object begins
const OBJECT: &str = "unreferenced object";
const SETTLE: Duration = Duration::from_secs(1);
/// How many seconds the functions must stay the same, unless `guest.quiet=` says more: the
/// last unplug and plug of a storm during boot takes several on a slow kernel
const QUIET: u64 = 1;

/// The table memory in use while all slots are off, measured before the suites and
/// compared after them (`guest.leaks=`).
pub struct Leaks {
    pages: u64,
    kibibytes: u64,
}

impl Leaks {
    /// Turns all slots off, measures, and turns them on again.
    pub fn before(cmdline: &Cmdline) -> Result<Self> {
        let functions = settled(cmdline.number_or("guest.quiet", QUIET)?);
        let slots: Result<Vec<_>> = functions.iter().map(Function::slot).collect();
        let slots = slots?;
        all_off()?;
        // Let the flush queues free their tables.
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

    /// Runs the checks as the last suite, because all slots stay off.
    pub fn run(&self, suite: &mut Suite) {
        suite.test("all functions go", all_off);
        suite.test("as many tables are left as before", || self.no_more_tables());
        suite.test("kmemleak finds nothing", no_leaks);
    }

    fn no_more_tables(&self) -> Result<()> {
        let same = || (state::table_pages().ok()? == self.pages).then_some(());
        let done = sysfs::wait_for("end of tables", COME_UP, same);
        ensure!(done.is_ok(), "{} table pages before, now {}", self.pages, state::table_pages()?);
        let now = state::meminfo("SecPageTables")?;
        ensure!(now == self.kibibytes, "SecPageTables: {} KiB before, now {now}", self.kibibytes);
        Ok(())
    }
}

/// Waits until functions no longer come and go.
fn settled(quiet: u64) -> Vec<Function> {
    let mut before = Function::all();
    loop {
        std::thread::sleep(Duration::from_secs(quiet));
        let now = Function::all();
        if now == before {
            return now;
        }
        before = now;
    }
}

fn all_off() -> Result<()> {
    for function in Function::all() {
        sysfs::write(function.slot()?, "0")?;
    }
    ensure!(Function::all().is_empty(), "all slots are off, but there are still functions");
    Ok(())
}

/// Scans twice, because the first scan may report false positives.
fn no_leaks() -> Result<()> {
    if !Path::new(KMEMLEAK).exists() {
        skip!("the kernel has no kmemleak");
    }
    for _ in 0..2 {
        std::thread::sleep(AGE);
        sysfs::write(KMEMLEAK, "scan")?;
    }
    let found = sysfs::read(KMEMLEAK)?;
    let objects = found.split(OBJECT).skip(1);
    let (known, new): (Vec<_>, Vec<_>) = objects.partition(|text| is_of_bridge(text));
    say!("# kmemleak: {} objects of host bridges, which Linux does not free", known.len());
    for line in new.iter().flat_map(|text| text.lines()) {
        say!("# kmemleak: {line}");
    }
    let objects = new.len();
    ensure!(objects == 0, "{objects} objects leaked");
    Ok(())
}

/// Whether an object belongs to a host bridge: the s390 PCI code creates one for each
/// bus, and frees none.
fn is_of_bridge(text: &str) -> bool {
    let parts =
        ["resource_list_create_entry+", "pci_create_root_bus+", "pci_register_host_bridge+"];
    text.contains("zpci_bus_device_register+") && parts.iter().any(|part| text.contains(part))
}
