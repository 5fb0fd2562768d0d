// SPDX-License-Identifier: GPL-2.0
//! This project's selftests, `tests/selftests`. Nothing in them is skipped.

use anyhow::Result;

use super::devices::Devices;
use super::run::{Run, is_chosen};
use crate::cmdline::Cmdline;
use crate::ktap::Suite;

/// Folder of the programs.
const FOLDER: &str = "s390_iommu";

/// A program, what it is run on, and how many accesses must be refused in it.
/// The programs count those themselves, test by test.
const TESTS: [(&str, &[&str], usize); 5] = [
    ("bad_input_test", &["nvme"], 0),
    ("bad_input_test", &["igb"], 0),
    ("translation_test", &["igb", "second igb"], 5 * 8),
    ("lifetime_test", &["igb"], 0),
    ("mapping_test", &["igb"], 0),
];

/// Runs them; `guest.only=` is a part of the names of the programs to run.
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
        let run = Run { folder: FOLDER, program, on, devices: &devices, expected: &[], known: &[] };
        run.run(suite, &addresses, refused);
    }
    suite.test("the disk works afterwards", || devices.give_back());
    Ok(())
}
