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
/// How what it says of an object begins.
const OBJECT: &str = "unreferenced object";
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
    let objects = found.split(OBJECT).skip(1);
    let (known, new): (Vec<_>, Vec<_>) = objects.partition(|text| is_of_bridge(text));
    say!("# kmemleak: {} objects of host bridges, which Linux does not free", known.len());
    for line in new.iter().flat_map(|text| text.lines()) {
        say!("# kmemleak: {line}");
    }
    let objects = new.len();
    ensure!(objects == 0, "{objects} objects are leaked");
    Ok(())
}

/// The PCI core of s390 makes a host bridge for each bus, and gives none back.
fn is_of_bridge(text: &str) -> bool {
    let parts =
        ["resource_list_create_entry+", "pci_create_root_bus+", "pci_register_host_bridge+"];
    text.contains("zpci_bus_device_register+") && parts.iter().any(|part| text.contains(part))
}
