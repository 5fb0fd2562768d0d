// SPDX-License-Identifier: GPL-2.0

//! Waiting for flushes that may see a function which they are not to see any more.

use kernel::{
    bindings,
    prelude::*, //
};

/// Waits until nobody sees a member any more that left, or was made to be passed
/// by, before.
///
/// # Context
///
/// Sleeps.
pub(crate) fn wait_for_readers() {
    // Readers are short, and a function waits for this with locks held; so it is not left
    // to the next tick of every CPU.
    // SAFETY: No requirements but that it may sleep.
    unsafe { bindings::synchronize_rcu_expedited() }
}

/// A moment; readers that began before it are waited for later.
pub(crate) struct Moment(c_ulong);

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        // SAFETY: No requirements.
        Moment(unsafe { bindings::get_state_synchronize_rcu() })
    }

    /// Waits as [`wait_for_readers`] does at that moment. Mostly there is nothing to wait
    /// for any more.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn wait_for_readers(self) {
        // SAFETY: No requirements but that it may sleep.
        unsafe { bindings::cond_synchronize_rcu_expedited(self.0) }
    }
}
