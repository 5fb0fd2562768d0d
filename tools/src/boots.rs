// SPDX-License-Identifier: GPL-2.0
//! The boots of `make test` and `make torture`.

use crate::{
    kselftest,
    prelude::*,
    qemu::{EVERYTHING, ONE_THREAD, THREADED, USUAL},
};

/// The driver's KUnit suites run at boot; the guest's program reads their results.
const KUNIT: &str = "kunit.enable=1 kunit.autorun=1 kunit.filter_glob=s390_iommu*";

/// A boot, as far as it differs from [`FULL`].
pub struct Variant {
    pub name: &'static str,
    /// For the kernel's command line, where the guest's program reads it as well.
    pub append: &'static str,
    /// Whether [`KUNIT`] is there too.
    pub kunit: bool,
    /// The fragments of the kernel; by default it is that of the other parts.
    pub kernel: &'static str,
    pub clock: &'static str,
    pub arguments: &'static str,
    pub plugged: &'static str,
    pub generators: usize,
    pub storm: Option<&'static str>,
    pub memory: u32,
    /// Whether the guest has the selftests.
    pub selftests: bool,
    /// Whether kernels of both drivers are on the first drive.
    pub kernels: bool,
}

/// All that the suites of the guest's program can use.
pub const FULL: Variant = Variant {
    name: "",
    append: "",
    kunit: true,
    kernel: "",
    clock: THREADED,
    arguments: "",
    plugged: EVERYTHING,
    // As many as a domain holds without further memory.
    generators: 6,
    storm: None,
    memory: 2,
    selftests: false,
    kernels: false,
};
/// The drives and cards alone.
const PLAIN: Variant = Variant {
    kunit: false,
    generators: 0,
    ..FULL
};
/// One device of each kind comes and goes.
const STORM: Variant = Variant {
    plugged: "nvme igb e1000e virtio nvme1",
    ..PLAIN
};

pub const fn full(name: &'static str, append: &'static str, arguments: &'static str) -> Variant {
    Variant {
        name,
        append,
        arguments,
        ..FULL
    }
}

/// Functions cache table entries until the driver refreshes them.
const NOT_SHADOWED: &str = "-global zpci.refresh=off -global zpci.x-rereg-keeps=on";

/// The first drive's zPCI device has a name, so that its instructions can be refused until
/// the drive is unplugged.
pub const NAMED: &str = "-device zpci,id=zpci-nvme,target=nvme";

/// `PART=guest`. Memory decides how large the windows are: those of a machine with
/// 32 GiB are known to the last digit.
pub const GUEST: [Variant; 9] = [
    full("lazy", "", ""),
    full("strict", "iommu.strict=1", ""),
    full(
        "parameters",
        "iommu.passthrough=1 s390_iommu=strict s390_iommu_aperture=2 \
            guest.suite=boot,nvme,nic,counters",
        "",
    ),
    Variant {
        memory: 32,
        ..full("memory", "guest.suite=boot,nvme,nic,counters", "")
    },
    full(
        "aperture-1",
        "iommu.strict=1 s390_iommu_aperture=1 guest.suite=boot,nvme",
        "",
    ),
    full(
        "aperture-64",
        "iommu.strict=1 s390_iommu_aperture=64 guest.suite=boot,nvme",
        "",
    ),
    full(
        "aperture-512",
        "iommu.strict=1 s390_iommu_aperture=512 guest.suite=boot,nvme",
        "",
    ),
    full(
        "aperture-0",
        "iommu.strict=1 s390_iommu_aperture=0 guest.suite=boot,nvme",
        "",
    ),
    // The machine may get more memory later: windows reach to its end.
    full("maxmem", "iommu.strict=1 guest.suite=nvme", "-m maxmem=64G"),
];

/// `PART=machine`: the functions are as real machines have them.
pub const MACHINE: [Variant; 12] = [
    full(
        "identity",
        "iommu.passthrough=1 guest.type=identity memhp_default_state=online_movable \
            s390_iommu_aperture=0 guest.suite=boot,nvme,nic,dma,hotplug,memory",
        "-global zpci.relaxed-translation=on -m maxmem=3G \
            -object memory-backend-ram,id=later,size=1G,reserve=off \
            -device virtio-mem-ccw,id=memory-later,memdev=later",
    ),
    // The DMA API translates, the tests attach identity and leave it.
    full(
        "relaxed",
        "guest.suite=boot,transitions,fallback",
        "-global zpci.relaxed-translation=on",
    ),
    // The first drive has three levels and the second five, the cards four and five.
    full(
        "levels",
        "s390_iommu_aperture=0 guest.levels=5 \
            guest.ends=0001:0x3ffffffffff,0002:0x1fffffffffffff \
            guest.suite=boot,nvme,nic,observability,dma,attach,transitions,stress",
        "-global zpci.dtsm=0x70 -device zpci,uid=1,target=nvme,edma=0x3ffffffffff \
            -device zpci,uid=2,target=igb,edma=0x1fffffffffffff",
    ),
    // The drives have windows of 2 GiB, one of which begins in the middle of the other.
    full(
        "windows",
        "s390_iommu_aperture=0 guest.starts=0020:0x140000000 \
            guest.ends=0001:0x17fffffff,0020:0x1bfffffff guest.suite=boot,nvme,windows,nic",
        "-device zpci,uid=1,target=nvme,edma=0x17fffffff \
            -device zpci,uid=32,target=nvme1,sdma=0x140000000,edma=0x1bfffffff",
    ),
    full("iotlb-lazy", "", NOT_SHADOWED),
    full(
        "iotlb-strict",
        "iommu.strict=1",
        "-global zpci.refresh=off -global zpci.x-rereg-keeps=on -trace s390_pci_iotlb_stale",
    ),
    full(
        "vfs",
        "guest.suite=boot,vfs,nic",
        "-global s390-pcihost.extended-config=on",
    ),
    // What is run on real machines, beside a drive that is used
    full("hardware", "guest.suite=hardware", NOT_SHADOWED),
    // Until the refresh after a re-registration a function may hit the old table.
    full("replace", "guest.suite=gapless", NOT_SHADOWED),
    // The guest names the functions whose instructions are refused.
    full("faults", "guest.suite=faults", NAMED),
    // The same, and refreshes are lost.
    full(
        "lost",
        "iommu.strict=1 guest.suite=lost",
        "-global zpci.refresh=off -global zpci.x-rereg-keeps=on \
            -device zpci,id=zpci-nvme,target=nvme",
    ),
    // The kernel's selftests of VFIO, and ours, that other boots have to skip: VFs made by
    // vfio-pci, and huge pages. vfio-pci cannot claim the VFs of its PF on s390, where they
    // become VFs after its notifier was called: it has their identity, and igbvf is a
    // module.
    Variant {
        plugged: USUAL,
        generators: 0,
        selftests: true,
        ..full(
            "selftests",
            "guest.mode=kselftest guest.suite=vfio,s390_iommu \
                guest.only=sriov,dma_mapping_test,hugetlb vfio_pci.enable_sriov=1 \
                vfio_pci.ids=8086:10ca hugepagesz=1M hugepages=16",
            "-global s390-pcihost.extended-config=on",
        )
    },
];

/// `make torture`.
pub const TORTURE: [Variant; 12] = [
    full("suites", "iommu.strict=1", ""),
    // What `suites` skips: a machine that caches, refuses, has narrow windows and VFs, and
    // gets memory.
    full(
        "machine",
        "memhp_default_state=online_movable guest.starts=0020:0x140000000 \
            guest.ends=0001:0x17fffffff,0020:0x1bfffffff \
            guest.suite=faults,gapless,windows,memory,vfs",
        "-global zpci.refresh=off -global zpci.x-rereg-keeps=on \
            -global s390-pcihost.extended-config=on \
            -device zpci,id=zpci-nvme,uid=1,target=nvme,edma=0x17fffffff \
            -device zpci,uid=32,target=nvme1,sdma=0x140000000,edma=0x1bfffffff \
            -m maxmem=3G -object memory-backend-ram,id=later,size=1G,reserve=off \
            -device virtio-mem-ccw,id=memory-later,memdev=later",
    ),
    Variant {
        name: "storms",
        append: "guest.suite=refusals,storms,killed guest.rounds=6 \
            nvme_core.admin_timeout=10",
        arguments: NAMED,
        ..STORM
    },
    Variant {
        name: "oracle",
        append: "guest.suite=oracle,hostile",
        ..STORM
    },
    // The second drive needs deeper tables than the first, so that domains grow.
    Variant {
        name: "allocations",
        append: "s390_iommu_aperture=0 guest.suite=failing,allocations",
        arguments: "-global zpci.dtsm=0x70 -device zpci,uid=1,target=nvme,edma=0x3ffffffffff",
        ..STORM
    },
    // A device comes and goes while the kernel starts.
    Variant {
        name: "start",
        append: "driver_async_probe=* guest.suite=boot,nvme,nic guest.quiet=12",
        storm: Some("virtio"),
        ..PLAIN
    },
    Variant {
        name: "reloads",
        append: "guest.suite=reloads guest.driver=later slab_debug=U,kmalloc-*",
        kernel: "module",
        plugged: "",
        ..PLAIN
    },
    // Many rounds, on a kernel without the slow checks.
    Variant {
        name: "fast",
        append: "guest.suite=refusals,storms,killed nvme_core.admin_timeout=10",
        kernel: FAST,
        arguments: NAMED,
        ..STORM
    },
    Variant {
        name: "processors",
        append: "guest.suite=processors guest.rounds=6",
        clock: ONE_THREAD,
        ..PLAIN
    },
    Variant {
        name: "kexec",
        append: "guest.suite=kexec",
        kernel: FAST,
        memory: 3,
        kernels: true,
        ..PLAIN
    },
    // The kernel finds data races. It delays accesses so much that the cards hardly move data.
    Variant {
        name: "races",
        append: "guest.suite=oracle,stress,nvme",
        kernel: "rust,kcsan",
        ..STORM
    },
    // With memory for the kernel that starts after the crash.
    Variant {
        name: "crash",
        append: "guest.suite=crash crashkernel=768M",
        memory: 3,
        kernels: true,
        ..PLAIN
    },
];
/// The fragments of a kernel without the slow checks.
pub const FAST: &str = "rust";

impl Variant {
    pub fn boot<'a>(&self, machine: &'a Machine, name: &'a str, limit: Duration) -> Boot<'a> {
        let kunit = if self.kunit { KUNIT } else { "" };
        let append = format!("guest.mode=test {kunit} {}", self.append);
        Boot {
            clock: self.clock,
            arguments: self.arguments,
            devices: if self.selftests {
                kselftest::DEVICES
            } else {
                ""
            },
            plugged: self.plugged,
            generators: self.generators,
            storm: self.storm,
            memory: self.memory,
            // Races want more than two.
            processors: 4,
            ..machine.boot(name, append, limit)
        }
    }
}
