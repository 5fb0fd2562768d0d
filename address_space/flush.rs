// SPDX-License-Identifier: GPL-2.0

//! How members see what was mapped, and forget what was unmapped: the flush protocol, as
//! it is at the head of `address_space.rs`.

use kernel::sync::rcu;

use super::{
    members::{
        Member,
        Members, //
    },
    pending::Ticket, //
};
use crate::{
    atomic::AtomicU64,
    range::Range,
    zpci::Refusal, //
};

impl<M: Member> Members<M> {
    /// Makes members see what was mapped, all of them or those that see no mapping
    /// without a refresh; after [`Members::needs_flush`].
    ///
    /// # Errors
    ///
    /// The first refusal of a member that can do DMA.
    pub(crate) fn refresh_mapped(
        &self,
        range: Range,
        all: bool,
        counter: &AtomicU64,
    ) -> Result<(), Refusal> {
        let mut result = Ok(());
        let guard = rcu::read_lock();
        for member in self.iter(&guard) {
            if all || member.needs_refresh_to_map() {
                result = result.and(member.refresh_all(&[range], counter));
            }
        }
        result
    }

    /// Makes members forget what was unmapped, after [`Members::needs_flush`]. Returns
    /// whether no member can be using any of the ranges now.
    pub(crate) fn refresh_unmapped(&self, ranges: &[Range], counter: &AtomicU64) -> bool {
        let mut forgotten = true;
        let guard = rcu::read_lock();
        for member in self.iter(&guard) {
            if let Err(refusal) = member.refresh_all(ranges, counter) {
                // A hypervisor that has no resources has looked at the range all the
                // same, as far as anybody knows.
                if refusal != Refusal::Resources {
                    member.log_refused_flush(refusal);
                }
                forgotten = false;
            }
        }
        forgotten
    }

    /// A full flush. `begin` takes what is to be refreshed; `end` gets that, and whether
    /// no member can be using any of it now.
    pub(crate) fn flush_all(
        &self,
        counter: &AtomicU64,
        begin: impl FnOnce() -> Ticket,
        end: impl FnOnce(&Ticket, bool),
    ) {
        let ticket = begin();
        // A member that came before the marks were taken is among those refreshed.
        let forgotten =
            !self.needs_flush() || self.refresh_unmapped(ticket.ranges.as_slice(), counter);
        end(&ticket, forgotten);
    }
}
