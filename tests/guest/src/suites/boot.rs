// SPDX-License-Identifier: GPL-2.0
//! The machine has booted with this driver, and sysfs is as expected.

use anyhow::{Context, Result, ensure};

use crate::cmdline::Cmdline;
use crate::function::{Function, Region};
use crate::ktap::Suite;
use crate::{kmsg, sysfs};

/// Every function that QEMU emulates has the window from 0x1_0000_0000 to
/// 0x1ff_ffff_ffff_ffff and supports three-level tables, which reach 4 TiB. Other
/// configurations are described on the command line.
const START_DMA: u64 = 0x1_0000_0000;
const END_DMA: u64 = 0x1ff_ffff_ffff_ffff;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let functions = Function::all();
    suite.test("the kernel has no C driver", no_c_driver);
    suite.test("the driver names itself in the log", named_in_log);
    suite.test("every function has an iommu device", || iommu_devices(&functions));
    suite.test("every function is in a group of its own", || own_groups(&functions));
    suite.test("groups have the type that was asked for", || group_types(&functions, cmdline));
    suite.test("reserved regions are exact", || reserved_regions(&functions, cmdline));
    suite.test("every function has a driver", || all_bound(&functions));
    Ok(())
}

fn no_c_driver() -> Result<()> {
    let symbols = std::fs::read_to_string("/proc/kallsyms").context("read /proc/kallsyms")?;
    let mut names = symbols.lines().filter_map(|line| line.split_whitespace().nth(2));
    ensure!(
        !names.any(|name| name == "s390_iommu_attach_device"),
        "s390_iommu_attach_device is in /proc/kallsyms"
    );
    Ok(())
}

fn named_in_log() -> Result<()> {
    let messages = kmsg::messages()?;
    let lines = kmsg::driver_lines(&messages);
    ensure!(!lines.is_empty(), "no message starts with \"s390_iommu:\"");
    let named = lines.iter().any(|line| line.chars().any(|c| c.is_ascii_digit()));
    ensure!(named, "no driver message has a version: {}", lines[0]);
    Ok(())
}

fn iommu_devices(functions: &[Function]) -> Result<()> {
    ensure!(!functions.is_empty(), "the machine has no PCI function");
    for function in functions {
        let link = sysfs::link_name(function.path().join("iommu"));
        let expected = format!("s390-iommu.{:08x}", function.fid()?);
        ensure!(
            link.as_ref() == Some(&expected),
            "{}: the IOMMU is {link:?}, expected {expected}",
            function.address
        );
    }
    Ok(())
}

fn own_groups(functions: &[Function]) -> Result<()> {
    for function in functions {
        let group = function.group();
        let group = group.with_context(|| format!("{} has no group", function.address))?;
        let members = sysfs::list(function.path().join("iommu_group/devices")).len();
        ensure!(members == 1, "group {group} of {} has {members} members", function.address);
    }
    Ok(())
}

fn group_types(functions: &[Function], cmdline: &Cmdline) -> Result<()> {
    let usual = if cmdline.strict() { "DMA" } else { "DMA-FQ" };
    let expected = cmdline.value("guest.type").unwrap_or(usual);
    for function in functions {
        let kind = function.group_type()?;
        ensure!(kind == expected, "{}: {kind}, expected {expected}", function.address);
    }
    Ok(())
}

fn reserved_regions(functions: &[Function], cmdline: &Cmdline) -> Result<()> {
    for function in functions {
        let start = cmdline.start_dma(&function.address).unwrap_or(START_DMA);
        let end = cmdline.end_dma(&function.address).unwrap_or(END_DMA);
        let reach = reach(cmdline.levels());
        let expected = expected_regions(cmdline.aperture_factor(), start, end, reach)?;
        let regions = function.reserved()?;
        ensure!(regions == expected, "{}: {regions:x?}, expected {expected:x?}", function.address);
    }
    Ok(())
}

/// The regions below the window and above its usable part, which the boot parameter may
/// limit.
fn expected_regions(factor: u64, start: u64, end: u64, reach: u64) -> Result<Vec<Region>> {
    let mut end = end.min(reach);
    if factor != 0 {
        let size = memory_end()?.saturating_mul(factor);
        end = end.min(start.saturating_add(size - 1));
    }
    let mut regions = vec![Region { first: 0, last: start - 1 }];
    if end < reach {
        regions.push(Region { first: end + 1, last: reach });
    }
    Ok(regions)
}

/// The last IOVA that tables with this number of levels translate.
fn reach(levels: u32) -> u64 {
    u64::MAX >> (64 - (20 + 11 * (levels - 1)))
}

/// The first address after the machine's memory.
fn memory_end() -> Result<u64> {
    let map = sysfs::read("/proc/iomem")?;
    let rams = map.lines().filter(|line| line.ends_with(": System RAM"));
    let last = rams.filter_map(|line| line.split([' ', '-']).nth(1)).next_back();
    let last = last.context("no System RAM in /proc/iomem")?;
    Ok(u64::from_str_radix(last, 16)? + 1)
}

fn all_bound(functions: &[Function]) -> Result<()> {
    for function in functions {
        ensure!(function.driver().is_some(), "{} has no driver", function.address);
    }
    Ok(())
}
