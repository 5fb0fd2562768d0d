// SPDX-License-Identifier: GPL-2.0

//! A safe abstraction of the driver side of the IOMMU API.
//!
//! An IOMMU driver implements [`Driver`] (operations on devices) and [`PagingDomain`]
//! (operations on address spaces), and registers each of its IOMMUs with the operations
//! that [`Ops`] generates from these two. The entry points for C only convert arguments
//! and results.
//!
//! This file depends on no particular IOMMU; it is meant to move to `rust/kernel/iommu/`.
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

/// Allocation flags. The core passes them through; the kernel crate does not have names for
/// all of them.
///
/// C: `gfp_t`.
#[derive(Clone, Copy)]
pub(crate) struct Gfp(bindings::gfp_t);

impl Gfp {
    /// May sleep.
    pub(crate) const KERNEL: Gfp = Gfp(bindings::GFP_KERNEL);
    /// May sleep; charged to the memory cgroup of the caller.
    pub(crate) const KERNEL_ACCOUNT: Gfp = Gfp(bindings::GFP_KERNEL_ACCOUNT);
}

/// A capability of a device's IOMMU.
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

    /// Whether the device may read or write.
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

/// The result of [`Driver::probe_device`].
pub(crate) struct Probed {
    /// The IOMMU of the device.
    pub(crate) iommu: NonNull<bindings::iommu_device>,
    /// Whether flushes update a hypervisor's shadow, and so are expensive
    /// (`shadow_on_flush`).
    pub(crate) shadow_on_flush: bool,
}

/// The operations of a driver on its devices.
pub(crate) trait Driver: Sized + 'static {
    /// The type of its address spaces.
    type Domain: PagingDomain<Driver = Self>;

    /// Whether the IOMMU of `dev` has a capability.
    fn capable(dev: &Device, capability: Capability) -> bool;

    /// Accepts a device. Its DMA is blocked from here on, until a domain is attached.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the device does not belong to this driver.
    fn probe_device(dev: &Device) -> Result<Probed>;

    /// A new, empty address space for `dev`.
    fn domain_alloc_paging(dev: &Device) -> Result<Pin<KBox<Domain<Self::Domain>>>>;

    /// The domain that does not translate, if `dev` can be attached to one.
    fn identity_domain(dev: &Device) -> Option<&'static StaticDomain>;

    /// Adds the addresses that `dev` cannot use. They do not depend on what is attached.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn resv_regions(dev: &Device, regions: &mut ResvRegions<'_>) -> Result;

    /// Lets `dev` do DMA without translation.
    ///
    /// # Errors
    ///
    /// On an error nothing has changed.
    ///
    /// # Context
    ///
    /// May sleep; the group's mutex is held.
    fn attach_identity(dev: &Device) -> Result;

    /// Blocks all DMA of `dev`. Cannot fail: the caller frees the old domain in any case.
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

    /// The function that the core calls to free a domain. If domains may outlive devices,
    /// and both hold the driver's module, this is a function outside of the module, which
    /// calls [`Ops::free`] and then drops its reference to the module.
    const FREE: unsafe extern "C" fn(*mut bindings::iommu_domain) = Ops::<Self::Driver>::free;

    /// Attaches a device, from whatever it is attached to.
    ///
    /// # Errors
    ///
    /// `EINVAL` if device and domain do not fit together. On every error the device stays
    /// where it was.
    ///
    /// # Context
    ///
    /// May sleep; the group's mutex is held.
    fn attach(domain: &Domain<Self>, dev: &Device) -> Result;

    /// Maps `count` pages of `page_size` bytes, and sets `mapped` to the number of bytes
    /// mapped from the start. After an error the core unmaps these.
    ///
    /// # Safety
    ///
    /// Nobody else maps, unmaps or looks up anything in the range meanwhile.
    ///
    /// # Context
    ///
    /// Depends on `gfp`; may be atomic.
    // The arguments are those of the C function.
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

    /// Unmaps `size` bytes, up to the first address that is not mapped. Returns the number
    /// of bytes unmapped.
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

    /// Whether any device needs a refresh after a map or an unmap. Executes a full barrier
    /// between the stores to tables and whatever depends on the answer.
    fn needs_flush(domain: &Domain<Self>) -> bool;

    /// Makes devices forget the range of the gather, and frees the pages that it holds.
    /// Called if [`PagingDomain::needs_flush`], or if the gather holds pages.
    ///
    /// # Context
    ///
    /// May be atomic.
    fn sync(domain: &Domain<Self>, gather: &mut Gather);

    /// Makes the new mapping of `size` bytes (not 0) from `iova` known to devices. Called if
    /// [`PagingDomain::needs_flush`].
    ///
    /// # Errors
    ///
    /// On an error the core unmaps the range.
    ///
    /// # Context
    ///
    /// May be atomic.
    fn sync_map(domain: &Domain<Self>, iova: u64, size: usize) -> Result;

    /// The physical address that an IOVA translates to.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that contains `iova` meanwhile.
    unsafe fn iova_to_phys(domain: &Domain<Self>, iova: u64) -> Option<PhysAddr>;
}

/// An IOMMU that is registered with the core.
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
    /// Registers an IOMMU. Its name under `/sys/class/iommu/` is `id`, formatted by `format`.
    ///
    /// # Safety
    ///
    /// `raw` is valid, and not registered, for as long as the registration
    /// lives. `format` has one conversion, of an unsigned integer.
    ///
    /// # Errors
    ///
    /// An error of sysfs or the core; nothing is registered then.
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
