// SPDX-License-Identifier: GPL-2.0

//! The functions that are attached to a domain: a list that is read from any
//! context without a lock.
//!
//! # The protocol
//!
//! Members occupy slots. Slots are only ever added, and live as long as the list. Joining
//! fills an empty slot, leaving empties it; the domain's attach lock serialises both.
//! Readers walk the slots inside an RCU read-side critical section. A reader that began
//! before a member left may still use it, so a member is freed only after a grace period.
//!
//! The count makes maps of a domain without members cheap. It is incremented before a
//! member is refreshed for the first time, with a full barrier in between. A flush stores
//! entries, executes a full barrier, then reads the count. So either the flush finds the
//! member, or the member's first refresh finds the entries (Dekker's pattern).

use core::ptr;

use kernel::{
    prelude::*,
    sync::{
        rcu,
        Arc,
        ArcBorrow, //
    }, //
};

use crate::{
    atomic::{
        fence,
        AtomicPtr,
        AtomicU64,
        AtomicUsize,
        Ordering::{
            self,
            Acquire,
            Relaxed,
            Release, //
        }, //
    },
    dma_table::Depth,
    range::Range,
    zpci::Refusal, //
};

/// What needs no refresh any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The range.
    Range,
    /// Everything.
    All,
}

/// What an address space knows of a function that is attached to it.
pub(crate) trait Member: Send + Sync {
    /// The IOVAs that it can use.
    fn window(&self) -> Range;

    /// The deepest table that it can use.
    fn deepest(&self) -> Depth;

    /// Whether new mappings need a refresh.
    fn needs_refresh_to_map(&self) -> bool;

    /// Refreshes the part of a range that is in the window, if that is legal, and counts
    /// the refresh. If the hypervisor has no resources, refreshes the window instead, so
    /// that it processes everything that was unmapped.
    ///
    /// # Errors
    ///
    /// The refusal, if the function can do DMA.
    ///
    /// # Context
    ///
    /// Any; after a full barrier.
    fn refresh_in_window(&self, range: Range, counter: &AtomicU64) -> Result<Extent, Refusal>;

    /// Logs that the machine may still use what was unmapped.
    fn log_refused_flush(&self, refusal: Refusal);
}

/// A place for a member.
struct Slot<T> {
    member: AtomicPtr<T>,
    next: AtomicPtr<Slot<T>>,
}

impl<T> Slot<T> {
    fn new() -> Self {
        Slot {
            member: AtomicPtr::new(ptr::null_mut()),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

/// The list.
///
/// # Invariants
///
/// A slot is empty, or points to a `T` in an [`Arc`] that has a reference at least until a
/// grace period after the slot was emptied. `next` is null or came from a [`KBox`].
pub(crate) struct Members<T> {
    first: Slot<T>,
    count: AtomicUsize,
}

// SAFETY: Members are shared between threads, never moved.
unsafe impl<T: Sync> Send for Members<T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for Members<T> {}

impl<T> Members<T> {
    /// An empty list.
    pub(crate) fn new() -> Self {
        Members {
            first: Slot::new(),
            count: AtomicUsize::new(0),
        }
    }

    /// Whether any member needs a refresh after the stores before. Executes a full barrier
    /// between these stores and whatever depends on the answer.
    #[inline]
    pub(crate) fn needs_flush(&self) -> bool {
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Acquire) != 0
    }

    /// Adds a member.
    ///
    /// # Safety
    ///
    /// The caller keeps a reference to `member` until a grace period after it left, and
    /// serialises joining and leaving.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) unsafe fn join(&self, member: ArcBorrow<'_, T>) -> Result {
        // The list keeps no reference.
        let member = Arc::into_raw(member.into());
        // SAFETY: It was made above.
        drop(unsafe { Arc::from_raw(member) });
        let mut slot = &self.first;
        while !slot.member.load(Relaxed).is_null() {
            if slot.next.load(Relaxed).is_null() {
                let next = KBox::new(Slot::new(), GFP_KERNEL)?;
                slot.next.store(KBox::into_raw(next), Release);
            }
            // SAFETY: By the invariant; not null.
            slot = unsafe { &*slot.next.load(Relaxed) };
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        // INVARIANT: The caller's promise.
        slot.member.store(member.cast_mut(), Release);
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Removes a member. Readers that began before may still see it.
    pub(crate) fn leave(&self, member: *const T) {
        let guard = rcu::read_lock();
        for slot in self.slots(&guard) {
            if ptr::eq(slot.member.load(Relaxed), member) {
                slot.member.store(ptr::null_mut(), Release);
                self.count.fetch_sub(1, Ordering::Release);
                return;
            }
        }
    }

    /// A reference to a member, if there is one.
    pub(crate) fn first(&self) -> Option<Arc<T>> {
        let guard = rcu::read_lock();
        let mut slots = self.slots(&guard).map(|slot| slot.member.load(Acquire));
        let first = slots.find(|member| !member.is_null())?;
        // SAFETY: By the invariant the pointer came from an `Arc` that has a reference; the
        // guard keeps that.
        Some(unsafe { ArcBorrow::from_raw(first) }.into())
    }

    /// The members, for as long as the guard is held.
    pub(crate) fn iter<'a>(&'a self, guard: &'a rcu::Guard) -> impl Iterator<Item = &'a T> + 'a {
        self.slots(guard).filter_map(|slot| {
            // SAFETY: By the invariant the member lives until a grace period
            // after the slot was emptied; the guard holds that off.
            unsafe { slot.member.load(Acquire).as_ref() }
        })
    }

    fn slots<'a>(&'a self, _guard: &'a rcu::Guard) -> impl Iterator<Item = &'a Slot<T>> + 'a {
        core::iter::successors(Some(&self.first), |slot| {
            // SAFETY: By the invariant; slots live as long as the list.
            unsafe { slot.next.load(Acquire).as_ref() }
        })
    }
}

impl<T> Drop for Members<T> {
    fn drop(&mut self) {
        let mut next = self.first.next.load(Relaxed);
        while !next.is_null() {
            // SAFETY: By the invariant; nobody else uses the list any more.
            let slot = unsafe { KBox::from_raw(next) };
            next = slot.next.load(Relaxed);
        }
    }
}
