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

use core::sync::atomic::{
    fence,
    AtomicBool,
    AtomicU64,
    AtomicU8,
    Ordering, //
};

use kernel::{
    bindings,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    }, //
};

use crate::{
    aperture::{self, Range},
    dma_table::Depth,
    domain::{Domain, Space},
    iommu::StaticDomain,
    members,
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

/// Whether a machine may go on using an empty table after its function went.
pub(crate) static EMPTY_IN_USE: AtomicBool = AtomicBool::new(false);

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

/// What is to be registered.
#[derive(Clone, Copy)]
enum Target<'a> {
    /// A table that maps nothing.
    Empty,
    /// No translation.
    Identity,
    /// The table of an address space.
    Space(&'a Arc<Space>),
}

impl<'a> Target<'a> {
    /// What is to be registered for what is attached.
    fn of(attached: &'a Attached) -> Self {
        match attached {
            Attached::Blocked => Target::Empty,
            Attached::Identity => Target::Identity,
            Attached::Space(space) => Target::Space(space),
        }
    }
}

/// What *Modify PCI Function Controls* was asked for.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// To register a table.
    Register,
    /// To register another one.
    Reregister,
    /// To take the table away.
    Deregister,
}

impl Operation {
    /// In a word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Register => "register",
            Operation::Reregister => "re-register",
            Operation::Deregister => "deregister",
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
    pub(crate) refused_cc: Option<u8>,
}

/// What the machine has registered, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Machine {
    Nothing,
    Table(Iota),
    /// An instruction failed while the function could not do DMA.
    Unknown,
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
    may_skip_translation: bool,
    /// A table that maps nothing, as deep as the window needs.
    empty: Iota,
    /// Whether a refresh is legal.
    live: AtomicBool,
    /// Whether a flush or an attach passed the function by, as it was in the error
    /// state.
    missed: AtomicBool,
    /// How many refreshes were refused, and the condition code of the last one.
    refused: AtomicU64,
    refused_cc: AtomicU8,
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
        let window = aperture::window(start, end, deepest.reach(), limit).ok_or(EINVAL)?;
        let may_skip_translation = zdev.may_skip_translation();
        if !may_skip_translation {
            zdev.clamp_dma_range(window);
        }
        let empty = empty(Depth::for_reach(window.last()));
        Ok(try_pin_init!(Self {
            zdev,
            blocked,
            granted,
            window,
            deepest,
            may_skip_translation,
            empty,
            live: AtomicBool::new(false),
            missed: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            refused_cc: AtomicU8::new(0),
            log_limit <- LogLimit::new(),
            state <- new_mutex!(State {
                attached: Attached::Blocked,
                machine: Machine::Nothing,
                retained: KVec::new(),
                settled: true,
                last: None,
                refuses_reregister: None,
            }, "s390_iommu::function"),
        }? Error))
    }

    /// The machine's side of it.
    pub(crate) fn zdev(&self) -> Zdev {
        self.zdev
    }

    /// The IOVAs that it can use.
    pub(crate) fn window(&self) -> Range {
        self.window
    }

    /// The deepest table that it can use.
    pub(crate) fn deepest(&self) -> Depth {
        self.deepest
    }

    /// Whether the machine lets it do DMA without translation.
    pub(crate) fn may_skip_translation(&self) -> bool {
        self.may_skip_translation
    }

    /// Whether new mappings need a refresh.
    pub(crate) fn needs_refresh_to_map(&self) -> bool {
        self.zdev.needs_refresh_to_map()
    }

    /// Attaches a domain. `EINVAL` if the two do not fit; on every error the
    /// function stays attached to what it was.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn attach(self: ArcBorrow<'_, Self>, domain: &Domain) -> Result {
        let mut state = self.state.lock();
        let from = state.attached.number();
        let space = domain.space();
        let again = matches!(&state.attached, Attached::Space(old) if Arc::ptr_eq(old, space));
        let result = match again {
            true => Ok(()),
            false => domain.admit(self),
        };
        let result = result.and_then(|()| self.attach_space(&mut state, domain, again));
        trace::attach(self.zdev.fid(), from, space.number(), result);
        result
    }

    fn attach_space(&self, state: &mut State, domain: &Domain, again: bool) -> Result {
        let space = domain.space();
        if let Err(refusal) = self.switch(state, Target::Space(space)) {
            if !state.settled {
                state.keep(space);
            }
            if !again {
                space.remove(self);
            }
            return Err(refusal.into());
        }
        self.zdev.set_domain(domain.as_raw());
        let old = core::mem::replace(&mut state.attached, Attached::Space(space.clone()));
        if !again {
            self.leave(old);
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

    /// Attaches nothing, if `space` is attached.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn block_from(&self, space: &Arc<Space>) {
        let mut state = self.state.lock();
        if matches!(&state.attached, Attached::Space(now) if Arc::ptr_eq(now, space)) {
            self.block_locked(&mut state);
        } else {
            space.remove(self);
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
        self.leave(old);
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
        if !self.may_skip_translation {
            return Err(EINVAL);
        }
        let before = state.machine;
        // A function that does not translate must not be refreshed, so it comes
        // off the table first, and then out of the flushes' sight.
        if before != Machine::Nothing {
            self.switch(state, Target::Empty)?;
        }
        self.stop_refreshes();
        if let Err(refusal) = self.ignore_unreachable(self.set(state, Iota::IDENTITY)) {
            self.go_back(state, before, refusal);
            return Err(refusal.into());
        }
        self.zdev.set_domain(identity);
        let old = core::mem::replace(&mut state.attached, Attached::Identity);
        self.leave(old);
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
            self.missed.store(false, Ordering::Relaxed);
            return;
        }
        if matches!(self.zdev.registered(), Ok(Registered::This(_))) {
            return;
        }
        self.stop_refreshes();
        state.machine = Machine::Nothing;
        // Nothing is known to the machine any more.
        self.missed.store(false, Ordering::Relaxed);
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
            Err(refusal) if self.has(&state, Target::of(&attached)) => {
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
        members::wait_for_readers();
        if !self.missed.load(Ordering::Relaxed) && state.machine != Machine::Unknown {
            return Ok(());
        }
        let attached = state.attached.clone();
        self.missed.store(false, Ordering::Relaxed);
        state.settled = false;
        let result = self.install_strictly(&mut state, Target::of(&attached));
        match result {
            // What was unmapped was looked at.
            Err(Refusal::Resources) if self.has(&state, Target::of(&attached)) => Ok(()),
            Err(refusal) => {
                self.missed.store(true, Ordering::Relaxed);
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
                EMPTY_IN_USE.store(true, Ordering::Relaxed);
                // Better lost than used.
                core::mem::forget(core::mem::take(&mut state.retained));
            }
        }
        let old = core::mem::replace(&mut state.attached, Attached::Blocked);
        self.leave(old);
        // For flushes that saw it as a member.
        members::wait_for_readers();
    }

    /// Refreshes what of some ranges is in the window, if that is legal. If the
    /// hypervisor has no resources, refreshes the window, so that it finds all that
    /// was unmapped, and no more.
    ///
    /// # Errors
    ///
    /// The first refusal, if the function can do DMA.
    ///
    /// # Context
    ///
    /// Any; after a full barrier.
    pub(crate) fn refresh_all(&self, ranges: &[Range], counter: &AtomicU64) -> Result<(), Refusal> {
        for range in ranges {
            let Some(range) = range.clip(self.window) else {
                continue;
            };
            if !self.live.load(Ordering::Acquire) {
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

    /// A function that cannot do DMA needs no more: whoever brings it back makes up
    /// for it.
    fn ignore_unreachable(&self, result: Result<(), Refusal>) -> Result<(), Refusal> {
        match result {
            Err(refusal) if refusal.is_harmless() => {
                self.missed.store(true, Ordering::Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    /// Refreshes a range, for the `retries`-th time after the first one.
    #[inline]
    fn refresh(&self, range: Range, retries: u32) -> Result<(), Refusal> {
        let result = self.zdev.refresh(range);
        let cc = result.map_or_else(Refusal::condition_code, |()| 0);
        trace::refresh(self.zdev.fid(), range, cc, retries);
        if cc != 0 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.refused_cc.store(cc, Ordering::Relaxed);
        }
        result
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
        let refused = self.refused.load(Ordering::Relaxed);
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
            refused_cc: (refused != 0).then(|| self.refused_cc.load(Ordering::Relaxed)),
        }
    }

    /// The function works, but a mapping may be missing for it.
    fn log_refused_refresh(&self, refusal: Refusal) {
        self.log(
            c"registered, but a refresh was refused; DMA may fail",
            refusal.as_str(),
        );
    }

    /// The machine may go on using what was unmapped.
    pub(crate) fn log_refused_flush(&self, refusal: Refusal) {
        self.log(
            c"refresh refused, DMA may reach unmapped memory",
            refusal.as_str(),
        );
    }

    /// Step 2: from what is registered to `target`, or back.
    fn switch(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let before = state.machine;
        let result = self.install(state, target);
        if let Err(refusal) = result {
            self.go_back(state, before, refusal);
        }
        result
    }

    /// After a refusal: puts back what was registered before, and says so, once
    /// for each attach.
    fn go_back(&self, state: &mut State, before: Machine, refusal: Refusal) {
        let why = state.why(refusal);
        if self.restore(state, before) {
            self.log(c"attach refused, it stays where it was", why);
        }
    }

    /// What is registered for a target.
    fn table(&self, target: Target<'_>) -> Iota {
        match target {
            Target::Empty => self.empty,
            Target::Identity => Iota::IDENTITY,
            Target::Space(space) => space.iota(),
        }
    }

    /// Whether a target is registered, as far as that is known.
    fn has(&self, state: &State, target: Target<'_>) -> bool {
        state.machine == Machine::Table(self.table(target))
    }

    /// Registers `target` and refreshes what it maps. A function that cannot do
    /// DMA is no error: whoever brings it back installs the target again, strictly.
    fn install(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let result = self.ignore_unreachable(self.install_strictly(state, target));
        if result.is_ok() && !self.has(state, target) {
            state.machine = Machine::Unknown;
        }
        result
    }

    /// Registers `target` and refreshes what it maps, and what was there before.
    fn install_strictly(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let result = match target {
            Target::Identity => self.set(state, Iota::IDENTITY),
            _ => self.translate(state, target),
        };
        match result {
            Ok(()) => {
                // The machine has forgotten all that it knew before.
                state.settle();
            }
            Err(refusal) if refusal.is_harmless() => {
                self.live.store(false, Ordering::Relaxed);
                state.machine = Machine::Unknown;
            }
            Err(_) => (),
        }
        result
    }

    /// Registers a table and refreshes what it maps, and what was there before.
    fn translate(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let from_nothing = state.machine == Machine::Nothing;
        let idle =
            from_nothing || state.machine == Machine::Unknown || self.has(state, Target::Empty);
        // What the machine knows is not known, and a flush may have missed it.
        let missed = self.missed.swap(false, Ordering::Relaxed);
        let uncertain =
            !from_nothing && (missed || !state.settled || state.machine == Machine::Unknown);
        let old = match &state.attached {
            Attached::Space(space) if !from_nothing => Some(space.clone()),
            _ => None,
        };
        let may_gap = idle && !matches!(target, Target::Empty);
        let table = self.table(target);
        let gapless = self
            .register_table(state, table, may_gap)
            .inspect_err(|_| self.missed.store(missed, Ordering::Relaxed))?;
        let new = match target {
            Target::Space(space) => Some(&**space),
            _ => None,
        };
        self.refresh_known(uncertain || !gapless, [old.as_deref(), new], target)
            .inspect_err(|_| self.missed.store(true, Ordering::Relaxed))
    }

    /// Registers a table, and makes flushes reach the function. Returns whether they
    /// reached it all the time; if `may_gap`, nothing has to go on meanwhile.
    fn register_table(
        &self,
        state: &mut State,
        table: Iota,
        may_gap: bool,
    ) -> Result<bool, Refusal> {
        if state.refuses_reregister.is_some() {
            return self.deregister_and_register(state, table).map(|()| false);
        }
        self.start_refreshes(state)?;
        let refusal = match self.set(state, table) {
            Ok(()) => return Ok(true),
            Err(refusal) => refusal,
        };
        let status = match state.last {
            Some((Operation::Reregister, outcome)) => outcome.status,
            _ => return Err(refusal),
        };
        if refusal.is_harmless() || !may_gap {
            return Err(refusal);
        }
        self.deregister_and_register(state, table)?;
        state.refuses_reregister = Some(status);
        kernel::pr_warn_once!(
            "the machine refuses re-registration (status {}), domains are attached with a gap\n",
            status
        );
        Ok(false)
    }

    /// Where re-registration is refused. A flush between the two instructions finds
    /// nothing registered; none is missed, as the window is refreshed afterwards.
    fn deregister_and_register(&self, state: &mut State, table: Iota) -> Result<(), Refusal> {
        if state.machine != Machine::Nothing {
            self.deregister(state).check()?;
            state.machine = Machine::Nothing;
        }
        let registered = self.issue(state, false, table);
        if registered.is_err() {
            self.stop_refreshes();
            return registered;
        }
        state.machine = Machine::Table(table);
        state.settled = false;
        self.live.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes refreshes legal: a function that does not translate gets the empty
    /// table.
    fn start_refreshes(&self, state: &mut State) -> Result<(), Refusal> {
        let translates = matches!(
            state.machine,
            Machine::Table(table) if table != Iota::IDENTITY
        );
        if !translates {
            self.set(state, self.empty)?;
        }
        self.live.store(true, Ordering::Relaxed);
        // The table that comes next may be read as soon as it is registered: by
        // then every unmap either sees the function live, or has emptied its
        // entries.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Makes refreshes illegal, and waits for those that are under way: also
    /// those that began before something else made the function not live.
    fn stop_refreshes(&self) {
        self.live.store(false, Ordering::Relaxed);
        members::wait_for_readers();
    }

    /// After a registration: refreshes what the machine may know or has to know,
    /// the whole window or what `spaces` hold. The barrier orders all that was
    /// stored, and that the function is a member and live, before.
    fn refresh_known(
        &self,
        everything: bool,
        spaces: [Option<&Space>; 2],
        target: Target<'_>,
    ) -> Result<(), Refusal> {
        fence(Ordering::SeqCst);
        let mut rest = Some(self.window);
        while let Some(window) = rest {
            let next = match everything {
                true => Some(window),
                false => Space::next_known_of(spaces, window.start()),
            };
            let Some(range) = next.and_then(|known| known.clip(window)) else {
                break;
            };
            let after = range.last().checked_add(1);
            rest = after.and_then(|start| Range::new(start, window.last()));
            match self.refresh(range, 0) {
                Err(Refusal::Resources) => {
                    // All that was unmapped is found by this one, if not before.
                    return match self.refresh(self.window, 1) {
                        Err(Refusal::Resources) if matches!(target, Target::Empty) => Ok(()),
                        result => result,
                    };
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Registers `target`, with whichever instruction fits.
    fn set(&self, state: &mut State, target: Iota) -> Result<(), Refusal> {
        let is_registered = || {
            let now = self.zdev.registered()?;
            Ok::<bool, Refusal>(now != Registered::Nothing)
        };
        let assumed = match state.machine {
            Machine::Nothing => false,
            Machine::Table(_) => true,
            Machine::Unknown => is_registered()?,
        };
        let mut result = self.issue(state, assumed, target);
        // The machine may know better whether something is registered. If it says
        // by now that the function is gone, it is being disabled, and that is what
        // the refusal comes to.
        if result == Err(Refusal::Other) && is_registered()? != assumed {
            result = self.issue(state, !assumed, target);
        }
        result?;
        state.machine = Machine::Table(target);
        // Until it was refreshed.
        state.settled = target == Iota::IDENTITY;
        Ok(())
    }

    fn issue(&self, state: &mut State, registered: bool, target: Iota) -> Result<(), Refusal> {
        let window = match target {
            Iota::IDENTITY => self.granted,
            _ => self.window,
        };
        let (operation, outcome) = if registered {
            (Operation::Reregister, self.zdev.reregister(window, target))
        } else {
            (Operation::Register, self.zdev.register(window, target))
        };
        state.last = Some((operation, outcome));
        outcome.check()
    }

    fn deregister(&self, state: &mut State) -> Outcome {
        let outcome = self.zdev.deregister();
        state.last = Some((Operation::Deregister, outcome));
        outcome
    }

    /// After a refusal: puts back what was registered before, if the machine
    /// lost it. If that is refused too, says so, and the function is blocked.
    /// Returns whether it is where it was.
    fn restore(&self, state: &mut State, before: Machine) -> bool {
        let before = match before {
            Machine::Table(before) => before,
            // The empty table blocks as well, and may be there by now.
            Machine::Nothing | Machine::Unknown => self.empty,
        };
        let put_back = if state.machine == Machine::Nothing && before == self.empty {
            Ok(())
        } else if self.zdev.registered() == Ok(Registered::This(before)) {
            // Nothing was lost, and nothing has passed it by: a function that
            // translates was live all along.
            state.machine = Machine::Table(before);
            state.settled = true;
            Ok(())
        } else {
            if before == Iota::IDENTITY {
                self.stop_refreshes();
            }
            // The refused table may be known to the machine.
            state.settled = false;
            let attached = state.attached.clone();
            let target = match before == self.empty {
                true => Target::Empty,
                false => Target::of(&attached),
            };
            self.install(state, target)
        };
        if let Err(refusal) = put_back {
            let why = state.why(refusal);
            self.log(c"new table refused, then the old one; reset it", why);
            if let Err(refusal) = self.install(state, Target::Empty) {
                self.force_block(state, refusal);
            }
        }
        put_back.is_ok()
    }

    /// The machine refused to block: takes the table away.
    fn force_block(&self, state: &mut State, refusal: Refusal) {
        let status = state.last.map_or(0, |(_, outcome)| outcome.status);
        let text = if self.take_table(state) {
            if status != Outcome::RESOURCES {
                state.refuses_reregister = Some(status);
            }
            c"refused to be blocked, its table was taken away"
        } else {
            c"refused to be blocked and to give its table back; reset it"
        };
        self.log(text, refusal.as_str());
    }

    /// Deregisters the table. Returns whether the machine does not use it any more.
    fn take_table(&self, state: &mut State) -> bool {
        // In this order no unmap is missed. A flush between the two may put the
        // function into the error state, which blocks it as well.
        let outcome = self.deregister(state);
        self.stop_refreshes();
        let taken = self.ignore_unreachable(outcome.check()).is_ok();
        if taken {
            state.machine = Machine::Nothing;
            // A want of resources passes: what was learned from it is forgotten.
            let passes = |status: &u8| *status == Outcome::RESOURCES;
            state.refuses_reregister = state.refuses_reregister.filter(|status| !passes(status));
            state.settle();
        } else {
            state.settled = false;
            if let Attached::Space(space) = &state.attached {
                let space = space.clone();
                state.keep(&space);
            }
        }
        taken
    }

    /// Step 3: leaves what was attached.
    fn leave(&self, old: Attached) {
        if let Attached::Space(space) = old {
            space.remove(self);
        }
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
