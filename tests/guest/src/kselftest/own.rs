// SPDX-License-Identifier: GPL-2.0
//! This project's selftests, `tests/selftests`. The only expected skip is that of huge
//! pages on a machine without them.

use anyhow::Result;

use super::devices::Devices;
use super::run::{Expected, Run, is_chosen};
use super::vfio::{NO_EDAT, has_no_pages};
use crate::block::MIB;
use crate::cmdline::Cmdline;
use crate::ktap::Suite;

/// Directory of the programs
const FOLDER: &str = "s390_iommu";

/// The programs, the devices that they run on, and how many accesses the IOMMU must
/// refuse. The programs also count the refusals themselves, test by test.
const TESTS: [(&str, &[&str], usize); 6] = [
    ("bad_input_test", &["nvme"], 0),
    ("bad_input_test", &["igb"], 0),
    ("translation_test", &["igb", "second igb"], 5 * 8),
    ("lifetime_test", &["igb"], 0),
    ("mapping_test", &["igb"], 0),
    // One in each of five modes
    (HUGE, &["igb"], 5),
];
const HUGE: &str = "hugetlb_test";

const EXPECTED: [Expected; 1] = [Expected {
    program: HUGE,
    test: "",
    only: &[],
    says: "mmap() failed",
    why: NO_EDAT,
    is_lacking: |_, _| Ok(has_no_pages(MIB)),
}];

/// Runs the programs, or those whose names contain a part given in `guest.only=`.
pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let devices = Devices::take()?;
    for (program, kinds, refused) in TESTS {
        if !is_chosen(cmdline, "guest.only", program) {
            continue;
        }
        let mut addresses = Vec::new();
        for kind in kinds {
            addresses.push(devices.get(kind)?.function.address.as_str());
        }
        let on = kinds[0];
        let refused = if program == HUGE && has_no_pages(MIB) { 0 } else { refused };
        let expected = &EXPECTED;
        let run = Run { folder: FOLDER, program, on, devices: &devices, expected, known: &[] };
        run.run(suite, &addresses, refused);
    }
    suite.test("the disk works afterwards", || devices.give_back());
    Ok(())
}
