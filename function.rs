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
            state <- new_mutex!(State {
                attached: Attached::Blocked,
                machine: Machine::Nothing,
                stuck: None,
                settled: true,
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
        let space = domain.space();
        let again = matches!(&state.attached, Attached::Space(old) if Arc::ptr_eq(old, space));
        if !again {
            domain.admit(self)?;
        }
        let target = space.designation();
        if let Err(refusal) = self.switch(&mut state, target) {
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
        self.leave(old);
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
        if !self.zdev.may_skip_translation() {
            return Err(EINVAL);
        }
        let mut state = self.state.lock();
        let before = state.machine;
        // A function that does not translate must not be refreshed, so it comes
        // off the table first, and then out of the flushes' sight.
        if before != Machine::Nothing {
            self.switch(&mut state, self.empty)?;
        }
        self.stop_refreshes();
        if let Err(refusal) = domain::matters(self.set(&mut state, Designation::IDENTITY)) {
            self.restore(&mut state, before);
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
        state.machine = Machine::Nothing;
        let told = match self.recorded(&state) {
            // Without a table DMA is blocked as well.
            target if target == self.empty => Ok(()),
            target => self.tell_strictly(&mut state, target),
        };
        match told {
            Ok(()) => Outcome::DONE,
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
            let refused = domain::matters(self.zdev.deregister().check());
            if let Err(refusal) = refused {
                self.zdev
                    .complain(c"refused to give its table back; reset it", refusal);
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
        domain::matters(self.zdev.refresh(range).or_else(|refusal| {
            if refusal != Refusal::Resources {
                return Err(refusal);
            }
            counter.fetch_add(2, Ordering::Relaxed);
            // Whether there is room now the next one tells.
            let _ = self.zdev.refresh(self.window);
            self.zdev.refresh(range)
        }))
    }

    /// Says that the machine goes on using what was unmapped.
    pub(crate) fn complain(&self, refusal: Refusal) {
        self.zdev
            .complain(c"refresh refused, DMA may reach unmapped memory", refusal);
    }

    /// Step 2: from what is registered to `target`, or back.
    fn switch(&self, state: &mut State, target: Designation) -> Result<(), Refusal> {
        let before = state.machine;
        let told = self.tell(state, target);
        if told.is_err() {
            self.restore(state, before);
        }
        told
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
        if state.machine == Machine::Table(Designation::IDENTITY)
            || !matches!(state.machine, Machine::Table(_))
        {
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
        self.zdev.refresh(self.window)
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
        let mut result = self.issue(assumed, target);
        // The machine may know better whether something is registered.
        if result == Err(Refusal::Other) && is_registered().is_ok_and(|now| now != assumed) {
            result = self.issue(!assumed, target);
        }
        result?;
        state.machine = Machine::Table(target);
        // Until it was refreshed.
        state.settled = target == Designation::IDENTITY;
        Ok(())
    }

    fn issue(&self, registered: bool, target: Designation) -> Result<(), Refusal> {
        if registered {
            self.zdev.reregister(self.window, target).check()
        } else {
            self.zdev.register(self.window, target).check()
        }
    }

    /// After a refusal: puts back what was registered before, if the machine
    /// lost it. If that is refused too, the function is blocked.
    fn restore(&self, state: &mut State, before: Machine) {
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
            self.zdev
                .complain(c"new table refused, then the old one; reset it", refusal);
            if let Err(refusal) = self.tell(state, self.empty) {
                self.force_block(state, refusal);
            }
        }
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
        let outcome = self.zdev.deregister();
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
        self.zdev.complain(text, refusal);
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
