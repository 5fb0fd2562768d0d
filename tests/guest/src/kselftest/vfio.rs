// SPDX-License-Identifier: GPL-2.0
//! The kernel's VFIO selftests, on one function of each kind and with every backend:
//! type1 and type1v2 of VFIO's container, both of iommufd's compatibility container, and
//! an iommufd device.

use std::path::Path;

use anyhow::Result;

use super::devices::Devices;
use super::run::{Expected, Run, is_chosen, is_for};
use crate::block::{KIB, MIB};
use crate::cmdline::Cmdline;
use crate::ktap::Suite;

/// Number of backends
const BACKENDS: usize = 5;
/// Accesses to unmapped IOVAs: `memcpy_from_unmapped_iova` and
/// `memcpy_to_unmapped_iova` do one each, `mix_and_match` ten.
const UNMAPPED: usize = 12;

/// A program and the devices that it runs on.
struct Test {
    program: &'static str,
    /// The kinds of devices; empty means all.
    only: &'static [&'static str],
    /// How many accesses the IOMMU must refuse in total.
    refused: usize,
}

const TESTS: [Test; 6] = [
    Test { program: "vfio_iommufd_setup_test", only: &[], refused: 0 },
    Test { program: "vfio_pci_device_test", only: &[], refused: 0 },
    Test { program: "vfio_dma_mapping_mmio_test", only: &[], refused: 0 },
    Test { program: "vfio_dma_mapping_test", only: &[], refused: 0 },
    // The library has no driver for the other kinds.
    Test { program: "vfio_pci_driver_test", only: &["igb"], refused: UNMAPPED * BACKENDS },
    Test { program: "vfio_pci_sriov_uapi_test", only: &["igb"], refused: 0 },
];

/// Capability ID of MSI
const MSI: u8 = 5;

/// The program that runs on all functions at once
const PARALLEL: &str = "vfio_pci_device_init_perf_test";

pub const NO_EDAT: &str = "no huge pages: the emulated CPU has no EDAT";

const EXPECTED: [Expected; 4] = [
    Expected {
        program: "vfio_dma_mapping_test",
        test: "_hugetlb_1mb",
        only: &[],
        says: "mmap() failed",
        why: NO_EDAT,
        is_lacking: |_, _| Ok(has_no_pages(MIB)),
    },
    Expected {
        program: "vfio_dma_mapping_test",
        test: "_hugetlb_2gb",
        only: &[],
        says: "mmap() failed",
        why: "no huge pages of 2 GiB: the emulated CPU has no EDAT 2",
        is_lacking: |_, _| Ok(has_no_pages(2048 * MIB)),
    },
    Expected {
        program: "vfio_pci_device_test",
        test: ".msi.",
        only: &["nvme", "virtio-rng", "xhci"],
        says: "not supported",
        why: "the emulated function has MSI-X but no MSI",
        is_lacking: |devices, kind| Ok(!devices.get(kind)?.function.has_capability(MSI)?),
    },
    Expected {
        program: "vfio_pci_sriov_uapi_test",
        test: "",
        only: &[],
        says: "SR-IOV may not be supported",
        why: "the emulator has only 256 bytes of config space: no SR-IOV capability",
        is_lacking: |devices, kind| devices.get(kind)?.function.config_size().map(|n| n <= 256),
    },
];

/// Runs the programs on all kinds of functions. `guest.only=` selects programs,
/// `guest.kind=` kinds, both by a part of the name.
pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let is_chosen = |key, name| is_chosen(cmdline, key, name);
    let devices = Devices::take()?;
    for test in TESTS.iter().filter(|test| is_chosen("guest.only", test.program)) {
        let kinds = devices.iter().filter(|d| is_for(test.only, d.kind));
        for device in kinds.filter(|device| is_chosen("guest.kind", device.kind)) {
            let arguments = [device.function.address.as_str()];
            let run = new_run(&devices, device.kind, test.program);
            run.run(suite, &arguments, test.refused);
        }
    }
    if is_chosen("guest.only", PARALLEL) {
        let addresses: Vec<&str> =
            devices.iter().map(|device| device.function.address.as_str()).collect();
        new_run(&devices, "all functions", PARALLEL).run(suite, &addresses, 0);
    }
    suite.test("the disk works afterwards", || devices.give_back());
    Ok(())
}

/// Whether the kernel lacks huge pages of this size.
pub fn has_no_pages(size: usize) -> bool {
    !Path::new(&format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size / KIB)).exists()
}

fn new_run<'a>(devices: &'a Devices, on: &'a str, program: &'a str) -> Run<'a> {
    Run { folder: "vfio", program, on, devices, expected: &EXPECTED, known: &[] }
}
