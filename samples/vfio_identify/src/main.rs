// SPDX-License-Identifier: GPL-2.0
//! Identifies an NVMe controller by DMA from user space, and shows the result of DMA
//! to an IOVA that is not mapped.
//!
//! The program opens the function by VFIO's character device and attaches it to an
//! address space of iommufd. It maps two pieces of its own memory there. The
//! controller can reach only these: neither the kernel's memory nor the rest of this
//! program's memory.
//!
//! The controller is little endian and the CPU is not, so the program explicitly
//! converts every number in its registers and in its memory.

mod iommufd;
mod memory;
mod nvme;
mod vfio;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use iommufd::AddressSpace;
use memory::Memory;
use nvme::Controller;
use vfio::{Bar, Device, ErrorEvents};

const PAGE: usize = 4096;
/// The layout, as offsets from the first IOVA that the function reaches.
const QUEUES: u64 = 0;
const DATA: u64 = 1 << 20;
/// Nothing is ever mapped here.
const NOWHERE: u64 = 2 << 20;
/// The size of the IOVA range in use.
const EXTENT: u64 = 3 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let result = match (arguments.next(), arguments.next()) {
        (Some(address), None) if !address.starts_with('-') => run(&address),
        _ => {
            eprintln!("usage: vfio_identify ADDRESS    (of an NVMe function, like 0000:00:00.0)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vfio_identify: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(address: &str) -> Result<()> {
    // This owns the function: nobody else can open it until this is closed.
    let space = AddressSpace::new()?;
    let device = Device::open(address)?;
    device.bind(space.iommufd())?;
    // From here on the new, empty address space translates its DMA.
    device.attach(space.id())?;
    let first = first_iova(&space)?;
    println!("device: {address} as {}, IOVAs from {first:#x}", device.path());

    let queues = Memory::new(nvme::QUEUES_SIZE)?;
    let data = Memory::new(PAGE)?;
    space.map(&queues, first + QUEUES)?;
    space.map(&data, first + DATA)?;

    let machine = Machine {
        bar: device.map_bar(0)?,
        events: device.error_events()?,
        device: &device,
        queues: &queues,
        queues_iova: first + QUEUES,
        data: &data,
    };
    device.enable_dma()?;
    machine.identify("identify", first + DATA)?;
    machine.stray("never mapped", first + NOWHERE)?;
    machine.identify("after a reset", first + DATA)?;
    space.unmap(first + DATA, PAGE)?;
    machine.stray("mapped until now", first + DATA)?;
    space.map(&data, first + DATA)?;
    machine.identify("after a reset", first + DATA)
}

/// The kernel knows which IOVAs all functions of an address space can reach.
fn first_iova(space: &AddressSpace) -> Result<u64> {
    let ranges = space.ranges()?;
    let fits = |range: &&iommufd::Range| range.last - range.start >= EXTENT;
    let range = ranges.iter().find(fits);
    range.map(|range| range.start).context("no range of IOVAs is large enough")
}

/// The objects that the steps below need.
struct Machine<'a> {
    device: &'a Device,
    bar: Bar,
    events: ErrorEvents,
    queues: &'a Memory,
    queues_iova: u64,
    data: &'a Memory,
}

impl Machine<'_> {
    /// Makes the controller write its identity to our memory, and shows it.
    fn identify(&self, when: &str, iova: u64) -> Result<()> {
        self.data.fill(0);
        let mut controller = Controller::start(&self.bar, self.queues, self.queues_iova)?;
        controller.identify(iova)?;
        let text = |start, length| {
            let bytes = self.data.read(start, length);
            String::from_utf8_lossy(bytes.trim_ascii()).into_owned()
        };
        let (serial, model, firmware) = (text(4, 20), text(24, 40), text(64, 8));
        println!(
            "{when}: model {model:?} serial {serial:?} firmware {firmware:?}, by DMA to {iova:#x}"
        );
        Ok(())
    }

    /// Makes the controller write where nothing is mapped, shows the result, and
    /// recovers the function.
    fn stray(&self, what: &str, iova: u64) -> Result<()> {
        const PATTERN: u8 = 0xa5;
        self.data.fill(PATTERN);
        let mut controller = Controller::start(&self.bar, self.queues, self.queues_iova)?;
        controller.submit_identify(iova)?;
        ensure!(self.events.wait()?, "DMA to {iova:#x}, {what}: no error was reported");
        println!("{what}: DMA to {iova:#x}: an error event");
        println!("{what}: {}", self.end_of(&controller)?);
        let untouched = self.data.read(0, PAGE).iter().all(|byte| *byte == PATTERN);
        ensure!(untouched, "{what}: DMA to {iova:#x} came through");
        println!("{what}: the memory is untouched");
        self.device.reset()
    }
    /// The result of a command whose DMA was refused. If the kernel does not leave
    /// recovery to us, it unblocks the function sooner or later. For the controller the
    /// DMA has failed, and it may still be able to report that.
    fn end_of(&self, controller: &Controller) -> Result<String> {
        let end = Instant::now() + nvme::LIMIT;
        loop {
            match self.bar.read(nvme::CSTS) {
                Err(_) | Ok(u32::MAX) => return Ok("the function is in the error state".into()),
                Ok(status) if status & nvme::CSTS_FATAL != 0 => {
                    return Ok("the function was unblocked, its controller has failed".into());
                }
                Ok(_) => (),
            }
            // Emulated controllers do not check the result of their writes. Some complete
            // the command as if it had succeeded; only the memory shows the failure.
            if let Some(status) = controller.completion() {
                return Ok(format!(
                    "the function was unblocked, the command was completed with status {status:#x}"
                ));
            }
            ensure!(Instant::now() < end, "the command has neither failed nor succeeded");
            sleep(nvme::PAUSE);
        }
    }
}
