// SPDX-License-Identifier: GPL-2.0

//! The IOMMU driver of the s390 PCI subsystem (zPCI).
//!
//! The operations that the IOMMU core calls ([`iommu::Driver`] and
//! [`iommu::PagingDomain`]), and the module.
//!
//! | file              | contents                                                  |
//! |-------------------|-----------------------------------------------------------|
//! | `domain`          | a domain, as the core sees it                             |
//! | `address_space`   | a table and the functions attached to it                  |
//! | `…/flush`         | flushes                                                   |
//! | `…/members`       | the functions, read without a lock                        |
//! | `…/page_counts`   | per-CPU counts of mapped and unmapped pages               |
//! | `…/pending`       | what a full flush has to refresh                          |
//! | `…/readers`       | waiting for flushes under way                             |
//! | `…/share`         | a share in an address space: map, unmap                   |
//! | `dma_table`       | translation tables, and the protocol that keeps them right |
//! | `…/format`        | levels and entries                                        |
//! | `…/map`, `unmap`, `walk` | map, unmap and reclaim, lookup                     |
//! | `…/table`, `memory` | tables in memory, and their allocation                  |
//! | `…/walk_lock`     | reading tables while others unmap                         |
//! | `…/dump`          | what a table maps, merged into ranges                     |
//! | `function`        | a function and the attach transaction                     |
//! | `…/registration`  | registering its table with the machine                    |
//! | `zpci`, `…/insn`  | `struct zpci_dev`; the machine's instructions             |
//! | `subsystem`       | the calls of the s390 PCI subsystem                       |
//! | `debugfs`, `trace`| debugfs files and trace events                            |
//! | `range`           | ranges of IOVAs: windows, reserved regions                |
//! | `rust/`           | abstractions that are meant for `rust/kernel`             |

use kernel::{
    bindings,
    device::Device,
    io::PhysAddr,
    prelude::*,
    sync::{
        atomic::Relaxed,
        ArcBorrow,
        SetOnce, //
    }, //
};

mod address_space;
mod debugfs;
mod dma_table;
mod domain;
mod function;
#[cfg(CONFIG_S390_IOMMU_RUST_KUNIT_TEST)]
mod kunit;
mod range;
mod rust {
    pub(crate) mod atomic;
    pub(crate) mod iommu;
    pub(crate) mod seq_file;
}
mod subsystem;
mod trace;
mod zpci;

use address_space::members::Member;
use dma_table::{
    memory::TablePages,
    Depth,
    DmaTable,
    Vacant,
    LARGE_PAGE_SIZE,
    PAGE_SIZE, //
};
use domain::{
    Domain,
    Paging, //
};
use function::Function;
use iommu::{
    Capability,
    Gather,
    Gfp,
    Ops,
    OpsTable,
    Probed,
    Prot,
    ResvRegions,
    StaticDomain, //
};
use rust::{
    atomic,
    iommu,
    seq_file, //
};
use subsystem::{
    Service,
    SubsystemOps, //
};
use zpci::{
    Iota,
    Zdev, //
};

module! {
    type: S390Iommu,
    name: "s390_iommu",
    authors: ["The s390 IOMMU in Rust contributors"],
    description: "IOMMU driver for s390 PCI functions (zPCI)",
    license: "GPL",
    params: {
        large_pages: u8 {
            default: 2,
            description: "Large pages: 0 off, 1 on, 2 by the machine (on under KVM and QEMU)",
        },
    },
}

/// The version, for the boot log and for `modinfo`.
macro_rules! version {
    () => {
        "0.1.0"
    };
}

/// The field `version` of `modinfo`, which `module!` cannot set. For a built-in driver it
/// starts with the module's name.
const MODINFO: &str = if cfg!(MODULE) {
    concat!("version=", version!(), "\0")
} else {
    concat!("s390_iommu.version=", version!(), "\0")
};

#[link_section = ".modinfo"]
#[used(compiler)]
static MODINFO_VERSION: [u8; MODINFO.len()] = *MODINFO.as_bytes().first_chunk().unwrap();

/// The domain that blocks all DMA.
static BLOCKED: StaticDomain = Ops::<S390Iommu>::blocked();
/// The domain that does not translate.
static IDENTITY: StaticDomain = Ops::<S390Iommu>::identity();

/// Settings that are made once, when the driver starts.
struct Config {
    /// The operations for the IOMMU core.
    iommu_ops: OpsTable,
    /// The operations for the s390 PCI subsystem.
    subsystem_ops: SubsystemOps,
    /// The page sizes of new domains, as a bitmap.
    page_sizes: u64,
    /// The most bytes that a function may map.
    limit: u64,
    /// An empty table of each depth; blocked functions stay registered with one.
    empty: [Iota; 3],
    /// The tables that emptied entries may point to.
    vacant: Vacant,
}

impl Config {
    /// The empty table of a depth.
    fn empty(&self, depth: Depth) -> Iota {
        let [third, second, first] = self.empty;
        match depth {
            Depth::Third => third,
            Depth::Second => second,
            Depth::First => first,
        }
    }
}

static CONFIG: SetOnce<Config> = SetOnce::new();

fn config() -> Result<&'static Config> {
    CONFIG.as_ref().ok_or(ENODEV)
}

/// The loaded driver: what its start has set up, undone in this order.
pub(crate) struct S390Iommu {
    _service: Service,
    _debugfs: debugfs::Tree,
    _tables: SharedTables,
}

/// The tables that all functions and domains share.
struct SharedTables {
    /// The empty table of each depth.
    empty: Option<DmaTable<TablePages>>,
    vacant: Vacant,
}

impl Drop for SharedTables {
    fn drop(&mut self) {
        if function::EMPTY_IN_USE.load(Relaxed) {
            // A machine may still read it: better lost than used after free.
            core::mem::forget(self.empty.take());
            return;
        }
        self.empty = None;
        // SAFETY: They came from such memory. The driver outlives all domains, and the tree
        // above was the last one to use them.
        unsafe { self.vacant.free(&TablePages::of_domain(0)) }
    }
}

impl kernel::Module for S390Iommu {
    /// Starts the driver. Each step is a value with a `Drop`, so a step that fails undoes
    /// those before it.
    fn init(module: &'static ThisModule) -> Result<Self> {
        let large = uses_large_pages()?;
        let (tables, empty) = shared_tables()
            .inspect_err(|error| pr_err!("no memory for empty tables ({})\n", error.to_errno()))?;
        CONFIG.populate(Config {
            iommu_ops: Ops::<S390Iommu>::table(&BLOCKED, module),
            subsystem_ops: subsystem::ops(module),
            page_sizes: PAGE_SIZE | if large { LARGE_PAGE_SIZE } else { 0 },
            limit: zpci::aperture_limit(),
            empty,
            vacant: tables.vacant,
        });
        let debugfs = debugfs::Tree::new(module);
        let service = Service::register(&config()?.subsystem_ops).inspect_err(log_refusal)?;
        pr_info!(
            "IOMMU driver for zPCI in Rust, version {}, tables of {} to {} levels, pages of {}\n",
            version!(),
            Depth::Third.levels(),
            Depth::First.levels(),
            if large { "4 KiB and 1 MiB" } else { "4 KiB" }
        );
        // The last step, because the functions that it finds hold the module.
        service
            .start()
            .inspect_err(|error| pr_err!("cannot look for functions ({})\n", error.to_errno()))?;
        Ok(S390Iommu {
            _service: service,
            _debugfs: debugfs,
            _tables: tables,
        })
    }
}

/// Whether domains support large pages of 1 MiB.
fn uses_large_pages() -> Result<bool> {
    match module_parameters::large_pages.value() {
        0 => Ok(false),
        1 => Ok(true),
        2 => Ok(zpci::machine_takes_large_pages()),
        other => {
            pr_err!("large_pages={}: 0, 1 or 2 expected\n", other);
            Err(EINVAL)
        }
    }
}

/// The shared tables: the vacant ones, and an empty table of each depth.
fn shared_tables() -> Result<(SharedTables, [Iota; 3])> {
    let vacant = Vacant::new(&TablePages::of_domain(0), Gfp::KERNEL)?;
    let mut tables = SharedTables {
        empty: None,
        vacant,
    };
    let pages = TablePages::of_domain(0);
    let tree = tables.empty.insert(DmaTable::new(
        pages,
        vacant,
        Depth::Third,
        Gfp::KERNEL,
        Into::into,
    )?);
    let empty = |depth| -> Result<Iota> {
        tree.widen(depth, Gfp::KERNEL)?;
        Ok(tree.root().into())
    };
    let empty = [
        empty(Depth::Third)?,
        empty(Depth::Second)?,
        empty(Depth::First)?,
    ];
    Ok((tables, empty))
}

/// Logs why the subsystem refused the driver. A machine without zPCI is no error for a
/// kernel that runs on many machines.
fn log_refusal(error: &Error) {
    if *error == ENODEV {
        pr_notice!("the machine has no zPCI, or it is off\n");
    } else {
        pr_err!("there is another driver for zPCI functions\n");
    }
}

/// The function behind a device.
fn function(dev: &Device) -> Result<ArcBorrow<'_, Function>> {
    subsystem::function_of(dev).ok_or(ENODEV)
}

impl iommu::Driver for S390Iommu {
    type Domain = Paging;

    fn capable(dev: &Device, capability: Capability) -> bool {
        match capability {
            Capability::CacheCoherency => true,
            Capability::DeferredFlush => Zdev::of(dev).is_some_and(|zdev| !zdev.is_ism()),
        }
    }

    fn probe_device(dev: &Device) -> Result<Probed> {
        let zdev = function(dev)?.zdev();
        Ok(Probed {
            iommu: zdev.iommu(),
            shadow_on_flush: zdev.needs_refresh_to_map(),
        })
    }

    fn domain_alloc_paging(dev: &Device) -> Result<Pin<KBox<Domain>>> {
        let config = config()?;
        let domain = Domain::for_function(&*function(dev)?, config.page_sizes, config.vacant)?;
        subsystem::domain_made();
        Ok(domain)
    }

    fn identity_domain(dev: &Device) -> Option<&'static StaticDomain> {
        let may = function(dev).is_ok_and(|function| function.zdev().may_skip_translation());
        may.then_some(&IDENTITY)
    }

    fn resv_regions(dev: &Device, regions: &mut ResvRegions<'_>) -> Result {
        let function = function(dev)?;
        let reach = function.deepest().reach();
        for region in range::reserved(function.window(), reach)
            .into_iter()
            .flatten()
        {
            regions.reserve(region.start(), region.last())?;
        }
        Ok(())
    }

    fn attach_identity(dev: &Device) -> Result {
        function(dev)?.attach_identity(IDENTITY.as_raw())
    }

    fn attach_blocked(dev: &Device) {
        if let Ok(function) = function(dev) {
            function.block();
        }
    }
}

impl iommu::PagingDomain for Paging {
    type Driver = S390Iommu;

    const FREE: unsafe extern "C" fn(*mut bindings::iommu_domain) =
        subsystem::zpci_iommu_domain_free;

    fn attach(domain: &Domain, dev: &Device) -> Result {
        function(dev)?.attach(domain.space(), domain)
    }

    #[inline]
    unsafe fn map_pages(
        domain: &Domain,
        iova: u64,
        phys: PhysAddr,
        page_size: usize,
        count: usize,
        prot: Prot,
        gfp: Gfp,
        mapped: &mut usize,
    ) -> Result {
        let share = domain.share();
        // SAFETY: The caller's promise.
        unsafe { share.map(iova, phys, page_size, count, prot, gfp, mapped) }
    }

    #[inline]
    unsafe fn unmap_pages(domain: &Domain, iova: u64, size: usize, gather: &mut Gather) -> usize {
        // SAFETY: The caller's promise.
        unsafe { domain.share().unmap(iova, size as u64, gather) }
    }

    fn flush_all(domain: &Domain) {
        domain.space().flush_all();
    }

    #[inline]
    fn needs_flush(domain: &Domain) -> bool {
        domain.space().needs_flush()
    }

    #[inline]
    fn sync(domain: &Domain, gather: &mut Gather) {
        domain.space().sync(gather);
    }

    #[inline]
    fn sync_map(domain: &Domain, iova: u64, size: usize) -> Result {
        domain.space().sync_map(iova, size as u64)
    }

    #[inline]
    unsafe fn iova_to_phys(domain: &Domain, iova: u64) -> Option<PhysAddr> {
        // SAFETY: The caller's promise.
        unsafe { domain.share().lookup(iova) }
    }
}
