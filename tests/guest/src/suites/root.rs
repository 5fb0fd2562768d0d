// SPDX-License-Identifier: GPL-2.0
//! The root file system is on an NVMe drive; the initramfs has loaded the driver and
//! mounted it.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::{module, sysfs};

const DRIVER: &str = "s390_iommu";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    suite.test("the root is on the NVMe drive", on_drive);
    suite.test("the initramfs is gone", || {
        ensure!(!Path::new("/lib/modules").exists(), "/lib/modules exists");
        ensure!(!Path::new("/init").exists(), "/init exists");
        Ok(())
    });
    suite.test("the driver is a module", || module::users(DRIVER).map(drop));
    suite.test("a file on the root comes back", || file(3000));
    suite.test("the driver cannot go from under the root", || {
        let result = module::try_unload(DRIVER);
        ensure!(result == Err(Errno::EWOULDBLOCK), "unloading returned {result:?}");
        file(3001)
    });
    Ok(())
}

fn on_drive() -> Result<()> {
    let disk = Function::first_of("nvme")?.disk()?;
    let mounts = sysfs::read("/proc/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let root = lines.find(|fields| fields.get(1) == Some(&"/")).context("no root is mounted")?;
    ensure!(Path::new(root[0]) == disk, "the root is {}, not {}", root[0], disk.display());
    ensure!(root[2] == "ext2", "the root is of type {}", root[2]);
    Ok(())
}

fn file(seed: u64) -> Result<()> {
    let path = Path::new("/data");
    File::create(path)?.set_len(8 * MIB as u64)?;
    Transfer::new(seed, 8 * MIB).verify(path).map(drop)
}
