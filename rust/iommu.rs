// SPDX-License-Identifier: GPL-2.0

//! A safe abstraction of the driver side of the IOMMU API.
//!
//! An IOMMU driver implements [`Driver`] (what concerns a device) and
//! [`PagingDomain`] (what concerns an address space), and registers each of its
//! IOMMUs with the operations that [`Ops`] generates from the two. Entry points
//! for C only convert arguments and results.
//!
//! Nothing here knows of a particular IOMMU; it is meant to move to
//! `rust/kernel/iommu/`.
//!
//! C headers: [`include/linux/iommu.h`](srctree/include/linux/iommu.h),
//! [`drivers/iommu/iommu-pages.h`](srctree/drivers/iommu/iommu-pages.h).

mod domain;
mod ops;
mod pages;

use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    bindings,
    device::Device,
    error::to_result,
    io::PhysAddr,
    prelude::*, //
};

pub(crate) use self::{
    domain::{
        Domain,
        StaticDomain, //
    },
    ops::{
        Ops,
        OpsTable, //
    },
    pages::{
        alloc_pages,
        free_pages,
        Gather,
        PagesList, //
    }, //
};

/// How an allocation may be made. The core hands such flags through; they need
/// not be among the ones that the kernel crate has names for.
///
/// C: `gfp_t`.
#[derive(Clone, Copy)]
pub(crate) struct Gfp(bindings::gfp_t);

impl Gfp {
    /// May sleep.
    pub(crate) const KERNEL: Gfp = Gfp(bindings::GFP_KERNEL);
    /// May sleep; charged to whom the caller works for.
    pub(crate) const KERNEL_ACCOUNT: Gfp = Gfp(bindings::GFP_KERNEL_ACCOUNT);
}

/// What a device's IOMMU can do.
///
/// C: `enum iommu_cap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Capability {
    /// DMA is coherent with the caches (`IOMMU_CAP_CACHE_COHERENCY`).
    CacheCoherency,
    /// Flushes may be deferred and batched (`IOMMU_CAP_DEFERRED_FLUSH`).
    DeferredFlush,
}

/// Protection of a mapping: `IOMMU_READ`, `IOMMU_WRITE` and others.
#[derive(Clone, Copy)]
pub(crate) struct Prot(c_int);

impl From<c_int> for Prot {
    fn from(prot: c_int) -> Self {
        Prot(prot)
    }
}

impl Prot {
    /// Whether the device may write.
    #[inline]
    pub(crate) fn allows_writes(self) -> bool {
        self.0 as u32 & bindings::IOMMU_WRITE != 0
    }

    /// Whether the device may do anything at all.
    #[inline]
    pub(crate) fn allows_access(self) -> bool {
        self.0 as u32 & (bindings::IOMMU_READ | bindings::IOMMU_WRITE) != 0
    }
}

/// The list of reserved regions of a device.
pub(crate) struct ResvRegions<'a> {
    head: *mut bindings::list_head,
    lifetime: PhantomData<&'a mut bindings::list_head>,
}

impl ResvRegions<'_> {
    /// Adds the addresses from `start` to `last` (inclusive), never to be
    /// mapped.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn reserve(&mut self, start: u64, last: u64) -> Result {
        let length = (last - start).saturating_add(1);
        // SAFETY: No requirements on the arguments.
        let region = unsafe {
            bindings::iommu_alloc_resv_region(
                start,
                length as usize,
                0,
                bindings::iommu_resv_type_IOMMU_RESV_RESERVED,
                bindings::GFP_KERNEL,
            )
        };
        if region.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: `region` is new and on no list; `head` is a valid list for
        // `'_`.
        unsafe { bindings::list_add_tail(&raw mut (*region).list, self.head) };
        Ok(())
    }
}

/// What [`Driver::probe_device`] hands to the core.
pub(crate) struct Probed {
    /// The IOMMU of the device.
    pub(crate) iommu: NonNull<bindings::iommu_device>,
    /// Whether flushes keep a hypervisor's shadow in step, and so are dear
    /// (`shadow_on_flush`).
    pub(crate) shadow_on_flush: bool,
}

/// The operations of a driver on its devices.
pub(crate) trait Driver: Sized + 'static {
    /// Its address spaces.
    type Domain: PagingDomain<Driver = Self>;

    /// Whether the IOMMU of `dev` has a capability.
    fn capable(dev: &Device, capability: Capability) -> bool;

    /// Takes a device. Its DMA is blocked from here on, until a domain is
    /// attached.
    ///
    /// # Errors
    ///
    /// `ENODEV` if this driver does not have the device.
    fn probe_device(dev: &Device) -> Result<Probed>;

    /// A new, empty address space that suits `dev`.
    fn domain_alloc_paging(dev: &Device) -> Result<Pin<KBox<Domain<Self::Domain>>>>;

    /// The domain that does not translate, if `dev` can be attached to one.
    fn identity_domain(dev: &Device) -> Option<&'static StaticDomain>;

    /// Names the addresses that `dev` cannot use. What is attached, or whether
    /// anything is, makes no difference.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn resv_regions(dev: &Device, regions: &mut ResvRegions<'_>) -> Result;

    /// Lets `dev` do DMA without translation.
    ///
    /// # Errors
    ///
    /// Nothing has changed then.
    ///
    /// # Context
    ///
    /// May sleep; the group's mutex is held.
    fn attach_identity(dev: &Device) -> Result;

    /// Lets `dev` do no DMA. Cannot fail: the caller frees the old domain
    /// whatever happens.
    ///
    /// # Context
    ///
    /// May sleep; the group's mutex is held.
    fn attach_blocked(dev: &Device);
}

/// The operations of an address space that maps pages.
pub(crate) trait PagingDomain: Sized + Send + Sync + 'static {
    /// The driver it belongs to.
    type Driver: Driver<Domain = Self>;

    /// What the core calls to free a domain. A driver whose domains may outlive
    /// its devices, and who is held by either, names a function outside of its
    /// module here, which calls [`Ops::free`] and then lets the module go.
    const FREE: unsafe extern "C" fn(*mut bindings::iommu_domain) = Ops::<Self::Driver>::free;

    /// Attaches a device, from whatever it is attached to.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the two do not fit; the device stays where it was on every
    /// error.
    ///
    /// # Context
    ///
    /// May sleep; the group's mutex is held.
    fn attach(domain: &Domain<Self>, dev: &Device) -> Result;

    /// Maps `count` pages of `page_size` bytes, and sets `mapped` to how many bytes
    /// were mapped, from the start on: the core unmaps those after an error.
    ///
    /// # Safety
    ///
    /// Nobody else maps, unmaps or looks up anything in the range meanwhile.
    ///
    /// # Context
    ///
    /// As `gfp` says; may be atomic.
    // Those of the C function.
    #[allow(clippy::too_many_arguments)]
    unsafe fn map_pages(
        domain: &Domain<Self>,
        iova: u64,
        phys: PhysAddr,
        page_size: usize,
        count: usize,
        prot: Prot,
        gfp: Gfp,
        mapped: &mut usize,
    ) -> Result;

    /// Unmaps `size` bytes, up to the first address that is not mapped. Returns
    /// how many bytes were unmapped.
    ///
    /// # Safety
    ///
    /// As for [`PagingDomain::map_pages`].
    ///
    /// # Context
    ///
    /// May be atomic.
    unsafe fn unmap_pages(
        domain: &Domain<Self>,
        iova: u64,
        size: usize,
        gather: &mut Gather,
    ) -> usize;

    /// Makes devices forget everything that was unmapped with a queued gather
    /// before the call.
    ///
    /// # Context
    ///
    /// May be atomic.
    fn flush_all(domain: &Domain<Self>);

    /// Whether any device needs a refresh after what was mapped or unmapped. A full
    /// barrier between the stores to tables and what the answer leads to.
    fn needs_flush(domain: &Domain<Self>) -> bool;

    /// Makes devices forget what is in the gather, and frees the pages that it
    /// holds. Called if [`PagingDomain::needs_flush`] or if it holds any.
    ///
    /// # Context
    ///
    /// May be atomic.
    fn sync(domain: &Domain<Self>, gather: &mut Gather);

    /// Makes devices see `size` bytes (not 0) that were mapped from `iova` on.
    /// Called if [`PagingDomain::needs_flush`].
    ///
    /// # Errors
    ///
    /// The core unmaps the range then.
    ///
    /// # Context
    ///
    /// May be atomic.
    fn sync_map(domain: &Domain<Self>, iova: u64, size: usize) -> Result;

    /// The physical address behind an IOVA.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that holds `iova` meanwhile.
    unsafe fn iova_to_phys(domain: &Domain<Self>, iova: u64) -> Option<PhysAddr>;
}

/// An IOMMU that the core knows of.
///
/// C: `iommu_device_register()` and `iommu_device_sysfs_add()`.
///
/// # Invariants
///
/// `raw` is registered.
pub(crate) struct Registration {
    raw: NonNull<bindings::iommu_device>,
}

impl Registration {
    /// Registers an IOMMU under `/sys/class/iommu/` as the name that `format`
    /// makes of `id`.
    ///
    /// # Safety
    ///
    /// `raw` is valid, and not registered, for as long as the registration
    /// lives. `format` has one conversion, of an unsigned integer.
    ///
    /// # Errors
    ///
    /// What sysfs and the core say; nothing is registered then.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) unsafe fn new(
        raw: NonNull<bindings::iommu_device>,
        ops: &'static OpsTable,
        format: &'static CStr,
        id: u32,
    ) -> Result<Self> {
        let iommu = raw.as_ptr();
        // SAFETY: The caller's promise.
        to_result(unsafe {
            bindings::iommu_device_sysfs_add(
                iommu,
                ptr::null_mut(),
                ptr::null_mut(),
                format.as_char_ptr(),
                id,
            )
        })?;
        // SAFETY: The caller's promise; `ops` is static.
        let registered =
            unsafe { bindings::iommu_device_register(iommu, &raw const ops.0, ptr::null_mut()) };
        if let Err(error) = to_result(registered) {
            // SAFETY: It was added above.
            unsafe { bindings::iommu_device_sysfs_remove(iommu) };
            return Err(error);
        }
        // INVARIANT: Just registered.
        Ok(Registration { raw })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the invariant.
        unsafe {
            bindings::iommu_device_unregister(self.raw.as_ptr());
            bindings::iommu_device_sysfs_remove(self.raw.as_ptr());
        }
    }
}
