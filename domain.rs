// SPDX-License-Identifier: GPL-2.0

//! The core's part of a domain: a share in an address space, and a folder in debugfs.
//! Functions hold references of their own, so a table outlives its domain if the machine
//! refuses to deregister it.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    address_space::{
        members::Member,
        AddressSpace,
        Share, //
    },
    debugfs,
    dma_table::{
        Depth,
        Vacant, //
    },
    function::{
        Function,
        Space, //
    },
    iommu,
    seq_file::Entry, //
};

/// A domain of the core.
pub(crate) type Domain = iommu::Domain<Paging>;

/// The driver data of a domain.
pub(crate) struct Paging {
    /// Its folder in debugfs.
    _shown: Option<Entry<Arc<Space>>>,
    share: Share<Function>,
}

impl Domain {
    /// An empty domain for `function`: its table is as deep as the window of the function
    /// needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn for_function(
        function: &Function,
        page_sizes: u64,
        vacant: Vacant,
    ) -> Result<Pin<KBox<Self>>> {
        let window = function.window();
        let depth = Depth::for_reach(window.last());
        let space = AddressSpace::new(depth, window, page_sizes, vacant);
        let space = Arc::pin_init(space, GFP_KERNEL)?;
        space.adapt_to_shadow(function)?;
        let paging = Paging {
            _shown: debugfs::show_domain(&space),
            share: Share::new(space),
        };
        Domain::new(paging, page_sizes, depth.reach())
    }

    /// The address space.
    #[inline]
    pub(crate) fn space(&self) -> &Arc<Space> {
        self.share().space()
    }

    /// The share in it.
    #[inline]
    pub(crate) fn share(&self) -> &Share<Function> {
        &self.data().share
    }
}

impl Drop for Paging {
    /// If the core could not attach functions to anything else, it frees their domain all
    /// the same. This blocks them, which cannot fail.
    fn drop(&mut self) {
        let space = self.share.space();
        while let Some(function) = space.first_member() {
            function.block_from(space);
        }
    }
}
