// SPDX-License-Identifier: GPL-2.0

//! Waiting for flushes that may see a function which they are not to see any more.

use kernel::{
    bindings,
    prelude::*,
    sync::rcu, //
};

/// Waits until nobody sees a member any more that left, or was made to be passed
/// by, before.
///
/// # Context
///
/// Sleeps.
pub(crate) fn wait_for_readers() {
    rcu::synchronize_rcu();
}

/// A moment; readers that began before it are waited for later.
pub(crate) struct Moment(c_ulong);

impl Moment {
    /// Now. The grace period that it takes begins.
    pub(crate) fn now() -> Self {
        // SAFETY: No requirements.
        Moment(unsafe { bindings::start_poll_synchronize_rcu() })
    }

    /// Waits as [`wait_for_readers`] does at that moment. Mostly there is nothing to wait
    /// for any more.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn wait_for_readers(self) {
        // SAFETY: No requirements but that it may sleep.
        unsafe { bindings::cond_synchronize_rcu(self.0) }
    }
}
