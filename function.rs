// SPDX-License-Identifier: GPL-2.0

//! A function and what is attached to it: the attach transaction.
//!
//! # Attach
//!
//! 1. *Widen.* The domain's table is made deep enough for the function, and
//!    flushes of the domain reach the function from here on. This may fail. Then
//!    nothing has changed, except that the domain may stay widened.
//! 2. *Register.* The new table is registered, and everything that it or the old
//!    table maps is refreshed. This is the only other step that may fail. Then the
//!    function is put back where it was.
//! 3. *Account.* The function leaves the old domain. This cannot fail.
//!
//! A function that translates moves from one table to the next by re-registering;
//! it is never deregistered in between. A function without a table is registered
//! with the empty table first. So step 2 is always the same, and no flush is missed
//! between the registration and the first refresh.
//!
//! Linux has never used re-registration on an IBM machine. If a machine refuses it
//! although the function could be registered, the driver deregisters the function
//! and registers it again. It does so at once if no DMA has to continue (the function
//! is being blocked, or was blocked). For a running function it does so only after
//! this has worked once where re-registration did not. DMA has a gap then, and the
//! whole window is refreshed, because a flush in the gap may not have reached the
//! function. The driver forgets what it learned when the function is disabled.
//!
//! During re-registration the function is a member of both domains, and flushes of
//! either domain refresh it. That is legal, because it is registered. It leaves the
//! old domain only when the machine no longer knows the old table.
//!
//! A *blocked* function has the empty table (after an attach) or no table (before
//! the first attach, and after a reset). Blocking cannot fail. If the machine refuses
//! the empty table, the function is deregistered. If it refuses that as well, the
//! function keeps a reference to the old address space, so its table is not freed.
//!
//! A function that is gone or in the error state does no DMA, so an attach succeeds
//! without the machine. The reset path registers what is attached
//! ([`Function::register_recorded`]). Recovery without a reset does the same if an
//! attach or a flush could not reach the function ([`Function::resume`]).

use kernel::{
    bindings,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    }, //
};

use crate::{
    address_space::{
        members::{
            Extent,
            Member, //
        },
        readers::{
            self,
            Moment, //
        },
        AddressSpace, //
    },
    atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    dma_table::Depth,
    iommu::{
        Domain,
        PagingDomain,
        StaticDomain, //
    },
    range::{
        self,
        Range, //
    },
    trace,
    zpci::{
        Iota,
        LogLimit,
        Outcome,
        Refusal,
        Registered,
        Zdev, //
    }, //
};

mod registration;

pub(crate) use registration::Operation;
use registration::{
    Machine,
    Target, //
};

/// An address space that functions are attached to.
pub(crate) type Space = AddressSpace<Function>;

/// Whether a machine may still use an empty table after its function is gone.
pub(crate) static EMPTY_IN_USE: Atomic<bool> = Atomic::new(false);

/// What is attached.
#[derive(Clone)]
enum Attached {
    Blocked,
    Identity,
    Space(Arc<Space>),
}

impl Attached {
    /// Its number in traces.
    fn number(&self) -> u64 {
        match self {
            Attached::Blocked => trace::attached::BLOCKED,
            Attached::Identity => trace::attached::IDENTITY,
            Attached::Space(space) => space.number(),
        }
    }
}

/// A snapshot of a function, for debugfs.
pub(crate) struct Status {
    /// What is attached, by its number in traces.
    pub(crate) attached: u64,
    /// What the driver believes to be registered; `None` if it does not know.
    pub(crate) assumed: Option<Registered>,
    /// What the machine reports as registered.
    pub(crate) registered: Result<Registered, Refusal>,
    /// The last instruction that changed the registration, and its outcome.
    pub(crate) last: Option<(Operation, Outcome)>,
    /// How many refreshes were refused.
    pub(crate) refused: u64,
    /// The condition code of the last refused refresh.
    pub(crate) refused_cc: Option<u32>,
}

/// What changes when something is attached.
struct State {
    attached: Attached,
    machine: Machine,
    /// Address spaces that are not attached any more but that the machine may still
    /// use, because it refused to deregister their tables.
    retained: KVec<Arc<Space>>,
    /// Whether the machine uses only what is registered.
    settled: bool,
    /// Whether the last registration succeeded and the refresh after it was refused.
    lacks_refresh: bool,
    /// When the function last left an address space. Before it is freed, flushes that
    /// found it there must end.
    passed: Option<Moment>,
    /// The last instruction that changed the registration, and its outcome.
    last: Option<(Operation, Outcome)>,
    /// The status with which the machine refused to re-register where a plain
    /// registration worked.
    refuses_reregister: Option<u8>,
}

impl State {
    /// Keeps an address space that the machine may still use. Without memory for the
    /// list, the reference is leaked: better lost than used after free.
    fn keep(&mut self, space: &Arc<Space>) {
        if self.retained.iter().any(|kept| Arc::ptr_eq(kept, space)) {
            return;
        }
        if self.retained.push(space.clone(), GFP_KERNEL).is_err() {
            core::mem::forget(space.clone());
        }
    }

    /// Waits for flushes that may still use the function.
    fn wait_for_flushes(&mut self) {
        if let Some(passed) = self.passed.take() {
            passed.wait_for_readers();
        }
    }

    /// The machine uses only what is registered: the address spaces kept so far may go.
    fn settle(&mut self) {
        self.settled = true;
        self.retained.clear();
    }

    /// Why the machine refused, for the log.
    fn why(&self, refusal: Refusal) -> &'static CStr {
        match self.last {
            Some((_, outcome)) if outcome.cc != 0 => outcome.as_str(),
            _ => refusal.as_str(),
        }
    }
}

/// A function of the driver.
#[pin_data]
pub(crate) struct Function {
    zdev: Zdev,
    /// The domain that is recorded while the function is blocked.
    blocked: &'static StaticDomain,
    /// The IOVAs that the machine grants; those of identity.
    granted: Range,
    /// The IOVAs that are translated.
    window: Range,
    deepest: Depth,
    /// A table that maps nothing, as deep as the window needs.
    empty: Iota,
    /// Whether a refresh is legal.
    live: AtomicBool,
    /// Whether a flush or an attach could not reach the function, because it was in the
    /// error state.
    missed: Atomic<bool>,
    /// How many refreshes were refused, and the condition code of the last one.
    refused: Atomic<u64>,
    refused_cc: Atomic<u32>,
    #[pin]
    log_limit: LogLimit,
    #[pin]
    state: Mutex<State>,
}

impl Function {
    /// Sets up a function, blocked. Its window is clamped here, once. The clamped window
    /// is visible to the rest of the kernel, unless the function may skip translation:
    /// such a function can reach all memory in the range that the machine grants, also
    /// memory that is plugged in later.
    ///
    /// # Errors
    ///
    /// `EINVAL` if its window is empty.
    pub(crate) fn new(
        zdev: Zdev,
        blocked: &'static StaticDomain,
        empty: impl FnOnce(Depth) -> Iota,
        limit: u64,
    ) -> Result<impl PinInit<Self, Error>> {
        let deepest = zdev.deepest();
        let (start, end) = zdev.dma_range();
        let granted = Range::new(start, end).ok_or(EINVAL)?;
        let window = range::window(start, end, deepest.reach(), limit).ok_or(EINVAL)?;
        if !zdev.may_skip_translation() {
            zdev.clamp_dma_range(window);
        }
        let empty = empty(Depth::for_reach(window.last()));
        Ok(try_pin_init!(Self {
            zdev,
            blocked,
            granted,
            window,
            deepest,
            empty,
            live: AtomicBool::new(false),
            missed: Atomic::new(false),
            refused: Atomic::new(0),
            refused_cc: Atomic::new(0),
            log_limit <- LogLimit::new(),
            state <- new_mutex!(State {
                attached: Attached::Blocked,
                machine: Machine::Nothing,
                retained: KVec::new(),
                settled: true,
                lacks_refresh: false,
                passed: None,
                last: None,
                refuses_reregister: None,
            }, "s390_iommu::function"),
        }? Error))
    }

    /// The subsystem's side of it.
    pub(crate) fn zdev(&self) -> Zdev {
        self.zdev
    }

    /// Attaches `domain`, whose address space is `space`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the domain and the function do not fit together. On every error the
    /// function stays attached to what it was.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn attach(
        self: ArcBorrow<'_, Self>,
        space: &Arc<Space>,
        domain: &Domain<impl PagingDomain>,
    ) -> Result {
        let mut state = self.state.lock();
        let from = state.attached.number();
        let again = matches!(&state.attached, Attached::Space(old) if Arc::ptr_eq(old, space));
        let result = match again {
            true => Ok(()),
            false => space.admit(self, |last| domain.widen_aperture(last)),
        };
        let result =
            result.and_then(|()| self.attach_space(&mut state, space, domain.as_raw(), again));
        trace::attach(self.zdev.fid(), from, space.number(), result);
        result
    }

    fn attach_space(
        &self,
        state: &mut State,
        space: &Arc<Space>,
        domain: *mut bindings::iommu_domain,
        again: bool,
    ) -> Result {
        if let Err(refusal) = self.switch(state, Target::Space(space)) {
            if !state.settled {
                state.keep(space);
            }
            if !again {
                self.leave_space(state, space);
            }
            return Err(refusal.into());
        }
        self.zdev.set_domain(domain);
        let old = core::mem::replace(&mut state.attached, Attached::Space(space.clone()));
        if !again {
            self.leave(state, old);
        }
        Ok(())
    }

    /// Blocks the function: detaches what is attached.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn block(&self) {
        self.block_locked(&mut self.state.lock());
    }

    /// Blocks the function if `space` is attached, because its domain is being freed. The
    /// function may be gone by now; then it has left the space already.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn block_from(&self, space: &Arc<Space>) {
        let mut state = self.state.lock();
        if matches!(&state.attached, Attached::Space(now) if Arc::ptr_eq(now, space)) {
            pr_warn!(
                "function {:08x}: its domain is freed, and it is blocked\n",
                self.zdev.fid()
            );
            self.block_locked(&mut state);
        } else {
            self.leave_space(&mut state, space);
        }
    }

    fn block_locked(&self, state: &mut State) {
        if state.machine == Machine::Nothing {
            // DMA is blocked as well.
        } else if state.refuses_reregister.is_some() {
            if !self.take_table(state) {
                self.log(
                    c"refused to give its table back; reset it",
                    c"to be blocked",
                );
            }
        } else {
            if let Err(refusal) = self.install(state, Target::Empty) {
                self.force_block(state, refusal);
            }
        }
        self.zdev.set_domain(self.blocked.as_raw());
        let old = core::mem::replace(&mut state.attached, Attached::Blocked);
        let from = old.number();
        self.leave(state, old);
        trace::attach(self.zdev.fid(), from, trace::attached::BLOCKED, Ok(()));
    }

    /// Lets the function do DMA without translation, and records `identity`, the core's
    /// domain for this.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the function must translate. On every error the function stays
    /// attached to what it was.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn attach_identity(&self, identity: *mut bindings::iommu_domain) -> Result {
        let mut state = self.state.lock();
        let from = state.attached.number();
        let result = self.skip_translation(&mut state, identity);
        trace::attach(self.zdev.fid(), from, trace::attached::IDENTITY, result);
        result
    }

    fn skip_translation(&self, state: &mut State, identity: *mut bindings::iommu_domain) -> Result {
        if !self.zdev.may_skip_translation() {
            return Err(EINVAL);
        }
        let before = state.machine;
        // A function that does not translate must not be refreshed. So it first leaves
        // its table, and then flushes stop refreshing it.
        let off = match before {
            Machine::Nothing => Ok(()),
            _ if state.refuses_reregister.is_some() => {
                self.ignore_unreachable(self.drop_table(state))
            }
            _ => self.install(state, Target::Empty),
        };
        if let Err(refusal) = off {
            self.go_back(state, before, refusal);
            return Err(refusal.into());
        }
        self.stop_refreshes();
        if let Err(refusal) = self.ignore_unreachable(self.set(state, Iota::IDENTITY)) {
            self.go_back(state, before, refusal);
            return Err(refusal.into());
        }
        self.zdev.set_domain(identity);
        let old = core::mem::replace(&mut state.attached, Attached::Identity);
        self.leave(state, old);
        Ok(())
    }

    /// The function was disabled, or is about to be enabled: it does no DMA, and
    /// nothing is registered. From here on flushes do not refresh it: once it is
    /// enabled, a refresh is an error until a table is registered.
    ///
    /// This asks the machine first, because the function may have been enabled and
    /// registered again by now.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn disabled(&self) {
        let mut state = self.state.lock();
        state.refuses_reregister = None;
        // Flushes do not refresh it already, see `stop_refreshes`.
        if state.machine == Machine::Nothing {
            self.missed.store(false, Relaxed);
            return;
        }
        if matches!(self.zdev.registered(), Ok(Registered::This(_))) {
            return;
        }
        self.stop_refreshes();
        state.machine = Machine::Nothing;
        // The machine knows nothing of the old table any more.
        self.missed.store(false, Relaxed);
        state.settle();
    }

    /// The function was enabled: registers what is attached. Only a refused registration
    /// is an error, as in the C driver. A function whose refresh is refused works, except
    /// for mappings that the hypervisor does not know yet.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn register_recorded(&self) -> Outcome {
        let mut state = self.state.lock();
        let attached = state.attached.clone();
        // An attach may have been faster, and have registered something.
        let result = match Target::of(&attached) {
            // Without a table DMA is blocked as well.
            Target::Empty => Ok(()),
            target => self.install_strictly(&mut state, target),
        };
        match result {
            // An attach may have registered a table already, and DMA through it may have
            // put the function into the error state again. That is no failure: the
            // recovery that follows calls this function once more.
            Ok(()) | Err(Refusal::InError) => Outcome::DONE,
            Err(refusal) if state.lacks_refresh => {
                self.log_refused_refresh(refusal);
                Outcome::DONE
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// The function leaves the error state without a reset: registers what is attached if
    /// an attach or a flush could not reach the function. If this fails, the function must
    /// not run again. Call this before the function leaves the error state, and after.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn resume(&self) -> Result {
        let mut state = self.state.lock();
        // After this, flushes that were refused have set `missed`.
        readers::wait_for_readers();
        if !self.missed.load(Relaxed) && state.machine != Machine::Unknown {
            return Ok(());
        }
        let attached = state.attached.clone();
        self.missed.store(false, Relaxed);
        state.settled = false;
        let result = self.install_strictly(&mut state, Target::of(&attached));
        match result {
            // The hypervisor has processed what was unmapped.
            Err(Refusal::Resources) if state.lacks_refresh => Ok(()),
            Err(refusal) => {
                self.missed.store(true, Relaxed);
                Err(refusal.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The function goes away: the machine forgets the driver's tables, and no flush
    /// uses the function any more.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn remove(&self) {
        let mut state = self.state.lock();
        if state.machine != Machine::Nothing {
            self.stop_refreshes();
            // The empty table is freed with the driver.
            let refused = self.ignore_unreachable(self.deregister(&mut state).check());
            if let Err(refusal) = refused {
                self.log(
                    c"refused to give its table back; reset it",
                    refusal.as_str(),
                );
                EMPTY_IN_USE.store(true, Relaxed);
                // Better lost than used.
                core::mem::forget(core::mem::take(&mut state.retained));
            }
        }
        let old = core::mem::replace(&mut state.attached, Attached::Blocked);
        self.leave(&mut state, old);
        // For flushes that found it as a member. Most functions left before they were
        // disabled, and waited there.
        state.wait_for_flushes();
    }

    /// Logs a refusal that the driver cannot make up for, and its consequence. The log is
    /// rate-limited.
    fn log(&self, text: &'static CStr, why: &'static CStr) {
        self.zdev.log(&self.log_limit, text, why);
    }

    /// A snapshot, for debugfs.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn status(&self) -> Status {
        let state = self.state.lock();
        let refused = self.refused.load(Relaxed);
        Status {
            attached: state.attached.number(),
            assumed: match state.machine {
                Machine::Nothing => Some(Registered::Nothing),
                Machine::Table(table) => Some(Registered::This(table)),
                Machine::Unknown => None,
            },
            registered: self.zdev.registered(),
            last: state.last,
            refused,
            refused_cc: (refused != 0).then(|| self.refused_cc.load(Relaxed)),
        }
    }

    /// The function works, but the hypervisor may not know all mappings.
    fn log_refused_refresh(&self, refusal: Refusal) {
        self.log(
            c"registered, but a refresh was refused; DMA may fail",
            refusal.as_str(),
        );
    }

    /// Step 3: leaves what was attached.
    fn leave(&self, state: &mut State, old: Attached) {
        if let Attached::Space(space) = old {
            self.leave_space(state, &space);
        }
    }

    fn leave_space(&self, state: &mut State, space: &Space) {
        space.remove(self);
        state.passed = Some(Moment::now());
    }
}

impl Member for Function {
    fn window(&self) -> Range {
        self.window
    }

    fn deepest(&self) -> Depth {
        self.deepest
    }

    fn needs_refresh_to_map(&self) -> bool {
        self.zdev.needs_refresh_to_map()
    }

    #[inline(always)]
    fn refresh_in_window(&self, range: Range, counter: &AtomicU64) -> Result<Extent, Refusal> {
        let Some(range) = range.clip(self.window) else {
            return Ok(Extent::Range);
        };
        if !self.live.load(Ordering::Acquire) {
            return Ok(Extent::All);
        }
        counter.fetch_add(1, Ordering::Relaxed);
        match self.refresh(range, 0) {
            Ok(()) => Ok(Extent::Range),
            Err(refusal) => self.refresh_instead(range, refusal, counter),
        }
    }

    fn log_refused_flush(&self, refusal: Refusal) {
        self.log(
            c"refresh refused, DMA may reach unmapped memory",
            refusal.as_str(),
        );
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Gone => Outcome { cc: 3, status: 0 },
            _ => Outcome { cc: 1, status: 0 },
        }
    }
}
