// SPDX-License-Identifier: GPL-2.0
//! The five IOMMU counters in debugfs.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::counters::Counters;
use crate::function::Function;
use crate::ktap::{Suite, skip};
use crate::{shown, sysfs};

const BYTES: usize = 4 * MIB;
const PAGE: usize = 4 * KIB;
const PAGES: u64 = (BYTES / PAGE) as u64;
const SINGLES: u64 = 256;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    let transfer = Transfer::new(400, BYTES);
    let before = Counters::read(&nvme)?;
    transfer.verify(&nvme.disk()?)?;
    let moved = Counters::read(&nvme)? - before;
    suite.test("pages mapped are at least the pages moved", || {
        // Every page is mapped once for the write and once for the read.
        ensure!(moved.mapped >= 2 * PAGES, "{} pages transferred: {moved}", 2 * PAGES);
        ensure!(moved.mapped < 4 * PAGES, "{} pages transferred: {moved}", 2 * PAGES);
        Ok(())
    });
    suite.test("an idle disk has unmapped what it mapped", || {
        ensure!(moved.unmapped == moved.mapped, "{moved}");
        Ok(())
    });
    suite.test("mappings are made visible, and not one by one", || {
        if shown::is_there() && !shown::maps_need_refresh(&nvme)? {
            ensure!(moved.sync_map == 0, "unnecessary refreshes after maps: {moved}");
            return Ok(());
        }
        ensure!(moved.sync_map > 0, "{moved}");
        ensure!(moved.sync_map < moved.mapped / 4, "{moved}");
        Ok(())
    });
    let (before, single) = single_pages(&nvme)?;
    // Maps of single pages use another path in the driver than maps of ranges.
    suite.test("pages mapped one at a time are counted, and unmapped", || {
        ensure!(single.mapped >= 2 * SINGLES, "{} pages transferred: {single}", 2 * SINGLES);
        ensure!(single.mapped < 4 * SINGLES, "{} pages transferred: {single}", 2 * SINGLES);
        ensure!(single.unmapped == single.mapped, "{single}");
        Ok(())
    });
    if cmdline.strict() {
        suite.test("strict: every unmap is flushed by itself", || strict(single));
    } else {
        suite.test("lazy: unmaps are flushed in batches", || lazy(&nvme, &before, single));
    }
    suite.test("other functions count for themselves", || others(&nvme, &transfer));
    Ok(())
}

/// Transfers single pages. For larger requests the DMA API flushes after every unmap,
/// even with deferred flushing.
fn single_pages(nvme: &Function) -> Result<(Counters, Counters)> {
    let bytes = SINGLES as usize * PAGE;
    let transfer = Transfer { request: PAGE, ..Transfer::new(401, bytes) };
    let before = Counters::read(nvme)?;
    transfer.verify(&nvme.disk()?)?;
    Ok((before, Counters::read(nvme)? - before))
}

fn strict(moved: Counters) -> Result<()> {
    ensure!(moved.sync >= 2 * SINGLES, "{} unmaps of a page: {moved}", 2 * SINGLES);
    ensure!(moved.global == 0, "{moved}");
    Ok(())
}

/// The DMA API flushes its queue when it is full, or after a second.
fn lazy(nvme: &Function, before: &Counters, moved: Counters) -> Result<()> {
    ensure!(moved.sync < SINGLES / 4, "unmaps were flushed one by one: {moved}");
    sysfs::wait_for("flush of everything", Duration::from_secs(5), || {
        let now = Counters::read(nvme).ok()?;
        (now.global > before.global).then_some(())
    })
}

/// DMA of one function does not change the counters of another, idle one.
fn others(nvme: &Function, transfer: &Transfer) -> Result<()> {
    let Some(idle) = Function::of_driver("igb").into_iter().next() else {
        skip!("the machine has no second, idle function");
    };
    let before = Counters::read(&idle)?;
    transfer.verify(&nvme.disk()?)?;
    let moved = Counters::read(&idle)? - before;
    ensure!(moved.mapped == 0 && moved.sync_map == 0, "{}: {moved}", idle.address);
    Ok(())
}
