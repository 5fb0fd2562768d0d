// SPDX-License-Identifier: GPL-2.0

//! How members learn of new mappings and forget old ones: the flush protocol that the head
//! of `address_space.rs` describes.

use kernel::sync::rcu;

use super::{
    members::{
        Extent,
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
    /// Makes new mappings known: to all members, or to those that need a refresh for that.
    /// Call [`Members::needs_flush`] before.
    ///
    /// # Errors
    ///
    /// The first refusal of a member that can do DMA.
    #[inline]
    pub(crate) fn refresh_mapped(
        &self,
        range: Range,
        all: bool,
        counter: &AtomicU64,
    ) -> Result<(), Refusal> {
        let mut result = Ok(());
        let guard = rcu::read_lock();
        self.iter(&guard).for_each(|member| {
            if all || member.needs_refresh_to_map() {
                if let Err(refusal) = member.refresh_in_window(range, counter) {
                    result = result.and(Err(refusal));
                }
            }
        });
        result
    }

    /// Makes the members forget what was unmapped. Returns whether none of them can be using
    /// any of the range now. Call [`Members::needs_flush`] before.
    #[inline(always)]
    pub(crate) fn refresh_unmapped(&self, range: Range, counter: &AtomicU64) -> bool {
        let mut forgotten = true;
        let guard = rcu::read_lock();
        self.iter(&guard).for_each(|member| {
            if let Err(refusal) = member.refresh_in_window(range, counter) {
                log_refused_flush(member, refusal);
                forgotten = false;
            }
        });
        forgotten
    }

    /// The same for several ranges. A single range has its own copy, which takes fewer
    /// instructions in each unmap.
    fn refresh_all(&self, ranges: &[Range], counter: &AtomicU64) -> bool {
        let mut forgotten = true;
        let guard = rcu::read_lock();
        for member in self.iter(&guard) {
            for range in ranges {
                match member.refresh_in_window(*range, counter) {
                    Ok(Extent::Range) => continue,
                    Ok(Extent::All) => (),
                    Err(refusal) => {
                        log_refused_flush(member, refusal);
                        forgotten = false;
                    }
                }
                break;
            }
        }
        forgotten
    }

    /// A full flush. `begin` takes what to refresh. `end` is called with that, and with
    /// whether no member can be using any of it now.
    pub(crate) fn flush_all(
        &self,
        counter: &AtomicU64,
        begin: impl FnOnce() -> Ticket,
        end: impl FnOnce(&Ticket, bool),
    ) {
        let ticket = begin();
        // Members that joined before the marks were taken are refreshed.
        let forgotten = !self.needs_flush() || self.refresh_all(ticket.ranges.as_slice(), counter);
        end(&ticket, forgotten);
    }
}

/// As far as is known, a hypervisor without resources has processed the range all the same.
#[cold]
fn log_refused_flush(member: &impl Member, refusal: Refusal) {
    if refusal != Refusal::Resources {
        member.log_refused_flush(refusal);
    }
}
