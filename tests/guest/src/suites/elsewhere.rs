// SPDX-License-Identifier: GPL-2.0
//! Machines and kernels on which the module must refuse to start.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::state::State;
use crate::{kmsg, module};

const DRIVER: &str = "/lib/modules/s390_iommu.ko";

/// A machine without zPCI, or a kernel that was told to leave it alone.
pub fn absent(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    suite.test("there is no function", || {
        ensure!(Function::all().is_empty(), "there is one");
        Ok(())
    });
    suite.test("the module is refused", || {
        refused(Errno::ENODEV, "s390_iommu: the machine has no zPCI, or it is off")
    });
    Ok(())
}

/// A kernel that has a driver already, which `guest.beside=` names.
pub fn beside(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let (error, text) = match cmdline.value("guest.beside") {
        Some("rust") => (Errno::EBUSY, "s390_iommu: there is another driver"),
        // It has no registration point.
        Some("c") => (Errno::ENOENT, "s390_iommu: Unknown symbol zpci_iommu_driver_register "),
        other => bail!("guest.beside={}: rust or c", other.unwrap_or_default()),
    };
    suite.test("the other driver works", || use_disk(4000));
    suite.test("the module is refused", || refused(error, text));
    suite.test("the other driver works as before", || use_disk(4001));
    Ok(())
}

fn refused(error: Errno, text: &str) -> Result<()> {
    let before = State::take()?;
    let (result, log) = kmsg::during(|| module::try_load(Path::new(DRIVER), ""))?;
    ensure!(result == Err(error), "the load ended with {result:?}, not {error:?}");
    ensure!(log.iter().any(|line| line.contains(text)), "no line says {text:?}: {log:?}");
    before.ensure_unchanged()
}

fn use_disk(seed: u64) -> Result<()> {
    let disk = Function::first_of("nvme").context("the drive")?.disk()?;
    let transfer = Transfer { seed, start: 0, bytes: 4 * MIB, request: MIB, offset: 0 };
    transfer.verify(&disk).map(drop)
}
