// SPDX-License-Identifier: GPL-2.0
//! The kernel's iommufd selftests. They use mock devices, not the driver's functions, so
//! they test the core on a big-endian machine with the driver present.

use anyhow::Result;

use super::devices::Devices;
use super::run::{Expected, Known, Run, is_chosen};
use crate::cmdline::Cmdline;
use crate::ktap::Suite;

const PROGRAMS: [&str; 2] = ["iommufd", "iommufd_fail_nth"];

const EXPECTED: [Expected; 1] = [Expected {
    program: "iommufd",
    test: ".no_viommu.",
    only: &[],
    says: "Skipping test for variant no_viommu",
    why: "not a test of devices without a vIOMMU",
    is_lacking: |_, _| Ok(true),
}];

/// Failures that also occur with the C driver. The reasons are the emulated machine, the
/// kernel's s390 configuration, and bugs of the core, some of them on big endian only.
const KNOWN: [Known; 5] = [
    Known {
        program: "iommufd",
        tests: &[
            ".access_domain_destory",
            "one_domain_hugepage.basic",
            "one_domain_hugepage.all_aligns",
            "two_domains_hugepage.basic",
            "two_domains_hugepage.all_aligns",
            "_huge.",
            ".huge_map",
        ],
        why: "no huge pages: the emulated CPU has no EDAT",
    },
    Known {
        program: "iommufd",
        tests: &[
            "mock_domain.alloc_hwpt_nested",
            "mock_domain_limit.alloc_hwpt_nested",
            "mock_viommu.viommu_alloc_nested_iopf",
            ".pasid_attach",
        ],
        why: "no I/O page faults: nothing on s390 selects IOMMU_IOPF",
    },
    Known {
        program: "iommufd",
        tests: &[".dmabuf_simple", ".dmabuf_revoke"],
        why: "the mock device returns 0 for a buffer, not its descriptor \
              (iommufd_test_dmabuf_get())",
    },
    Known {
        program: "iommufd",
        tests: &[
            "dirty8k.get_dirty_bitmap",
            "dirty16k.get_dirty_bitmap",
            "dirty64k.get_dirty_bitmap",
            "dirty320k.get_dirty_bitmap",
        ],
        why: "big-endian: the mock device copies the first bytes of a bitmap's last word, \
              the bits are in the last ones (iommufd_test_dirty())",
    },
    Known {
        program: "iommufd",
        tests: &[
            "dirty128k.get_dirty_bitmap",
            "dirty64M.get_dirty_bitmap",
            "dirty128M.get_dirty_bitmap",
        ],
        why: "big-endian: a bitmap that is not aligned to 8 bytes is filled in aligned words \
              (iova_bitmap_set())",
    },
];

/// Runs the programs, or those whose names contain a part given in `guest.only=`.
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
