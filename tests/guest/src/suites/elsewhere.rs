// SPDX-License-Identifier: GPL-2.0
//! Machines and kernels on which the module must refuse to load.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::module;

const DRIVER: &str = "/lib/modules/s390_iommu.ko";

/// A machine without zPCI, or a kernel with `pci=off`.
pub fn absent(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    suite.test("there is no function", || {
        ensure!(Function::all().is_empty(), "the machine has functions");
        Ok(())
    });
    suite.test("the module is refused", || {
        refused(Errno::ENODEV, "s390_iommu: the machine has no zPCI, or it is off")
    });
    Ok(())
}

/// A kernel that already has a driver, which `guest.beside=` names.
pub fn beside(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let (error, text) = match cmdline.value("guest.beside") {
        Some("rust") => (Errno::EBUSY, "s390_iommu: there is another driver"),
        // This kernel has no registration point.
        Some("c") => (Errno::ENOENT, "s390_iommu: Unknown symbol zpci_iommu_driver_register "),
        other => bail!("guest.beside={}: must be rust or c", other.unwrap_or_default()),
    };
    suite.test("the other driver works", || use_disk(4000));
    suite.test("the module is refused", || refused(error, text));
    suite.test("the other driver works as before", || use_disk(4001));
    Ok(())
}

fn refused(error: Errno, text: &str) -> Result<()> {
    module::refused(|| module::try_load(Path::new(DRIVER), ""), error, text)
}

fn use_disk(seed: u64) -> Result<()> {
    let disk = Function::first_of("nvme").context("the drive")?.disk()?;
    Transfer::new(seed, 4 * MIB).verify(&disk).map(drop)
}
