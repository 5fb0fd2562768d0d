// SPDX-License-Identifier: GPL-2.0

//! Waiting for flushes that may still use a function.

use kernel::{
    bindings,
    prelude::*, //
};

/// Waits until no flush uses a member that left, or stopped being live, before the call.
///
/// # Context
///
/// Sleeps.
pub(crate) fn wait_for_readers() {
    // Readers are short and the caller holds locks, so do not wait for the next tick of
    // every CPU.
    // SAFETY: No requirements but that it may sleep.
    unsafe { bindings::synchronize_rcu_expedited() }
}

/// A point in time, to wait later for the readers that began before it.
pub(crate) struct Moment(c_ulong);

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        // SAFETY: No requirements.
        Moment(unsafe { bindings::get_state_synchronize_rcu() })
    }

    /// Waits for readers that began before that point. Usually they have ended already.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn wait_for_readers(self) {
        // SAFETY: No requirements but that it may sleep.
        unsafe { bindings::cond_synchronize_rcu_expedited(self.0) }
    }
}
