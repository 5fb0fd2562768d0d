// SPDX-License-Identifier: GPL-2.0
//! Boots on the emulator of `make machine`, whose functions are as real machines
//! have them: the suites of the usual boots, and those that only it can run.

use super::{boot_of, variant, Suite, Variant};
use crate::{
    guest::Machine,
    kselftest,
    project::{more_words, text},
    qemu::USUAL,
    selftests,
};
use anyhow::Result;

/// A hit in a function's cache that the tables do not bear out any more. In strict
/// mode no access of a device comes after its unmap.
const STALE: &str = "s390_pci_iotlb_stale";

/// Functions keep what they found in tables until they are told to forget it.
const NOT_SHADOWED: &str = "-global zpci.refresh=off -global zpci.x-rereg-keeps=on";

pub(super) const BOOTS: [Variant; 9] = [
    variant(
        "identity",
        "iommu.passthrough=1 guest.type=identity memhp_default_state=online_movable \
            s390_iommu_aperture=0 guest.suite=boot,nvme,nic,dma,hotplug,memory",
        "-global zpci.relaxed-translation=on -m maxmem=3G \
            -object memory-backend-ram,id=later,size=1G,reserve=off \
            -device virtio-mem-ccw,id=memory-later,memdev=later",
    ),
    // The DMA API translates, the tests attach identity and leave it.
    variant(
        "relaxed",
        "guest.suite=boot,transitions,fallback",
        "-global zpci.relaxed-translation=on",
    ),
    // The first drive has three levels and the second five, the cards four and five.
    variant(
        "levels",
        "s390_iommu_aperture=0 guest.levels=5 \
            guest.ends=0001:0x3ffffffffff,0002:0x1fffffffffffff \
            guest.suite=boot,nvme,nic,seeing,dma,attach,transitions,stress",
        "-global zpci.dtsm=0x70 -device zpci,uid=1,target=nvme,edma=0x3ffffffffff \
            -device zpci,uid=2,target=igb,edma=0x1fffffffffffff",
    ),
    // The drives have windows of 2 GiB, one of which begins in the middle of the other.
    variant(
        "windows",
        "s390_iommu_aperture=0 guest.starts=0020:0x140000000 \
            guest.ends=0001:0x17fffffff,0020:0x1bfffffff guest.suite=boot,nvme,windows,nic",
        "-device zpci,uid=1,target=nvme,edma=0x17fffffff \
            -device zpci,uid=32,target=nvme1,sdma=0x140000000,edma=0x1bfffffff",
    ),
    variant("iotlb-lazy", "", NOT_SHADOWED),
    variant(
        "iotlb-strict",
        "iommu.strict=1",
        "-global zpci.refresh=off -global zpci.x-rereg-keeps=on -trace s390_pci_iotlb_stale",
    ),
    variant(
        "vfs",
        "guest.suite=boot,vfs,nic",
        "-global s390-pcihost.extended-config=on",
    ),
    // What is run on real machines, beside a drive that is used
    variant("hardware", "guest.suite=hardware", NOT_SHADOWED),
    // Until the refresh after a re-registration a function may hit the old table.
    variant("replace", "guest.suite=gapless", NOT_SHADOWED),
];

/// The kernel's selftests of VFIO, and ours, that other boots have to skip: VFs made by
/// vfio-pci, and huge pages. vfio-pci cannot claim the VFs of its PF on s390, where they
/// become VFs after its notifier was called: it has their identity, and igbvf is a module.
const SELFTESTS: Variant = variant(
    "selftests",
    "guest.mode=kselftest guest.suite=vfio,s390_iommu guest.only=sriov,dma_mapping_test,hugetlb \
        vfio_pci.enable_sriov=1 vfio_pci.ids=8086:10ca hugepagesz=1M hugepages=16",
    "-global s390-pcihost.extended-config=on",
);

/// The guest names the functions whose instructions are refused.
const FAULTS: Variant = variant(
    "faults",
    "guest.suite=faults",
    "-device zpci,id=zpci-nvme,target=nvme",
);

impl Suite<'_> {
    /// All boots on this emulator, or that of `BOOT=`; it is built if there is none.
    pub(super) fn machine(&mut self) -> Result<()> {
        let named = text("BOOT");
        let is_wanted = |variant: &&Variant| named.as_ref().is_none_or(|name| name == variant.name);
        let suites: Vec<&Variant> = BOOTS.iter().chain([&FAULTS]).collect();
        for (mut boots, has_programs) in [(suites, false), (vec![&SELFTESTS], true)] {
            boots.retain(is_wanted);
            if boots.is_empty() {
                continue;
            }
            let kernel = self.kernel_for("machine")?;
            let programs = has_programs.then(|| selftests::build(self.project, &kernel));
            let programs = programs.transpose()?.unwrap_or_default();
            let machine = Machine::with_files(self.project, &kernel, &programs)?;
            let machine = machine.corrected(self.project)?;
            // The cache is free for others while guests run.
            drop(kernel);
            for variant in boots {
                let name = format!("machine-{}", variant.name);
                let mut boot = boot_of(&machine, &name, variant);
                if has_programs {
                    boot.devices = &kselftest::DEVICES;
                    boot.plugged = USUAL;
                    boot.generators = 0;
                }
                boot.append += &format!(" {}", more_words());
                self.run_boot(&name, &boot, STALE);
            }
        }
        Ok(())
    }
}
