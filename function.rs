// SPDX-License-Identifier: GPL-2.0

//! A function and what is attached to it: the attach transaction.
//!
//! # Attach
//!
//! 1. *Widen.* The domain admits the function: its table is made deep enough,
//!    and flushes reach the function from here on. May fail; nothing has changed
//!    for anybody then, but the domain stays widened.
//! 2. *Register.* The new table is registered, and all that it maps is refreshed,
//!    together with all that the old one maps. The only other step that may fail;
//!    the function is then put back where it was.
//! 3. *Account.* The function leaves the old domain. Cannot fail.
//!
//! A function that translates goes from table to table by re-registering: no
//! deregistration is issued. One that is not registered is first registered with
//! the empty table, so that step 2 is always the same, and no flush is missed
//! between the registration and the first refresh.
//!
//! Linux has never used re-registration on a machine of IBM's. Where it is refused
//! although the function is in a state to be registered, the function is
//! deregistered and registered: at once if no DMA has to go on (it is being blocked,
//! or comes from being blocked), and for a function that runs once that has
//! worked where re-registration did not. There is a gap then, and the whole window is
//! refreshed: nothing says what a flush in the gap came to. What was learned is
//! forgotten when the function is disabled.
//!
//! While the function is re-registered it is a member of both domains, and is
//! refreshed by flushes of either; that is legal, it is registered. It leaves
//! the old domain only when the machine no longer knows the old table.
//!
//! *Blocked* is the empty table (after an attach), or no registration (before
//! the first one, and after a reset). Blocking cannot fail: if the machine
//! refuses, the function is deregistered by force; if it refuses that as well,
//! the function keeps its share of the old address space, which is then not
//! freed.
//!
//! A function that is gone or in the error state does no DMA. It counts as
//! attached; the reset path registers what was recorded last
//! ([`Function::register_recorded`]). So does the recovery without a reset, if an
//! attach or a flush has missed the function ([`Function::resume`]).

use kernel::{
    bindings,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
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
        members::Member,
        readers::{
            self,
            Moment, //
        },
        AddressSpace, //
    },
    atomic::{
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

/// Whether a machine may go on using an empty table after its function went.
pub(crate) static EMPTY_IN_USE: Atomic<bool> = Atomic::new(false);

/// What is attached.
#[derive(Clone)]
enum Attached {
    Blocked,
    Identity,
    Space(Arc<Space>),
}

impl Attached {
    /// By which name it is traced.
    fn number(&self) -> u64 {
        match self {
            Attached::Blocked => trace::attached::BLOCKED,
            Attached::Identity => trace::attached::IDENTITY,
            Attached::Space(space) => space.number(),
        }
    }
}

/// What there is to see of a function, all at one moment.
pub(crate) struct Status {
    /// What is attached, by its name in traces.
    pub(crate) attached: u64,
    /// What the driver takes to be registered; `None` if it does not know.
    pub(crate) assumed: Option<Registered>,
    /// What is registered, says the machine.
    pub(crate) registered: Result<Registered, Refusal>,
    /// The last instruction on a table, and its outcome.
    pub(crate) last: Option<(Operation, Outcome)>,
    /// How many refreshes were refused.
    pub(crate) refused: u64,
    /// The condition code of the last one of them.
    pub(crate) refused_cc: Option<u32>,
}

/// What changes when something is attached.
struct State {
    attached: Attached,
    machine: Machine,
    /// Address spaces that the machine may still be using although something else
    /// is attached: it refused to let go of them.
    retained: KVec<Arc<Space>>,
    /// Whether the machine cannot be using anything but what is registered.
    settled: bool,
    /// Whether the last target was registered, and a refresh after that refused.
    lacks_refresh: bool,
    /// When it last left an address space; flushes that saw it there are waited for
    /// before it goes.
    passed: Option<Moment>,
    /// The last instruction on a table, and its outcome.
    last: Option<(Operation, Outcome)>,
    /// Whether re-registration was refused where a registration was not, and the
    /// status of the refusal.
    refuses_reregister: Option<u8>,
}

impl State {
    /// Keeps an address space that the machine may go on using. Without memory to
    /// note it, it is lost rather than used after it was freed.
    fn keep(&mut self, space: &Arc<Space>) {
        if self.retained.iter().any(|kept| Arc::ptr_eq(kept, space)) {
            return;
        }
        if self.retained.push(space.clone(), GFP_KERNEL).is_err() {
            core::mem::forget(space.clone());
        }
    }

    /// Waits for flushes that do not pass the function by yet.
    fn wait_for_flushes(&mut self) {
        if let Some(passed) = self.passed.take() {
            passed.wait_for_readers();
        }
    }

    /// The machine cannot be using anything but what is registered.
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

/// A function that the driver has.
#[pin_data]
pub(crate) struct Function {
    zdev: Zdev,
    /// What is recorded while nothing is attached.
    blocked: &'static StaticDomain,
    /// The IOVAs that the machine grants; those of identity.
    granted: Range,
    /// The IOVAs that are translated.
    window: Range,
    deepest: Depth,
    /// A table that maps nothing, as deep as the window needs.
    empty: Iota,
    /// Whether a refresh is legal.
    live: Atomic<bool>,
    /// Whether a flush or an attach passed the function by, as it was in the error
    /// state.
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
    /// Sets a function up, blocked. Its window is clamped here, once. Others see
    /// that unless the function may skip translation: it can then reach all memory
    /// that the machine grants, also what is plugged later.
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
            live: Atomic::new(false),
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

    /// The machine's side of it.
    pub(crate) fn zdev(&self) -> Zdev {
        self.zdev
    }

    /// Attaches `domain`, whose address space is `space`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it does not fit. On every error the function stays attached to what it
    /// was.
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

    /// Attaches nothing.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn block(&self) {
        self.block_locked(&mut self.state.lock());
    }

    /// The domain of `space` is freed: attaches nothing if that is what is attached.
    /// The function may have gone meanwhile, and then it has left.
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

    /// Lets the function do DMA without translation: `identity`, as the core
    /// sees it, is recorded.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it must not; on every error the function stays attached to
    /// what it was.
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
        // A function that does not translate must not be refreshed, so it comes
        // off the table first, and then out of the flushes' sight.
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
    /// nothing is registered. From here on flushes leave it alone: once it is
    /// enabled, a refresh is an error until a table is registered.
    ///
    /// The machine is asked, as somebody else may have enabled the function and
    /// registered its table by now.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn disabled(&self) {
        let mut state = self.state.lock();
        state.refuses_reregister = None;
        // Flushes leave it alone already, see `stop_refreshes`.
        if state.machine == Machine::Nothing {
            self.missed.store(false, Relaxed);
            return;
        }
        if matches!(self.zdev.registered(), Ok(Registered::This(_))) {
            return;
        }
        self.stop_refreshes();
        state.machine = Machine::Nothing;
        // Nothing is known to the machine any more.
        self.missed.store(false, Relaxed);
        state.settle();
    }

    /// The function was enabled: registers what is attached. Only a registration that
    /// is refused is an error, as with the driver in C: a function whose refresh is
    /// refused works, but for mappings that a hypervisor does not know.
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
            // If it did DMA through what an attach registered, and is in the error
            // state again, this was no failure: the recovery that follows comes
            // here once more.
            Ok(()) | Err(Refusal::InError) => Outcome::DONE,
            Err(refusal) if state.lacks_refresh => {
                self.log_refused_refresh(refusal);
                Outcome::DONE
            }
            Err(refusal) => refusal.into(),
        }
    }

    /// The function leaves the error state without a reset: registers what is
    /// attached, if an attach or a flush has passed it by. It must not run again if
    /// this fails. To be called before it leaves the state, and after.
    ///
    /// # Context
    ///
    /// Sleeps.
    pub(crate) fn resume(&self) -> Result {
        let mut state = self.state.lock();
        // Flushes that were refused have noted it by then.
        readers::wait_for_readers();
        if !self.missed.load(Relaxed) && state.machine != Machine::Unknown {
            return Ok(());
        }
        let attached = state.attached.clone();
        self.missed.store(false, Relaxed);
        state.settled = false;
        let result = self.install_strictly(&mut state, Target::of(&attached));
        match result {
            // What was unmapped was looked at.
            Err(Refusal::Resources) if state.lacks_refresh => Ok(()),
            Err(refusal) => {
                self.missed.store(true, Relaxed);
                Err(refusal.into())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The function goes: the machine forgets the driver's tables, and no flush
    /// can see the function any more.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn remove(&self) {
        let mut state = self.state.lock();
        if state.machine != Machine::Nothing {
            self.stop_refreshes();
            // The empty table may go with the driver.
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
        // For flushes that saw it as a member. Mostly it left before it was disabled, and
        // has waited then.
        state.wait_for_flushes();
    }

    /// Logs that the machine refused what it must not refuse, and what follows; not
    /// more often than a log bears.
    fn log(&self, text: &'static CStr, why: &'static CStr) {
        self.zdev.log(&self.log_limit, text, why);
    }

    /// What there is to see, for debugfs.
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

    /// The function works, but a mapping may be missing for it.
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

    fn refresh_all(&self, ranges: &[Range], counter: &AtomicU64) -> Result<(), Refusal> {
        for range in ranges {
            let Some(range) = range.clip(self.window) else {
                continue;
            };
            if !self.live.load(Acquire) {
                return Ok(());
            }
            counter.fetch_add(1, Ordering::Relaxed);
            let result = self.refresh(range, 0);
            if result == Err(Refusal::Resources) && range != self.window {
                counter.fetch_add(1, Ordering::Relaxed);
                return self.ignore_unreachable(self.refresh(self.window, 1));
            }
            self.ignore_unreachable(result)?;
        }
        Ok(())
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
