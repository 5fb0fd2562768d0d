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
    error::{
        from_result,
        to_result, //
    },
    io::PhysAddr,
    prelude::*,
    sync::atomic::{
        atomic_load,
        atomic_store,
        Acquire,
        Release, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
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

/// Table memory that waits to be freed.
///
/// C: `struct iommu_pages_list`.
#[repr(transparent)]
pub(crate) struct PagesList(Opaque<bindings::iommu_pages_list>);

// SAFETY: What is on the list belongs to nobody else; the list itself is used as
// `PagesList::take` says.
unsafe impl Send for PagesList {}
// SAFETY: As above.
unsafe impl Sync for PagesList {}

impl PagesList {
    /// An empty list.
    pub(crate) fn new() -> impl PinInit<Self> {
        // SAFETY: The closure initialises the whole of the slot, which is pinned.
        unsafe {
            pin_init::pin_init_from_closure(|slot: *mut Self| {
                bindings::INIT_LIST_HEAD(
                    &raw mut (*slot.cast::<bindings::iommu_pages_list>()).pages,
                );
                Ok::<(), core::convert::Infallible>(())
            })
        }
    }

    /// Takes all that is on another list.
    ///
    /// # Safety
    ///
    /// The caller serialises all uses of both lists.
    pub(crate) unsafe fn take(&self, from: &PagesList) {
        // SAFETY: Both lists are initialised; the caller's promise.
        unsafe { zpci_iommu_pages_list_move(from.0.get(), self.0.get()) }
    }

    /// Frees what is on the list.
    ///
    /// # Safety
    ///
    /// The caller serialises all uses of the list, and nobody uses what is on it.
    pub(crate) unsafe fn free(&self) {
        // SAFETY: The list is initialised; the caller's promise. The second call
        // makes it a list again.
        unsafe {
            iommu_put_pages_list(self.0.get());
            bindings::INIT_LIST_HEAD(&raw mut (*self.0.get()).pages);
        }
    }
}

/// What was unmapped and not yet flushed.
///
/// C: `struct iommu_iotlb_gather`.
#[repr(transparent)]
pub(crate) struct Gather(bindings::iommu_iotlb_gather);

impl Gather {
    /// The first address that was unmapped and the last one (inclusive).
    /// Anything between may have been.
    #[inline]
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.0.start as u64, self.0.end as u64)
    }

    /// Adds `size` bytes (not 0) from `iova` on.
    #[inline]
    pub(crate) fn add(&mut self, iova: u64, size: u64) {
        let last = iova.wrapping_add(size).wrapping_sub(1);
        self.0.start = core::cmp::min(self.0.start, iova as usize);
        self.0.end = core::cmp::max(self.0.end, last as usize);
    }

    /// Gives memory back to the system after the flush of this gather.
    ///
    /// # Safety
    ///
    /// `pages` came from [`alloc_pages`], and after the flush nobody uses it.
    pub(crate) unsafe fn free_after_flush(&mut self, pages: NonNull<u8>) {
        // SAFETY: `self.0.freelist` is valid; `pages` is by the caller's
        // promise.
        unsafe { zpci_iommu_pages_list_add(&raw mut self.0.freelist, pages.as_ptr().cast()) }
    }

    /// Whether [`Gather::free_flushed`] has something to do.
    #[inline]
    pub(crate) fn holds_pages(&self) -> bool {
        let head = &raw const self.0.freelist.pages;
        !ptr::eq(self.0.freelist.pages.next, head)
    }

    /// Whether a full flush follows, and not one of this gather.
    #[inline]
    pub(crate) fn is_queued(&self) -> bool {
        self.0.queued
    }

    /// Gives what [`Gather::free_after_flush`] took to a list.
    ///
    /// # Safety
    ///
    /// The caller serialises all uses of the list.
    pub(crate) unsafe fn defer(&mut self, list: &PagesList) {
        // SAFETY: Both lists are initialised; the caller's promise.
        unsafe { zpci_iommu_pages_list_move(&raw mut self.0.freelist, list.0.get()) }
    }

    /// Frees what [`Gather::free_after_flush`] took.
    ///
    /// # Safety
    ///
    /// The gather was flushed.
    pub(crate) unsafe fn free_flushed(&mut self) {
        // SAFETY: The list is valid; nobody uses what is on it by the promises
        // of `free_after_flush` and of the caller.
        unsafe { iommu_put_pages_list(&raw mut self.0.freelist) }
    }
}

/// Allocates zeroed memory for tables, counted like that of every IOMMU driver:
/// `size` bytes, a power of two, aligned to `size`; at least a page is taken.
///
/// # Context
///
/// As `gfp` says.
pub(crate) fn alloc_pages(size: usize, gfp: Gfp) -> Option<NonNull<u8>> {
    // SAFETY: No requirements; the node is none in particular.
    let pages = unsafe { iommu_alloc_pages_node_sz(bindings::NUMA_NO_NODE, gfp.0, size) };
    NonNull::new(pages.cast())
}

/// Frees memory that [`alloc_pages`] gave.
///
/// # Safety
///
/// `pages` came from [`alloc_pages`], and nobody uses it.
pub(crate) unsafe fn free_pages(pages: NonNull<u8>) {
    // SAFETY: The caller's promise.
    unsafe { iommu_free_pages(pages.as_ptr().cast()) }
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

/// An address space: the core's part of it and the driver's.
///
/// # Invariants
///
/// Made by [`Domain::new`] and pinned; `raw` is initialised.
#[repr(C)]
#[pin_data]
pub(crate) struct Domain<T: PagingDomain> {
    #[pin]
    raw: Opaque<bindings::iommu_domain>,
    data: T,
}

// SAFETY: The core serialises or tolerates concurrent access to its part;
// `T` is `Send`.
unsafe impl<T: PagingDomain> Send for Domain<T> {}
// SAFETY: As above; `T` is `Sync`.
unsafe impl<T: PagingDomain> Sync for Domain<T> {}

impl<T: PagingDomain> Domain<T> {
    /// A new address space of the IOVAs from 0 to `aperture_last` (inclusive),
    /// with pages of the sizes in `page_sizes` (a bitmap).
    pub(crate) fn new(data: T, page_sizes: u64, aperture_last: u64) -> Result<Pin<KBox<Self>>> {
        let raw = bindings::iommu_domain {
            pgsize_bitmap: page_sizes as usize,
            geometry: bindings::iommu_domain_geometry {
                aperture_start: 0,
                aperture_end: aperture_last,
                force_aperture: true,
            },
            ops: Ops::<T::Driver>::PAGING,
            ..pin_init::zeroed()
        };
        KBox::try_pin_init(
            try_pin_init!(Self {
                raw: Opaque::new(raw),
                data,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// # Safety
    ///
    /// `raw` is the core's part of a [`Domain<T>`] that lives for `'a`.
    #[inline]
    unsafe fn from_raw<'a>(raw: *mut bindings::iommu_domain) -> &'a Self {
        // SAFETY: `raw` is the first field, and the struct is `repr(C)`.
        unsafe { &*raw.cast() }
    }

    /// The address space behind a pointer of the core's; `None` for a domain
    /// that maps no pages.
    ///
    /// # Safety
    ///
    /// `raw` points to a domain of this driver that lives for `'a`.
    pub(crate) unsafe fn try_from_raw<'a>(raw: *mut bindings::iommu_domain) -> Option<&'a Self> {
        // SAFETY: The caller's promise. All of the driver's domains that map
        // pages are of this type.
        unsafe { ((*raw).type_ & PAGING != 0).then(|| Self::from_raw(raw)) }
    }

    /// The core's part.
    pub(crate) fn as_raw(&self) -> *mut bindings::iommu_domain {
        self.raw.get()
    }

    /// The driver's part.
    #[inline]
    pub(crate) fn data(&self) -> &T {
        &self.data
    }

    /// The last address of the aperture (inclusive).
    #[inline]
    pub(crate) fn aperture_last(&self) -> u64 {
        // SAFETY: The field is initialised, aligned, and written by
        // `widen_aperture` only. Acquire: whoever sees a wider aperture sees the
        // deeper table.
        unsafe { atomic_load(&raw mut (*self.as_raw()).geometry.aperture_end, Acquire) }
    }

    /// Makes the aperture end at `last` (inclusive), unless it ends later
    /// already. All of it must be mappable before.
    pub(crate) fn widen_aperture(&self, last: u64) {
        if last > self.aperture_last() {
            // SAFETY: The field is valid and aligned. Callers are serialised by the
            // driver's attach lock; readers in the core read it in one piece.
            unsafe {
                atomic_store(
                    &raw mut (*self.as_raw()).geometry.aperture_end,
                    last,
                    Release,
                )
            }
        }
    }
}

/// A domain that exists once: blocked, or identity.
#[repr(transparent)]
pub(crate) struct StaticDomain(Opaque<bindings::iommu_domain>);

// SAFETY: The core treats such domains as shared by all devices.
unsafe impl Sync for StaticDomain {}

impl StaticDomain {
    const fn new(kind: u32, ops: &'static bindings::iommu_domain_ops) -> Self {
        StaticDomain(Opaque::new(bindings::iommu_domain {
            type_: kind,
            ops,
            ..pin_init::zeroed()
        }))
    }

    /// As the core sees it.
    pub(crate) const fn as_raw(&self) -> *mut bindings::iommu_domain {
        self.0.get()
    }
}

/// `struct iommu_ops` of a driver.
#[repr(transparent)]
pub(crate) struct OpsTable(bindings::iommu_ops);

// SAFETY: The table is never written.
unsafe impl Sync for OpsTable {}
// SAFETY: As above.
unsafe impl Send for OpsTable {}

/// The operations that the core calls, generated from a [`Driver`].
pub(crate) struct Ops<D: Driver>(PhantomData<D>);

impl<D: Driver> Ops<D> {
    const PAGING: &'static bindings::iommu_domain_ops = &bindings::iommu_domain_ops {
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

    /// The domain that lets no DMA through, for a static.
    pub(crate) const fn blocked() -> StaticDomain {
        StaticDomain::new(bindings::IOMMU_DOMAIN_BLOCKED, Self::BLOCKED)
    }

    /// The domain that does not translate, for a static.
    pub(crate) const fn identity() -> StaticDomain {
        StaticDomain::new(bindings::IOMMU_DOMAIN_IDENTITY, Self::IDENTITY)
    }

    /// The table of operations, to be kept in a static. Devices are parked on `blocked`
    /// while nobody uses them and when they leave.
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
        // SAFETY: The core passes a place for the result, of nobody else's.
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

    // The two below are called for every map and unmap, and mostly have nothing
    // to do. What they do otherwise is a function of the same signature, so that
    // it is jumped to and these need no stack.

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

/// The bit of `iommu_domain.type` that says that a domain maps pages.
const PAGING: u32 = bindings::__IOMMU_DOMAIN_PAGING;

/// No operation at all, to build tables from.
const NO_DOMAIN_OPS: bindings::iommu_domain_ops = pin_init::zeroed();

/// No operation at all, to build tables from.
const NO_OPS: bindings::iommu_ops = pin_init::zeroed();

extern "C" {
    // drivers/iommu/iommu-pages.h has no bindings.
    fn iommu_alloc_pages_node_sz(nid: c_int, gfp: bindings::gfp_t, size: usize) -> *mut c_void;
    fn iommu_free_pages(virt: *mut c_void);
    fn iommu_put_pages_list(list: *mut bindings::iommu_pages_list);
    // A static inline there; wrapped by integration/zpci_iommu.c.
    fn zpci_iommu_pages_list_add(list: *mut bindings::iommu_pages_list, virt: *mut c_void);
    fn zpci_iommu_pages_list_move(
        from: *mut bindings::iommu_pages_list,
        to: *mut bindings::iommu_pages_list,
    );
}
