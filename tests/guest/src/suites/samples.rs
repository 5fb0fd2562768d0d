// SPDX-License-Identifier: GPL-2.0
//! The programs in `samples/` do what their READMEs say.

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
/// The serial number that QEMU was given for the first drive.
const SERIAL: &str = "x0";
/// What the machine says of DMA to where nothing is mapped.
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

/// What the kernel's own driver says of the drive.
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
        ensure!(!self.model.is_empty(), "the drive has no model");
        Ok(())
    }

    /// How both samples name it.
    fn words(&self) -> String {
        format!("model \"{}\" serial \"{}\" ", self.model, self.serial)
    }

    /// At the start and after each of two resets.
    fn check_three(&self, output: &str) -> Result<()> {
        let count = output.matches(&self.words()).count();
        ensure!(count == 3, "{count} lines have {:?}: {output:?}", self.words());
        Ok(())
    }
}

/// Takes the function from its driver, gives it to another one, and back.
fn lend<T>(nvme: &Function, driver: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    nvme.unbind()?;
    nvme.set_override(driver)?;
    let result = work();
    nvme.unbind()?;
    nvme.set_override("")?;
    nvme.probe()?;
    result
}

/// The module takes the function when it is loaded, and leaves nothing mapped
/// when it gives it back: as much is mapped the second time as the first.
fn identify_in_kernel(nvme: &Function, drive: &Drive) -> Result<()> {
    let mut log = kmsg::Tail::open()?;
    let module = Module::load(MODULE, "")?;
    let first = mapped_by_module(nvme)?;
    nvme.unbind()?;
    nvme.probe()?;
    let second = mapped_by_module(nvme)?;
    ensure!(second == first, "{first} pages are mapped, the second time {second}");
    module.unload()?;
    let start = format!("{MODULE} {}: {}", nvme.address, drive.words());
    let count = log.read()?.iter().filter(|message| message.starts_with(&start)).count();
    ensure!(count == 2, "{count} messages start with {start:?}");
    Ok(())
}

/// Pages that are mapped. The file is only there while a driver has the function.
fn mapped_by_module(nvme: &Function) -> Result<u64> {
    let driver = nvme.driver();
    ensure!(driver.as_deref() == Some(MODULE), "the driver is {driver:?}");
    let counters = Counters::read(nvme)?;
    Ok(counters.mapped - counters.unmapped)
}

/// Returns what the program prints.
fn identify_by_vfio(nvme: &Function) -> Result<String> {
    nvme.probe()?;
    ensure!(Path::new(PROGRAM).exists(), "there is no {PROGRAM}");
    let output = Command::new(PROGRAM).arg(&nvme.address).output().context("start it")?;
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

/// The program says so, and the kernel, which does not ask the program.
fn check_stray(nvme: &Function, output: &str, log: &[String]) -> Result<()> {
    for what in ["an error event", "the memory is untouched"] {
        let count = output.matches(what).count();
        ensure!(count == 2, "{count} lines have {what:?}: {output:?}");
    }
    let is_event = |m: &&String| m.contains(&nvme.address) && m.contains(STRAY_EVENT);
    let events = log.iter().filter(is_event).count();
    ensure!(events == 2, "the kernel saw {events} events");
    Ok(())
}

fn verify(nvme: &Function, seed: u64) -> Result<()> {
    Transfer::new(seed, 2 * MIB).verify(&nvme.disk()?).map(drop)
}
