// SPDX-License-Identifier: GPL-2.0

//! The operations that the core calls. They only convert arguments and results.
//!
//! C header: [`include/linux/iommu.h`](srctree/include/linux/iommu.h).

use core::marker::PhantomData;

use kernel::{
    bindings,
    device::Device,
    error::from_result,
    io::PhysAddr,
    prelude::*,
    types::ForeignOwnable, //
};

use super::{
    domain::{
        Domain,
        StaticDomain, //
    },
    pages::Gather,
    Capability,
    Driver,
    Gfp,
    PagingDomain,
    Prot,
    ResvRegions, //
};

/// `struct iommu_ops` of a driver.
#[repr(transparent)]
pub(crate) struct OpsTable(pub(super) bindings::iommu_ops);

// SAFETY: The table is never written.
unsafe impl Sync for OpsTable {}
// SAFETY: As above.
unsafe impl Send for OpsTable {}

/// The operations that the core calls, generated from a [`Driver`].
pub(crate) struct Ops<D: Driver>(PhantomData<D>);

impl<D: Driver> Ops<D> {
    pub(super) const PAGING: &'static bindings::iommu_domain_ops = &bindings::iommu_domain_ops {
        attach_dev: Some(Self::attach_dev),
        map_pages: Some(Self::map_pages),
        unmap_pages: Some(Self::unmap_pages),
        flush_iotlb_all: Some(Self::flush_iotlb_all),
        iotlb_sync_map: Some(Self::iotlb_sync_map),
        iotlb_sync: Some(Self::iotlb_sync),
        iova_to_phys: Some(Self::iova_to_phys),
        free: Some(D::Domain::FREE),
        ..NO_DOMAIN_OPS
    };

    const BLOCKED: &'static bindings::iommu_domain_ops = &bindings::iommu_domain_ops {
        attach_dev: Some(Self::attach_blocked),
        ..NO_DOMAIN_OPS
    };

    const IDENTITY: &'static bindings::iommu_domain_ops = &bindings::iommu_domain_ops {
        attach_dev: Some(Self::attach_identity),
        ..NO_DOMAIN_OPS
    };

    /// The domain that blocks all DMA, for a static.
    pub(crate) const fn blocked() -> StaticDomain {
        StaticDomain::new(bindings::IOMMU_DOMAIN_BLOCKED, Self::BLOCKED)
    }

    /// The domain that does not translate, for a static.
    pub(crate) const fn identity() -> StaticDomain {
        StaticDomain::new(bindings::IOMMU_DOMAIN_IDENTITY, Self::IDENTITY)
    }

    /// The table of operations, for a static. The core attaches devices to `blocked` while
    /// nobody uses them and when they are released.
    pub(crate) const fn table(blocked: &'static StaticDomain, owner: &ThisModule) -> OpsTable {
        OpsTable(bindings::iommu_ops {
            capable: Some(Self::capable),
            probe_device: Some(Self::probe_device),
            device_group: Some(bindings::generic_device_group),
            domain_alloc_paging: Some(Self::domain_alloc_paging),
            domain_alloc_identity: Some(Self::domain_alloc_identity),
            get_resv_regions: Some(Self::get_resv_regions),
            default_domain_ops: Self::PAGING,
            blocked_domain: blocked.as_raw(),
            release_domain: blocked.as_raw(),
            owner: owner.as_ptr(),
            ..NO_OPS
        })
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_ops.capable`.
    unsafe extern "C" fn capable(dev: *mut bindings::device, cap: bindings::iommu_cap) -> bool {
        // SAFETY: The core passes a valid device.
        let dev = unsafe { Device::from_raw(dev) };
        match cap {
            bindings::iommu_cap_IOMMU_CAP_CACHE_COHERENCY => {
                D::capable(dev, Capability::CacheCoherency)
            }
            bindings::iommu_cap_IOMMU_CAP_DEFERRED_FLUSH => {
                D::capable(dev, Capability::DeferredFlush)
            }
            _ => false,
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_ops.probe_device`.
    unsafe extern "C" fn probe_device(dev: *mut bindings::device) -> *mut bindings::iommu_device {
        // SAFETY: The core passes a valid device.
        match D::probe_device(unsafe { Device::from_raw(dev) }) {
            Ok(probed) => {
                // SAFETY: The core has set `iommu` up and holds the lock that
                // guards it.
                unsafe {
                    (*(*dev).iommu).set_shadow_on_flush(u32::from(probed.shadow_on_flush));
                }
                probed.iommu.as_ptr()
            }
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_ops.domain_alloc_paging`.
    unsafe extern "C" fn domain_alloc_paging(
        dev: *mut bindings::device,
    ) -> *mut bindings::iommu_domain {
        // SAFETY: The core passes a valid device.
        match D::domain_alloc_paging(unsafe { Device::from_raw(dev) }) {
            // The core's part is the first field.
            Ok(domain) => domain.into_foreign().cast(),
            Err(error) => error.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_ops.domain_alloc_identity`.
    unsafe extern "C" fn domain_alloc_identity(
        dev: *mut bindings::device,
    ) -> *mut bindings::iommu_domain {
        // SAFETY: The core passes a valid device.
        match D::identity_domain(unsafe { Device::from_raw(dev) }) {
            Some(identity) => identity.as_raw(),
            None => Error::from_errno(-(bindings::EOPNOTSUPP as c_int)).to_ptr(),
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_ops.get_resv_regions`.
    unsafe extern "C" fn get_resv_regions(
        dev: *mut bindings::device,
        head: *mut bindings::list_head,
    ) {
        let mut regions = ResvRegions {
            head,
            lifetime: PhantomData,
        };
        // SAFETY: The core passes a valid device.
        let dev = unsafe { Device::from_raw(dev) };
        if let Err(error) = D::resv_regions(dev, &mut regions) {
            dev_err!(dev, "reserved regions are incomplete: {:?}\n", error);
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.attach_dev`.
    unsafe extern "C" fn attach_blocked(
        _domain: *mut bindings::iommu_domain,
        dev: *mut bindings::device,
        _old: *mut bindings::iommu_domain,
    ) -> c_int {
        // SAFETY: The core passes a valid device.
        D::attach_blocked(unsafe { Device::from_raw(dev) });
        0
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.attach_dev`.
    unsafe extern "C" fn attach_identity(
        _domain: *mut bindings::iommu_domain,
        dev: *mut bindings::device,
        _old: *mut bindings::iommu_domain,
    ) -> c_int {
        // SAFETY: The core passes a valid device.
        from_result(|| D::attach_identity(unsafe { Device::from_raw(dev) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.attach_dev`.
    unsafe extern "C" fn attach_dev(
        domain: *mut bindings::iommu_domain,
        dev: *mut bindings::device,
        _old: *mut bindings::iommu_domain,
    ) -> c_int {
        // SAFETY: The core passes one of this driver's domains.
        let domain = unsafe { Domain::<D::Domain>::from_raw(domain) };
        // SAFETY: The core passes a valid device.
        let dev = unsafe { Device::from_raw(dev) };
        from_result(|| D::Domain::attach(domain, dev).map(|()| 0))
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.map_pages`.
    unsafe extern "C" fn map_pages(
        domain: *mut bindings::iommu_domain,
        iova: c_ulong,
        phys: PhysAddr,
        page_size: usize,
        count: usize,
        prot: c_int,
        gfp: bindings::gfp_t,
        mapped: *mut usize,
    ) -> c_int {
        // SAFETY: The core passes one of this driver's domains.
        let domain = unsafe { Domain::<D::Domain>::from_raw(domain) };
        let (iova, prot, gfp) = (iova as u64, Prot(prot), Gfp(gfp));
        // SAFETY: The core passes a valid place for the result, which nobody else uses.
        let mapped = unsafe { &mut *mapped };
        // SAFETY: The users of the IOMMU API give each range one owner at a
        // time.
        let result = unsafe {
            D::Domain::map_pages(domain, iova, phys, page_size, count, prot, gfp, mapped)
        };
        match result {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.unmap_pages`.
    unsafe extern "C" fn unmap_pages(
        domain: *mut bindings::iommu_domain,
        iova: c_ulong,
        page_size: usize,
        count: usize,
        gather: *mut bindings::iommu_iotlb_gather,
    ) -> usize {
        // SAFETY: The core passes one of this driver's domains.
        let domain = unsafe { Domain::<D::Domain>::from_raw(domain) };
        // SAFETY: The core passes a valid gather; `Gather` is transparent.
        let gather = unsafe { &mut *gather.cast::<Gather>() };
        let size = page_size.wrapping_mul(count);
        // SAFETY: The users of the IOMMU API give each range one owner at a
        // time.
        unsafe { D::Domain::unmap_pages(domain, iova as u64, size, gather) }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.flush_iotlb_all`.
    unsafe extern "C" fn flush_iotlb_all(domain: *mut bindings::iommu_domain) {
        // SAFETY: The core passes one of this driver's domains.
        D::Domain::flush_all(unsafe { Domain::from_raw(domain) });
    }

    // The core calls the next two for every map and unmap, and mostly they have nothing
    // to do. The slow path of each is a function with the same signature, so that the
    // call is a jump and needs no stack.

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.iotlb_sync`.
    unsafe extern "C" fn iotlb_sync(
        domain: *mut bindings::iommu_domain,
        gather: *mut bindings::iommu_iotlb_gather,
    ) {
        // SAFETY: The core passes one of this driver's domains and a valid
        // gather; `Gather` is transparent.
        unsafe {
            let refresh = D::Domain::needs_flush(Domain::from_raw(domain));
            if refresh || (*gather.cast::<Gather>()).holds_pages() {
                Self::iotlb_sync_now(domain, gather);
            }
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.iotlb_sync`.
    #[inline(never)]
    unsafe extern "C" fn iotlb_sync_now(
        domain: *mut bindings::iommu_domain,
        gather: *mut bindings::iommu_iotlb_gather,
    ) {
        // SAFETY: As above.
        let (domain, gather) = unsafe { (Domain::from_raw(domain), &mut *gather.cast()) };
        D::Domain::sync(domain, gather);
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.iotlb_sync_map`.
    unsafe extern "C" fn iotlb_sync_map(
        domain: *mut bindings::iommu_domain,
        iova: c_ulong,
        size: usize,
    ) -> c_int {
        // SAFETY: The core passes one of this driver's domains.
        unsafe {
            if D::Domain::needs_flush(Domain::from_raw(domain)) {
                Self::iotlb_sync_map_now(domain, iova, size)
            } else {
                0
            }
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.iotlb_sync_map`.
    #[inline(never)]
    unsafe extern "C" fn iotlb_sync_map_now(
        domain: *mut bindings::iommu_domain,
        iova: c_ulong,
        size: usize,
    ) -> c_int {
        // SAFETY: The core passes one of this driver's domains.
        let domain = unsafe { Domain::from_raw(domain) };
        match D::Domain::sync_map(domain, iova as u64, size) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.iova_to_phys`.
    unsafe extern "C" fn iova_to_phys(
        domain: *mut bindings::iommu_domain,
        iova: bindings::dma_addr_t,
    ) -> PhysAddr {
        // SAFETY: The core passes one of this driver's domains.
        let domain = unsafe { Domain::from_raw(domain) };
        // SAFETY: The users of the IOMMU API own the ranges that they look up.
        unsafe { D::Domain::iova_to_phys(domain, iova) }.unwrap_or(0)
    }

    /// # Safety
    ///
    /// The core calls it, as `iommu_domain_ops.free`, or [`PagingDomain::FREE`] does in its
    /// place.
    pub(crate) unsafe extern "C" fn free(domain: *mut bindings::iommu_domain) {
        // SAFETY: The domain came from `domain_alloc_paging`, and the core does
        // not use it any more.
        drop(unsafe { Pin::<KBox<Domain<D::Domain>>>::from_foreign(domain.cast()) });
    }
}

/// A table without operations, to build others from.
const NO_DOMAIN_OPS: bindings::iommu_domain_ops = pin_init::zeroed();

/// A table without operations, to build others from.
const NO_OPS: bindings::iommu_ops = pin_init::zeroed();
