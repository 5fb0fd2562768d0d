// SPDX-License-Identifier: GPL-2.0

//! A PCI driver that makes an NVMe controller identify itself.
//!
//! This is a minimal driver whose device does DMA. It puts the admin queue into
//! coherent memory and stores one command (IDENTIFY CONTROLLER) there. The
//! controller fetches the command and writes 4 KiB of data and a completion. All
//! addresses that it gets are IOVAs: the DMA API maps the memory in the function's
//! address space when it is allocated, and unmaps it when it is freed. None of this
//! is specific to s390 or to its IOMMU.
//!
//! # Lifetimes
//!
//! [`Controller`] holds everything that the device may access. Its `Drop` stops the
//! controller, and only then are the fields dropped: first the memory with its
//! mappings, then the registers. This works for a probe that fails half-way as well
//! as for unbinding, and needs no code for either.
//!
//! # Byte order
//!
//! NVMe is little endian, but the CPU is not. The accessors of [`kernel::io`]
//! convert registers. They do not convert memory: numbers there have the types
//! [`Le16`], [`Le32`] and [`Le64`], whose values must be converted before use.
//!
//! Reference: NVM Express Base Specification, revision 1.4.

use kernel::{
    device::{Bound, Core},
    dma::{Coherent, Device as _, DmaMask},
    io::{io_project, io_read, poll::read_poll_timeout, register, register::Array, Io},
    pci,
    prelude::*,
    str::BStr,
    sync::barrier::{dma_mb, Read},
    time::Delta,
    transmute,
};

/// Entries of each queue. One is in use; two is the minimum.
const ENTRIES: usize = 2;
/// The value of a controller's page size field for 4 KiB.
const PAGES_OF_4K: u32 = 0;
/// log2 of the sizes of the queues' entries.
const SUBMISSION_SHIFT: u32 = 6;
const COMPLETION_SHIFT: u32 = 4;
/// An admin command that takes longer than this has failed.
const COMMAND_LIMIT: Delta = Delta::from_secs(5);
/// How long to sleep between two polls.
const PAUSE: Delta = Delta::from_micros(200);

// 64-bit registers are split into two of 32 bits: a region is aligned to 4 bytes only.
register! {
    /// The capabilities of the controller, lower half.
    CAP_LOW(u32) @ 0x00 {
        /// Longest time to become ready, in units of 500 ms.
        31:24 to;
    }
    /// The capabilities of the controller, upper half.
    CAP_HIGH(u32) @ 0x04 {
        /// Smallest page size, as a power of two above 4 KiB.
        19:16 mpsmin;
        /// Distance of doorbells, as a power of two above 4 bytes.
        3:0   dstrd;
    }
    /// Configuration.
    CC(u32) @ 0x14 {
        /// log2 of the size of a completion.
        23:20 iocqes;
        /// log2 of the size of a submission.
        19:16 iosqes;
        /// Enable.
        0:0   en => bool;
    }
    /// Status.
    CSTS(u32) @ 0x1c {
        /// Ready.
        0:0   rdy => bool;
    }
    /// The number of entries of the admin queues, minus one.
    AQA(u32) @ 0x24 {
        27:16 acqs;
        11:0  asqs;
    }
    /// The address of the submission queue, in two halves.
    ASQ(u32)[2] @ 0x28 {
        31:0  address;
    }
    /// The address of the completion queue, in two halves.
    ACQ(u32)[2] @ 0x30 {
        31:0  address;
    }
    /// Doorbell: the tail of the admin submission queue.
    SQ0TDBL(u32) @ 0x1000 {
        15:0  tail;
    }
}

/// The part of BAR 0 that is checked once, when it is mapped.
const REGISTERS: usize = 0x1004;

/// The lower and the upper half of an address.
fn halves(address: u64) -> (u32, u32) {
    (address as u32, (address >> 32) as u32)
}

/// A number of 16 bits in the device's byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(transparent)]
struct Le16(u16);

/// A number of 32 bits in the device's byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(transparent)]
struct Le32(u32);

/// A number of 64 bits in the device's byte order.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(transparent)]
struct Le64(u64);

impl Le16 {
    const fn get(self) -> u16 {
        u16::from_le(self.0)
    }
}

impl From<u32> for Le32 {
    fn from(value: u32) -> Self {
        Self(value.to_le())
    }
}

impl From<u64> for Le64 {
    fn from(value: u64) -> Self {
        Self(value.to_le())
    }
}

/// Allows [`Coherent`] to hold values of these types. They must derive [`FromBytes`]
/// and [`IntoBytes`], which check the claims below.
macro_rules! coherent {
    ($($type:ty),+) => {$(
        const _: () = {
            const fn is_bytes<T: FromBytes + IntoBytes>() {}
            is_bytes::<$type>()
        };
        // SAFETY: A type that implements `IntoBytes` has no padding.
        unsafe impl transmute::AsBytes for $type {}
        // SAFETY: For a type that implements `FromBytes`, any bits are a value, even if
        // it makes no sense. These are numbers: nothing changes behind a reference.
        unsafe impl transmute::FromBytes for $type {}
    )+};
}

coherent!(Command, Completion, Identity);

/// A submission: 64 bytes.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Command {
    /// The operation in the lowest byte, the identifier in the upper half.
    operation: Le32,
    namespace: Le32,
    reserved: [Le32; 4],
    /// The address of the data.
    data: [Le64; 2],
    arguments: [Le32; 6],
}

impl Command {
    /// IDENTIFY CONTROLLER, with a page of memory for the data.
    fn identify_controller(page: u64) -> Self {
        const IDENTIFY: u32 = 0x06;
        const CONTROLLER: u32 = 0x01;
        let zero = || Le32::from(0);
        Self {
            operation: IDENTIFY.into(),
            namespace: zero(),
            reserved: [zero(); 4],
            data: [page.into(), 0.into()],
            arguments: [CONTROLLER.into(), zero(), zero(), zero(), zero(), zero()],
        }
    }
}

/// A completion: 16 bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(C)]
struct Completion {
    result: [Le32; 2],
    head: Le16,
    queue: Le16,
    command: Le16,
    /// The phase in the lowest bit, the command's status above.
    status: Le16,
}

/// The data of IDENTIFY CONTROLLER: 4 KiB, of which this driver reads the texts.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Identity {
    vendor: Le16,
    subsystem_vendor: Le16,
    serial: [u8; 20],
    model: [u8; 40],
    firmware: [u8; 8],
    rest: [u8; 4024],
}

/// A running controller, with its admin queue.
///
/// Fields are dropped in the order of their declaration.
struct Controller<'bound> {
    submissions: Coherent<[Command]>,
    completions: Coherent<[Completion]>,
    identity: Coherent<Identity>,
    bar: pci::Bar<'bound, REGISTERS>,
}

impl<'bound> Controller<'bound> {
    /// Maps the registers, allocates the memory, and starts the controller.
    fn start(pdev: &'bound pci::Device<Bound>) -> Result<Self> {
        let dev = pdev.as_ref();
        let controller = Self {
            submissions: Coherent::zeroed_slice(dev, ENTRIES, GFP_KERNEL)?,
            completions: Coherent::zeroed_slice(dev, ENTRIES, GFP_KERNEL)?,
            identity: Coherent::zeroed(dev, GFP_KERNEL)?,
            bar: pdev.iomap_region_sized::<REGISTERS>(0, c"nvme_identify")?,
        };
        if controller.bar.read(CAP_HIGH).mpsmin().get() != PAGES_OF_4K {
            return Err(ENODEV);
        }
        // The previous driver may have left it running.
        controller.stop()?;
        controller.run()?;
        Ok(controller)
    }

    /// Sets the addresses of the queues, and enables the controller.
    fn run(&self) -> Result {
        let bar = &self.bar;
        let last = ENTRIES as u32 - 1;
        bar.write_reg(AQA::zeroed().try_with_acqs(last)?.try_with_asqs(last)?);
        let (low, high) = halves(self.submissions.dma_address());
        bar.write(ASQ::at(0), low.into());
        bar.write(ASQ::at(1), high.into());
        let (low, high) = halves(self.completions.dma_address());
        bar.write(ACQ::at(0), low.into());
        bar.write(ACQ::at(1), high.into());
        bar.write_reg(
            CC::zeroed()
                .with_const_iosqes::<SUBMISSION_SHIFT>()
                .with_const_iocqes::<COMPLETION_SHIFT>()
                .with_en(true),
        );
        self.wait_ready(true)
    }

    /// Disables the controller. It does no DMA when it is not ready any more.
    fn stop(&self) -> Result {
        self.bar.write_reg(CC::zeroed());
        self.wait_ready(false)
    }

    fn wait_ready(&self, ready: bool) -> Result {
        // The register has the longest time that the controller may take.
        let limit = Delta::from_millis(500 * i64::from(self.bar.read(CAP_LOW).to().get()) + 500);
        let status = || match self.bar.read(CSTS) {
            // Reads from a device that is gone, or in the error state, return this.
            status if status.into_raw() == u32::MAX => Err(EIO),
            status => Ok(status),
        };
        read_poll_timeout(status, |status| status.rdy() == ready, PAUSE, limit)?;
        Ok(())
    }

    /// Makes the device write its identity. Call this only once: it does not advance
    /// the queue any further.
    fn identify(&self) -> Result<&Coherent<Identity>> {
        let command = Command::identify_controller(self.identity.dma_address());
        io_project!(self.submissions, [try: 0]).copy_write(command);
        // The write to the doorbell is ordered after the writes to memory.
        self.bar.write_reg(SQ0TDBL::zeroed().with_const_tail::<1>());

        // An interrupt would work as well, but the sample is shorter without one.
        let status = || Ok(Le16(io_read!(self.completions, [try: 0].status.0)).get());
        // The phase of a new queue is 1; its memory contains 0.
        let status = read_poll_timeout(status, |status| status & 1 == 1, PAUSE, COMMAND_LIMIT)?;
        // The device wrote its other data before this, so read the data after it.
        dma_mb(Read);
        self.take_completion()?;
        match status >> 1 {
            0 => Ok(&self.identity),
            _ => Err(EIO),
        }
    }

    /// Reports that the first entry of the completion queue was read.
    fn take_completion(&self) -> Result {
        // The distance of this doorbell from the other one is known only at run time,
        // so the access is checked when it is made.
        let stride = 4usize << self.bar.read(CAP_HIGH).dstrd().get();
        self.bar.try_write32(1, 0x1000 + stride)
    }
}

impl Drop for Controller<'_> {
    fn drop(&mut self) {
        // If the controller does not stop, this can do nothing more: the memory is
        // freed, and the IOMMU refuses DMA to IOVAs that are no longer mapped.
        let _ = self.stop();
    }
}

struct NvmeIdentify;

kernel::pci_device_table!(
    PCI_TABLE,
    <NvmeIdentify as pci::Driver>::IdInfo,
    // Anything of class storage, subclass non-volatile memory, interface NVMe.
    [(pci::DeviceId::from_class(0x010802, 0xff_ffff), ())]
);

impl pci::Driver for NvmeIdentify {
    type IdInfo = ();
    type Data<'bound> = Controller<'bound>;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        pdev.enable_device_mem()?;
        // Allow the device to do DMA.
        pdev.set_master();
        // The reach of the device's addresses: the default is 4 GiB, and on s390 the
        // window of a function usually starts there.
        //
        // SAFETY: Nothing was allocated or mapped for this device yet, and only
        // probe, which runs once at a time, does so.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };

        let controller = Controller::start(pdev)?;
        let identity = controller.identify()?;
        // Texts are padded with blanks; unprintable characters are escaped.
        let model = io_project!(identity, .model).copy_read();
        let serial = io_project!(identity, .serial).copy_read();
        let firmware = io_project!(identity, .firmware).copy_read();
        dev_info!(
            pdev,
            "model \"{}\" serial \"{}\" firmware \"{}\", read by DMA to {:#x}\n",
            BStr::from_bytes(model.trim_ascii()),
            BStr::from_bytes(serial.trim_ascii()),
            BStr::from_bytes(firmware.trim_ascii()),
            identity.dma_address(),
        );
        Ok(controller)
    }
}

kernel::module_pci_driver! {
    type: NvmeIdentify,
    name: "nvme_identify",
    authors: ["The authors of the s390 PCI IOMMU driver in Rust"],
    description: "Sample: identifies an NVMe controller by DMA",
    license: "GPL",
}
