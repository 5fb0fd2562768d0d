// SPDX-License-Identifier: GPL-2.0
//! Checks that the programs in `samples/` do what their READMEs describe.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::counters::Counters;
use crate::function::Function;
use crate::ktap::Suite;
use crate::module::Module;
use crate::{kmsg, sysfs};

const MODULE: &str = "nvme_identify";
const PROGRAM: &str = "/bin/vfio_identify";
/// The first drive's serial number on QEMU's command line
const SERIAL: &str = "x0";
/// The kernel's message about DMA to an unmapped IOVA
const STRAY_EVENT: &str = "Event 0x4 reports an error";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    let drive = Drive::read(&nvme)?;
    suite.test("the drive is the one that QEMU was given", || drive.check());
    suite.test("nvme_identify: model and serial", || {
        lend(&nvme, MODULE, || identify_in_kernel(&nvme, &drive))
    });
    suite.test("nvme_identify: the disk works afterwards", || verify(&nvme, 700));
    let mut log = kmsg::Tail::open()?;
    let mut output = String::new();
    suite.test("vfio_identify: runs to its end", || {
        output = lend(&nvme, "vfio-pci", || identify_by_vfio(&nvme))?;
        Ok(())
    });
    suite.test("vfio_identify: model and serial, three times", || drive.check_three(&output));
    suite.test("vfio_identify: DMA outside is an error, twice", || {
        check_stray(&nvme, &output, &log.read()?)
    });
    suite.test("vfio_identify: the disk works afterwards", || verify(&nvme, 701));
    Ok(())
}

/// The drive's identity according to the kernel's NVMe driver.
struct Drive {
    model: String,
    serial: String,
}

impl Drive {
    fn read(nvme: &Function) -> Result<Self> {
        let controllers = sysfs::list(nvme.path().join("nvme"));
        let folder = controllers.first().context("the function has no controller")?;
        let text = |file| Ok::<_, anyhow::Error>(sysfs::read(folder.join(file))?.trim().to_owned());
        Ok(Self { model: text("model")?, serial: text("serial")? })
    }

    fn check(&self) -> Result<()> {
        ensure!(self.serial == SERIAL, "the serial number is {:?}", self.serial);
        ensure!(!self.model.is_empty(), "the model is empty");
        Ok(())
    }

    /// How both samples print the identity.
    fn text(&self) -> String {
        format!("model \"{}\" serial \"{}\" ", self.model, self.serial)
    }

    /// The sample prints it at the start and after each of two resets.
    fn check_three(&self, output: &str) -> Result<()> {
        let count = output.matches(&self.text()).count();
        ensure!(count == 3, "{count} lines contain {:?}: {output:?}", self.text());
        Ok(())
    }
}

/// Rebinds the function to another driver while `work` runs.
fn lend<T>(nvme: &Function, driver: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    nvme.unbind()?;
    nvme.set_override(driver)?;
    let result = work();
    nvme.unbind()?;
    nvme.set_override("")?;
    nvme.probe()?;
    result
}

/// The module binds to the function when it is loaded, and unmaps everything when it is
/// unbound: the second time it has as many pages mapped as the first time.
fn identify_in_kernel(nvme: &Function, drive: &Drive) -> Result<()> {
    let mut log = kmsg::Tail::open()?;
    let module = Module::load(MODULE, "")?;
    let first = mapped_by_module(nvme)?;
    nvme.unbind()?;
    nvme.probe()?;
    let second = mapped_by_module(nvme)?;
    ensure!(second == first, "{first} pages are mapped the first time, {second} the second time");
    module.unload()?;
    let start = format!("{MODULE} {}: {}", nvme.address, drive.text());
    let count = log.read()?.iter().filter(|message| message.starts_with(&start)).count();
    ensure!(count == 2, "{count} messages start with {start:?}");
    Ok(())
}

/// The number of mapped pages. The counters exist only while a driver is bound.
fn mapped_by_module(nvme: &Function) -> Result<u64> {
    let driver = nvme.driver();
    ensure!(driver.as_deref() == Some(MODULE), "the driver is {driver:?}");
    let counters = Counters::read(nvme)?;
    Ok(counters.mapped - counters.unmapped)
}

/// Runs the program and returns its output.
fn identify_by_vfio(nvme: &Function) -> Result<String> {
    nvme.probe()?;
    ensure!(Path::new(PROGRAM).exists(), "no {PROGRAM}");
    let output = Command::new(PROGRAM).arg(&nvme.address).output().context("start the program")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "{}: {:?} {:?}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// Both the program's output and the kernel log must report the stray DMA.
fn check_stray(nvme: &Function, output: &str, log: &[String]) -> Result<()> {
    for what in ["an error event", "the memory is untouched"] {
        let count = output.matches(what).count();
        ensure!(count == 2, "{count} lines contain {what:?}: {output:?}");
    }
    let is_event = |m: &&String| m.contains(&nvme.address) && m.contains(STRAY_EVENT);
    let events = log.iter().filter(is_event).count();
    ensure!(events == 2, "the kernel reports {events} events, expected 2");
    Ok(())
}

fn verify(nvme: &Function, seed: u64) -> Result<()> {
    Transfer::new(seed, 2 * MIB).verify(&nvme.disk()?).map(drop)
}
