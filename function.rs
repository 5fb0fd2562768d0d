// SPDX-License-Identifier: GPL-2.0

//! A function and what is attached to it: the attach transaction.
//!
//! # Attach
//!
//! 1. *Widen.* The domain admits the function: its table is made deep enough,
//!    and flushes reach the function from here on. May fail; nothing has changed
//!    for anybody then, but the domain stays widened.
//! 2. *Register.* The machine is told of the new table, and to read all of it
//!    anew. The only other step that may fail; the function is then put back
//!    where it was.
//! 3. *Account.* The function leaves the old domain. Cannot fail.
//!
//! A function that translates goes from table to table by re-registering: no
//! deregistration is issued. One that is not registered is first registered with
//! the empty table, so that step 2 is always the same, and no flush is missed
//! between the registration and the first refresh.
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
//! ([`Function::register_recorded`]), and so does the recovery without a reset
//! ([`Function::resume`]).

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
        Mutex, //
    }, //
};

use crate::{
    aperture::{self, Range},
    dma_table::Depth,
    domain::{self, Domain, Space},
    members,
    trace,
    zpci::{
        Designation,
        Outcome,
        Refusal,
        Registered,
        Zdev, //
    }, //
};

/// What is attached.
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
    pub(crate) told: Option<Registered>,
    /// What is registered, says the machine.
    pub(crate) registered: Result<Registered, Refusal>,
    /// What the machine was told last, and how that went.
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
    Table(Designation),
    /// It was told something while it took no orders.
    Unknown,
}

/// What changes when something is attached.
struct State {
    attached: Attached,
    machine: Machine,
    /// An address space that the machine may still be using although something
    /// else is attached: it refused to let go of it.
    stuck: Option<Arc<Space>>,
    /// Whether the machine cannot be using anything but what is registered.
    settled: bool,
    /// What the machine was told last, and how that went.
    last: Option<(Operation, Outcome)>,
}

impl State {
    /// Keeps an address space that the machine may go on using. If there is one
    /// already, that one is lost rather than used after it was freed.
    fn keep(&mut self, space: &Arc<Space>) {
        if let Some(before) = self.stuck.replace(space.clone()) {
            core::mem::forget(before);
        }
    }

    /// The machine cannot be using anything but what is registered.
    fn settle(&mut self) {
        self.settled = true;
        self.stuck = None;
    }

    /// Why the machine refused, in words.
    fn why(&self, refusal: Refusal) -> &'static CStr {
        match self.last {
            Some((_, outcome)) if outcome.cc != 0 => outcome.words(),
            _ => refusal.words(),
        }
    }
}

/// A function that the driver serves.
#[pin_data]
pub(crate) struct Function {
    zdev: Zdev,
    window: Range,
    deepest: Depth,
    /// A table that maps nothing, as deep as the window needs.
    empty: Designation,
    /// Whether a refresh is legal.
    live: AtomicBool,
    /// How many refreshes were refused, and the condition code of the last one.
    refused: AtomicU64,
    refused_cc: AtomicU8,
    #[pin]
    state: Mutex<State>,
}

impl Function {
    /// Sets a function up, blocked. Its window is clamped here, once.
    ///
    /// # Errors
    ///
    /// `EINVAL` if its window is empty.
    pub(crate) fn new(
        zdev: Zdev,
        empty: impl FnOnce(Depth) -> Designation,
        limit: u64,
    ) -> Result<impl PinInit<Self, Error>> {
        let deepest = zdev.deepest();
        let (start, end) = zdev.dma_range();
        let window = aperture::window(start, end, deepest.reach(), limit).ok_or(EINVAL)?;
        zdev.clamp_dma_range(window);
        let empty = empty(Depth::for_reach(window.last()));
        Ok(try_pin_init!(Self {
            zdev,
            window,
            deepest,
            empty,
            live: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            refused_cc: AtomicU8::new(0),
            state <- new_mutex!(State {
                attached: Attached::Blocked,
                machine: Machine::Nothing,
                stuck: None,
                settled: true,
                last: None,
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

    /// Whether it has to be told of new mappings.
    pub(crate) fn needs_refresh_to_map(&self) -> bool {
        self.zdev.needs_refresh_to_map()
    }

    /// Attaches a domain. `EINVAL` if the two do not fit; on every error the
    /// function stays attached to what it was.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn attach(&self, domain: &Domain) -> Result {
        let mut state = self.state.lock();
        let from = state.attached.number();
        let result = self.attach_space(&mut state, domain);
        trace::attach(self.zdev.fid(), from, domain.space().number(), result);
        result
    }

    fn attach_space(&self, state: &mut State, domain: &Domain) -> Result {
        let space = domain.space();
        let again = matches!(&state.attached, Attached::Space(old) if Arc::ptr_eq(old, space));
        if !again {
            domain.admit(self)?;
        }
        let target = space.designation();
        if let Err(refusal) = self.switch(state, target) {
            if !state.settled {
                state.keep(space);
            }
            if !again {
                space.dismiss(self);
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

    /// Attaches nothing: `blocked`, as the core sees it, is recorded.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn block(&self, blocked: *mut bindings::iommu_domain) {
        let mut state = self.state.lock();
        if state.machine != Machine::Nothing {
            if let Err(refusal) = self.tell(&mut state, self.empty) {
                self.force_block(&mut state, refusal);
            }
        }
        self.zdev.set_domain(blocked);
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
        if !self.zdev.may_skip_translation() {
            return Err(EINVAL);
        }
        let before = state.machine;
        // A function that does not translate must not be refreshed, so it comes
        // off the table first, and then out of the flushes' sight.
        if before != Machine::Nothing {
            self.switch(state, self.empty)?;
        }
        self.stop_refreshes();
        if let Err(refusal) = domain::matters(self.set(state, Designation::IDENTITY)) {
            self.go_back(state, before, refusal);
            return Err(refusal.into());
        }
        self.zdev.set_domain(identity);
        let old = core::mem::replace(&mut state.attached, Attached::Identity);
        self.leave(old);
        Ok(())
    }

    /// The function was disabled, so it does no DMA, and the machine has dropped
    /// what was registered. From here on flushes leave it alone: once it is
    /// enabled, a refresh is an error until a table is registered.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn disabled(&self) {
        let mut state = self.state.lock();
        self.stop_refreshes();
        state.machine = Machine::Nothing;
        state.settle();
    }

    /// The function was enabled: registers what is attached.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn register_recorded(&self) -> Outcome {
        let mut state = self.state.lock();
        // An attach may have been faster, and have registered something.
        let told = match self.recorded(&state) {
            // Without a table DMA is blocked as well.
            target if target == self.empty => Ok(()),
            target => self.tell_strictly(&mut state, target),
        };
        match told {
            // If it did DMA through what an attach registered, and is in the error
            // state again, this was no failure: the recovery that follows comes
            // here once more.
            Ok(()) | Err(Refusal::InError) => Outcome::DONE,
            Err(refusal) => refusal.into(),
        }
    }

    /// The function is about to leave the error state without a reset: registers
    /// what is attached, as attaches and flushes may have passed it by. It must
    /// not run again if this fails.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn resume(&self) -> Result {
        let mut state = self.state.lock();
        let target = self.recorded(&state);
        Ok(self.tell_strictly(&mut state, target)?)
    }

    /// The function goes: the machine forgets the driver's tables, and no flush
    /// can see the function any more.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn retire(&self) {
        let mut state = self.state.lock();
        self.stop_refreshes();
        if state.machine != Machine::Nothing {
            // The empty table may go with the driver.
            let refused = domain::matters(self.deregister(&mut state).check());
            if let Err(refusal) = refused {
                self.zdev
                    .complain(c"refused to give its table back; reset it", refusal.words());
                // Better lost than used.
                if let Some(space) = state.stuck.take() {
                    core::mem::forget(space);
                }
            }
        }
        let old = core::mem::replace(&mut state.attached, Attached::Blocked);
        self.leave(old);
        // For flushes that saw it as a member.
        members::wait_for_readers();
    }

    /// Refreshes what of a range is in the window, if that is legal. If the
    /// hypervisor has no room, lets it find out all that was unmapped, and tries
    /// again.
    ///
    /// # Context
    ///
    /// Any; after a full barrier.
    pub(crate) fn refresh_or_all(&self, range: Range, counter: &AtomicU64) -> Result<(), Refusal> {
        let Some(range) = range.clip(self.window) else {
            return Ok(());
        };
        if !self.live.load(Ordering::Acquire) {
            return Ok(());
        }
        counter.fetch_add(1, Ordering::Relaxed);
        domain::matters(self.refresh(range, 0).or_else(|refusal| {
            if refusal != Refusal::Resources {
                return Err(refusal);
            }
            counter.fetch_add(2, Ordering::Relaxed);
            // Whether there is room now the next one tells.
            let _ = self.refresh(self.window, 0);
            self.refresh(range, 1)
        }))
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
            told: match state.machine {
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

    /// Says that the machine goes on using what was unmapped.
    pub(crate) fn complain(&self, refusal: Refusal) {
        self.zdev.complain(
            c"refresh refused, DMA may reach unmapped memory",
            refusal.words(),
        );
    }

    /// Step 2: from what is registered to `target`, or back.
    fn switch(&self, state: &mut State, target: Designation) -> Result<(), Refusal> {
        let before = state.machine;
        let told = self.tell(state, target);
        if let Err(refusal) = told {
            self.go_back(state, before, refusal);
        }
        told
    }

    /// After a refusal: puts back what was registered before, and says so, once
    /// for each attach.
    fn go_back(&self, state: &mut State, before: Machine, refusal: Refusal) {
        let why = state.why(refusal);
        if self.restore(state, before) {
            self.zdev
                .complain(c"attach refused, it stays where it was", why);
        }
    }

    /// Registers `target` and refreshes the window. A function that cannot do
    /// DMA counts as told: whoever brings it back tells it again, strictly.
    fn tell(&self, state: &mut State, target: Designation) -> Result<(), Refusal> {
        let told = domain::matters(self.tell_strictly(state, target));
        if told.is_ok() && state.machine != Machine::Table(target) {
            state.machine = Machine::Unknown;
        }
        told
    }

    /// Registers `target` and refreshes the window. After an error the function
    /// is live only if it was before.
    fn tell_strictly(&self, state: &mut State, target: Designation) -> Result<(), Refusal> {
        let told = match target {
            Designation::IDENTITY => self.set(state, target),
            _ => self
                .start_refreshes(state)
                .and_then(|()| self.set(state, target))
                .and_then(|()| self.refresh_window()),
        };
        match told {
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
        told
    }

    /// Makes refreshes legal: a function that does not translate gets the empty
    /// table.
    fn start_refreshes(&self, state: &mut State) -> Result<(), Refusal> {
        let translates = matches!(
            state.machine,
            Machine::Table(table) if table != Designation::IDENTITY
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

    /// Lets the machine read all of the registered table. The barrier orders
    /// all that was stored, and that the function is a member and live, before.
    fn refresh_window(&self) -> Result<(), Refusal> {
        fence(Ordering::SeqCst);
        self.refresh(self.window, 0)
    }

    /// Registers `target`, with whichever instruction fits.
    fn set(&self, state: &mut State, target: Designation) -> Result<(), Refusal> {
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
        state.settled = target == Designation::IDENTITY;
        Ok(())
    }

    fn issue(
        &self,
        state: &mut State,
        registered: bool,
        target: Designation,
    ) -> Result<(), Refusal> {
        let (operation, outcome) = if registered {
            let outcome = self.zdev.reregister(self.window, target);
            (Operation::Reregister, outcome)
        } else {
            (Operation::Register, self.zdev.register(self.window, target))
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
        let put_back = if state.machine == Machine::Nothing {
            Ok(())
        } else if self.zdev.registered() == Ok(Registered::This(before)) {
            // Nothing was lost, and nothing has passed it by: a function that
            // translates was live all along.
            state.machine = Machine::Table(before);
            state.settled = true;
            Ok(())
        } else {
            if before == Designation::IDENTITY {
                self.stop_refreshes();
            }
            self.tell(state, before)
        };
        if let Err(refusal) = put_back {
            let why = state.why(refusal);
            self.zdev
                .complain(c"new table refused, then the old one; reset it", why);
            if let Err(refusal) = self.tell(state, self.empty) {
                self.force_block(state, refusal);
            }
        }
        put_back.is_ok()
    }

    /// What the machine is to be told, by what is attached.
    fn recorded(&self, state: &State) -> Designation {
        match &state.attached {
            Attached::Space(space) => space.designation(),
            Attached::Identity => Designation::IDENTITY,
            Attached::Blocked => self.empty,
        }
    }

    /// The machine refused to block: takes the table away.
    fn force_block(&self, state: &mut State, refusal: Refusal) {
        // In this order no unmap is missed. A flush between the two may put the
        // function into the error state, which blocks it as well.
        let outcome = self.deregister(state);
        self.stop_refreshes();
        let text = if domain::matters(outcome.check()).is_ok() {
            state.machine = Machine::Nothing;
            state.settle();
            c"refused to be blocked, its table was taken away"
        } else {
            state.settled = false;
            if let Attached::Space(space) = &state.attached {
                let space = space.clone();
                state.keep(&space);
            }
            c"refused to be blocked and to give its table back; reset it"
        };
        self.zdev.complain(text, refusal.words());
    }

    /// Step 3: leaves what was attached.
    fn leave(&self, old: Attached) {
        if let Attached::Space(space) = old {
            space.dismiss(self);
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
