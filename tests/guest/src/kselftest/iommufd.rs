// SPDX-License-Identifier: GPL-2.0
//! The kernel's iommufd selftests, on mock devices: they exercise the core on
//! a big-endian machine, with the driver present. Not on its functions.

use anyhow::Result;

use super::devices::Devices;
use super::run::{Expected, Known, Run, is_chosen};
use super::vfio::has_edat;
use crate::cmdline::Cmdline;
use crate::ktap::Suite;
use crate::sysfs;

const PROGRAMS: [&str; 2] = ["iommufd", "iommufd_fail_nth"];

const EXPECTED: [Expected; 1] = [Expected {
    program: "iommufd",
    test: "hugepages",
    only: &[],
    says: "Skipping buffer_size",
    why: "no huge pages: the emulated CPU has no EDAT",
    is_lacking: |_, _| Ok(!has_edat(&sysfs::read("/proc/cpuinfo")?)),
}];

/// Failures that the kernel with the C driver shows as well.
const KNOWN: [Known; 0] = [];

/// Runs them; `guest.only=` is a part of the names of the programs to run.
pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let devices = Devices::none();
    for program in PROGRAMS {
        if !is_chosen(cmdline, "guest.only", program) {
            continue;
        }
        let on = "mock devices";
        let run = Run {
            folder: "iommu",
            program,
            on,
            devices: &devices,
            expected: &EXPECTED,
            known: &KNOWN,
        };
        run.run(suite, &[], 0);
    }
    Ok(())
}
