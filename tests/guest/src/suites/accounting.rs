// SPDX-License-Identifier: GPL-2.0
//! Table memory is accounted in the kernel's statistics and charged to the memory cgroup
//! of the caller.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cmdline::Cmdline;
use crate::ktap::Suite;
use crate::module::Module;
use crate::sysfs;

/// The module that keeps a domain with tables while it is loaded
const HOLDER: &str = "tables";
/// How much it maps, with one page table of 4 KiB for each MiB
const MEBIBYTES: i64 = 4096;
/// Tables of 16 KiB: the domain's top table, and a segment table for each 2 GiB
const UPPER_TABLES: i64 = 1 + MEBIBYTES / 2048;
const EXPECTED: i64 = MEBIBYTES + 4 * UPPER_TABLES;
/// Pages of the top table
const TOP: i64 = 4;
/// How far cgroup statistics may be off, because each CPU updates them in batches
const BATCH: i64 = 512;
/// The root of all control groups, and the group of the test
const ROOT: &str = "/sys/fs/cgroup";
const INNER: &str = "/sys/fs/cgroup/charged";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    suite.test("tables show in SecPageTables and nr_iommu_pages, and go", shown);
    suite.test("a domain's table memory goes down with an unmap", shown_by_driver);
    suite.test("maps with GFP_KERNEL_ACCOUNT are charged", || charged(true));
    suite.test("maps with GFP_KERNEL are not", || charged(false));
    Ok(())
}

/// The number of pages used for I/O translation tables, from two sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pages {
    secondary: i64,
    iommu: i64,
}

impl Pages {
    /// Reads both, after all CPUs' counts were added.
    fn read() -> Result<Self> {
        sysfs::write("/proc/sys/vm/stat_refresh", "1")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let vmstat = fs::read_to_string("/proc/vmstat")?;
        let kibibytes = value(&meminfo, "SecPageTables:")?;
        Ok(Self { secondary: kibibytes / 4, iommu: value(&vmstat, "nr_iommu_pages")? })
    }

    fn more_than(self, before: Self) -> (i64, i64) {
        (self.secondary - before.secondary, self.iommu - before.iommu)
    }

    /// Waits until so many more pages are in use than before. The DMA API's flush queue
    /// may still have to free some.
    fn expect(before: Self, pages: i64, when: &str) -> Result<()> {
        let is = || Some(Self::read().ok()?.more_than(before));
        let reached = || is().filter(|more| *more == (pages, pages));
        let done = sysfs::wait_for("tables", Duration::from_secs(5), reached);
        ensure!(done.is_ok(), "{when}: {:?} more pages, expected {pages}", is());
        Ok(())
    }
}

/// The number after a name at the start of a line.
fn value(text: &str, name: &str) -> Result<i64> {
    let mut lines = text.lines().map(str::split_whitespace);
    let line = lines.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields));
    let number = line.and_then(|mut fields| fields.next());
    let number = number.with_context(|| format!("no {name}"))?;
    Ok(number.parse()?)
}

fn hold(account: bool) -> Result<Module> {
    Module::load(HOLDER, &format!("mebibytes={MEBIBYTES} account={}", u8::from(account)))
}

fn shown() -> Result<()> {
    let before = Pages::read()?;
    let holder = hold(false)?;
    Pages::expect(before, EXPECTED, "mapped")?;
    sysfs::write(format!("/sys/module/{HOLDER}/parameters/mapped"), "0")?;
    Pages::expect(before, TOP, "unmapped")?;
    holder.unload()?;
    Pages::expect(before, 0, "freed")
}

const DOMAINS: &str = "/sys/kernel/debug/s390_iommu/domains";

/// The table memory of the driver's largest domain, in bytes.
fn largest() -> Result<u64> {
    let infos = sysfs::list(DOMAINS).into_iter().filter_map(|domain| {
        let info = fs::read_to_string(domain.join("info")).ok()?;
        let value = info.lines().find_map(|line| line.strip_prefix("table memory:"))?;
        value.split_whitespace().next()?.parse().ok()
    });
    infos.max().with_context(|| format!("no domain with table memory in {DOMAINS}"))
}

fn shown_by_driver() -> Result<()> {
    let before = largest()?;
    let holder = hold(false)?;
    let mapped = largest()?;
    let expected = 4096 * EXPECTED as u64;
    ensure!(mapped == expected, "mapped: {mapped} bytes of tables, not {expected}");
    sysfs::write(format!("/sys/module/{HOLDER}/parameters/mapped"), "0")?;
    let unmapped = largest()?;
    ensure!(unmapped <= before.max(4096 * TOP as u64), "unmapped: {unmapped} bytes of tables");
    holder.unload()
}

/// A memory cgroup that contains this process until it is dropped.
struct Group;

impl Group {
    fn enter() -> Result<Self> {
        sysfs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory")?;
        fs::create_dir_all(INNER)?;
        let group = Self;
        sysfs::write(format!("{INNER}/cgroup.procs"), "0")?;
        Ok(group)
    }

    /// Pages of secondary page tables that are charged to the group.
    fn tables(&self) -> Result<i64> {
        let text = fs::read_to_string(format!("{INNER}/memory.stat"))?;
        Ok(value(&text, "sec_pagetables")? / 4096)
    }

    /// Pages of all kinds that are charged to the group.
    fn all(&self) -> Result<i64> {
        Ok(sysfs::read(format!("{INNER}/memory.current"))?.parse::<i64>()? / 4096)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = sysfs::write(format!("{ROOT}/cgroup.procs"), "0");
        let _ = fs::remove_dir(INNER);
        let _ = sysfs::write(format!("{ROOT}/cgroup.subtree_control"), "-memory");
    }
}

fn charged(account: bool) -> Result<()> {
    let group = Group::enter()?;
    let (tables, all) = (group.tables()?, group.all()?);
    let holder = hold(account)?;
    let expected = if account { MEBIBYTES } else { 0 };
    let near = |pages: i64, expected: i64| (pages - expected).abs() <= BATCH;
    let charged = group.tables()? - tables;
    ensure!(near(charged, expected), "mapped: {charged} table pages, expected about {expected}");
    let charged = group.all()? - all;
    ensure!(near(charged, expected), "mapped: {charged} pages in total, expected about {expected}");
    holder.unload()?;
    let charged = group.tables()? - tables;
    ensure!(near(charged, 0), "freed: {charged} table pages are still charged");
    Ok(())
}
