// SPDX-License-Identifier: GPL-2.0

//! Domains: those that map pages, and static ones (blocked and identity).
//!
//! C header: [`include/linux/iommu.h`](srctree/include/linux/iommu.h).

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        atomic_load,
        atomic_store,
        Acquire,
        Release, //
    },
    types::Opaque, //
};

use super::{
    ops::Ops,
    PagingDomain, //
};

/// An address space: the part of the core and the part of the driver.
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
    /// A new address space for the IOVAs from 0 to `aperture_last` (inclusive), with the
    /// page sizes in `page_sizes` (a bitmap).
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
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::iommu_domain) -> &'a Self {
        // SAFETY: `raw` is the first field, and the struct is `repr(C)`.
        unsafe { &*raw.cast() }
    }

    /// The address space behind a pointer from the core; `None` for a domain that maps
    /// no pages.
    ///
    /// # Safety
    ///
    /// `raw` points to a domain of this driver that lives for `'a`.
    pub(crate) unsafe fn try_from_raw<'a>(raw: *mut bindings::iommu_domain) -> Option<&'a Self> {
        // SAFETY: The caller's promise. All of the driver's domains that map
        // pages are of this type.
        unsafe { ((*raw).type_ & PAGING != 0).then(|| Self::from_raw(raw)) }
    }

    /// The part of the core.
    pub(crate) fn as_raw(&self) -> *mut bindings::iommu_domain {
        self.raw.get()
    }

    /// The part of the driver.
    #[inline]
    pub(crate) fn data(&self) -> &T {
        &self.data
    }

    /// The last address of the aperture (inclusive).
    #[inline]
    pub(crate) fn aperture_last(&self) -> u64 {
        // SAFETY: The field is initialised, aligned, and written by `widen_aperture`
        // only. Acquire: who reads the wider aperture also reads the deeper table.
        unsafe { atomic_load(&raw mut (*self.as_raw()).geometry.aperture_end, Acquire) }
    }

    /// Makes the aperture end at `last` (inclusive), unless it ends later already. The
    /// whole new aperture must be mappable before the call.
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

/// A static domain: blocked or identity.
#[repr(transparent)]
pub(crate) struct StaticDomain(Opaque<bindings::iommu_domain>);

// SAFETY: The core treats such domains as shared by all devices.
unsafe impl Sync for StaticDomain {}

impl StaticDomain {
    pub(super) const fn new(kind: u32, ops: &'static bindings::iommu_domain_ops) -> Self {
        StaticDomain(Opaque::new(bindings::iommu_domain {
            type_: kind,
            ops,
            ..pin_init::zeroed()
        }))
    }

    /// The pointer that the core uses.
    pub(crate) const fn as_raw(&self) -> *mut bindings::iommu_domain {
        self.0.get()
    }
}

/// The bit of `iommu_domain.type` that is set if a domain maps pages.
const PAGING: u32 = bindings::__IOMMU_DOMAIN_PAGING;
