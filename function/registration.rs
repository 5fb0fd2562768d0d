// SPDX-License-Identifier: GPL-2.0

//! Registering tables with the machine: step 2 of an attach, and how to undo it (see the
//! head of `function.rs`).

use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        barrier::{
            mb,
            Full, //
        },
        Arc, //
    }, //
};

use super::{
    Attached,
    Function,
    Space,
    State, //
};
use crate::{
    address_space::{
        members::Extent,
        readers, //
    },
    atomic::{
        AtomicU64,
        Ordering, //
    },
    range::Range,
    trace,
    zpci::{
        Iota,
        Outcome,
        Refusal,
        Registered, //
    }, //
};

/// What to register.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// A table that maps nothing.
    Empty,
    /// No translation.
    Identity,
    /// The table of an address space.
    Space(&'a Arc<Space>),
}

impl<'a> Target<'a> {
    /// What to register for what is attached.
    pub(super) fn of(attached: &'a Attached) -> Self {
        match attached {
            Attached::Blocked => Target::Empty,
            Attached::Identity => Target::Identity,
            Attached::Space(space) => Target::Space(space),
        }
    }
}

/// An operation of *Modify PCI Function Controls*.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// Register a table.
    Register,
    /// Register another table in its place.
    Reregister,
    /// Deregister the table.
    Deregister,
}

impl Operation {
    /// Its name in debugfs and in the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Operation::Register => "register",
            Operation::Reregister => "re-register",
            Operation::Deregister => "deregister",
        }
    }
}

/// What the machine has registered, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Machine {
    Nothing,
    Table(Iota),
    /// An instruction failed while the function could not do DMA.
    Unknown,
}

impl Function {
    /// Step 2: registers `target`, or puts back what was registered.
    pub(super) fn switch(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let before = state.machine;
        let result = self.install(state, target);
        if let Err(refusal) = result {
            self.go_back(state, before, refusal);
        }
        result
    }

    /// After a refusal: puts back what was registered before, and logs that once for
    /// each attach.
    pub(super) fn go_back(&self, state: &mut State, before: Machine, refusal: Refusal) {
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
            Target::Space(space) => space.root().into(),
        }
    }

    /// Whether a target is registered, as far as that is known.
    pub(super) fn has(&self, state: &State, target: Target<'_>) -> bool {
        state.machine == Machine::Table(self.table(target))
    }

    /// Registers `target` and refreshes what it maps. That a function cannot do DMA now is
    /// no error: the recovery of the function registers what is attached again.
    pub(super) fn install(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let result = self.install_strictly(state, target);
        self.ignore_unreachable(result)
    }

    /// Registers `target` and refreshes what it maps, and what was there before.
    pub(super) fn install_strictly(
        &self,
        state: &mut State,
        target: Target<'_>,
    ) -> Result<(), Refusal> {
        state.lacks_refresh = false;
        let result = match target {
            Target::Identity => self.set(state, Iota::IDENTITY),
            _ => self.translate(state, target),
        };
        match result {
            Ok(()) => {
                // The machine has forgotten everything that it knew before.
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
        // Whether a flush may have missed the function, or the machine may use a table
        // other than the one that is attached.
        let missed = self.missed.xchg(false, Relaxed);
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
            .inspect_err(|_| {
                // Another flush may have set it meanwhile.
                if missed {
                    self.missed.store(true, Relaxed);
                }
            })?;
        let new = match target {
            Target::Space(space) => Some(&**space),
            _ => None,
        };
        self.refresh_known(uncertain || !gapless, [old.as_deref(), new], target)
            .inspect_err(|_| {
                self.missed.store(true, Relaxed);
                state.lacks_refresh = true;
            })
    }

    /// Registers a table, and makes flushes reach the function. Returns whether they
    /// reached it all the time. With `may_gap`, DMA need not continue meanwhile.
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

    /// Used where re-registration is refused. A flush between the two instructions finds
    /// nothing registered. It is not missed, because the window is refreshed afterwards.
    fn deregister_and_register(&self, state: &mut State, table: Iota) -> Result<(), Refusal> {
        self.drop_table(state)?;
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

    /// Deregisters the table, if there is one. Flushes may still find the function live.
    pub(super) fn drop_table(&self, state: &mut State) -> Result<(), Refusal> {
        if self.is_registered(state)? {
            self.deregister(state).check()?;
        }
        state.machine = Machine::Nothing;
        Ok(())
    }

    /// Makes refreshes legal: registers the empty table for a function that does not
    /// translate.
    fn start_refreshes(&self, state: &mut State) -> Result<(), Refusal> {
        let translates = matches!(
            state.machine,
            Machine::Table(table) if table != Iota::IDENTITY
        );
        if !translates {
            self.set(state, self.empty)?;
        }
        self.live.store(true, Ordering::Relaxed);
        // The machine may read the next table as soon as it is registered. By then
        // every unmap either finds the function live or has emptied its entries.
        mb(Full);
        Ok(())
    }

    /// Stops refreshes, and waits for those under way, also for those that began before
    /// the function stopped being live for another reason.
    pub(super) fn stop_refreshes(&self) {
        self.live.store(false, Ordering::Relaxed);
        readers::wait_for_readers();
    }

    /// After a registration: refreshes the whole window, or what the machine may know
    /// from `spaces` or has to know of them. The barrier comes after all stores to the
    /// tables, and after the function became a member and live.
    fn refresh_known(
        &self,
        everything: bool,
        spaces: [Option<&Space>; 2],
        target: Target<'_>,
    ) -> Result<(), Refusal> {
        mb(Full);
        let everything = everything || spaces.into_iter().flatten().any(Space::is_uncertain);
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
                    // This one lets the hypervisor process everything that was unmapped.
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

    /// Whether anything is registered. Asks the machine if the driver does not know.
    fn is_registered(&self, state: &State) -> Result<bool, Refusal> {
        match state.machine {
            Machine::Nothing => Ok(false),
            Machine::Table(_) => Ok(true),
            Machine::Unknown => self.has_table(),
        }
    }

    /// Asks the machine whether anything is registered.
    fn has_table(&self) -> Result<bool, Refusal> {
        Ok(self.zdev.registered()? != Registered::Nothing)
    }

    /// Registers `target` with the operation that the machine accepts.
    pub(super) fn set(&self, state: &mut State, target: Iota) -> Result<(), Refusal> {
        let assumed = self.is_registered(state)?;
        let mut result = self.issue(state, assumed, target);
        // The driver may be wrong about whether something is registered, so it asks. An
        // answer that the function is gone means that it is being disabled: then this
        // is the error to return.
        if result == Err(Refusal::Other) && self.has_table()? != assumed {
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

    pub(super) fn deregister(&self, state: &mut State) -> Outcome {
        let outcome = self.zdev.deregister();
        state.last = Some((Operation::Deregister, outcome));
        outcome
    }

    /// After a refusal: puts back what was registered before, if the machine lost it. If
    /// that is refused too, logs it and blocks the function. Returns whether the function
    /// is where it was.
    fn restore(&self, state: &mut State, before: Machine) -> bool {
        let before = match before {
            Machine::Table(before) => before,
            // The empty table blocks as well, and may be registered by now.
            Machine::Nothing | Machine::Unknown => self.empty,
        };
        let put_back = if state.machine == Machine::Nothing && before == self.empty {
            Ok(())
        } else if self.zdev.registered() == Ok(Registered::This(before)) {
            // The machine still has it, and no flush was missed: a function that
            // translates was live all the time.
            state.machine = Machine::Table(before);
            state.settled = true;
            Ok(())
        } else {
            if before == Iota::IDENTITY {
                self.stop_refreshes();
            }
            // The machine may know the refused table.
            state.settled = false;
            let attached = state.attached.clone();
            let target = match before == self.empty {
                true => Target::Empty,
                false => Target::of(&attached),
            };
            match self.install(state, target) {
                // The hypervisor has processed everything that was unmapped.
                Err(refusal @ Refusal::Resources) if state.lacks_refresh => {
                    self.log_refused_refresh(refusal);
                    Ok(())
                }
                result => result,
            }
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

    /// The machine refused the empty table: deregisters the table instead.
    pub(super) fn force_block(&self, state: &mut State, refusal: Refusal) {
        let status = state.last.map_or(0, |(_, outcome)| outcome.status);
        let text = if self.take_table(state) {
            if !Outcome::lacks_resources(status) && !state.lacks_refresh {
                state.refuses_reregister = Some(status);
            }
            c"refused to be blocked, its table was taken away"
        } else {
            c"refused to be blocked and to give its table back; reset it"
        };
        self.log(text, refusal.as_str());
    }

    /// Deregisters the table. Returns whether the machine has stopped using it.
    pub(super) fn take_table(&self, state: &mut State) -> bool {
        // No unmap is missed in this order. A flush between the two may put the function
        // into the error state, which blocks it as well.
        let outcome = match self.is_registered(state) {
            Ok(false) => Outcome::DONE,
            _ => self.deregister(state),
        };
        self.stop_refreshes();
        let taken = self.ignore_unreachable(outcome.check()).is_ok();
        if taken {
            state.machine = Machine::Nothing;
            // A lack of resources is temporary: forget what was learned from it.
            let stays = |status: &u8| !Outcome::lacks_resources(*status);
            state.refuses_reregister = state.refuses_reregister.filter(stays);
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

    /// Turns a refusal into success if the function cannot do DMA now: the recovery of
    /// the function makes up for it.
    pub(super) fn ignore_unreachable(&self, result: Result<(), Refusal>) -> Result<(), Refusal> {
        match result {
            Err(refusal) if refusal.is_harmless() => {
                self.missed.store(true, Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    /// Refreshes a range. `retries` is the number of attempts before this one.
    #[inline(always)]
    pub(super) fn refresh(&self, range: Range, retries: u32) -> Result<(), Refusal> {
        let result = self.zdev.refresh(range);
        match result {
            Ok(()) => trace::refresh(&self.zdev, range, 0, retries),
            Err(refusal) => self.count_refusal(range, refusal, retries),
        }
        result
    }

    #[cold]
    fn count_refusal(&self, range: Range, refusal: Refusal, retries: u32) {
        let cc = refusal.condition_code();
        trace::refresh(&self.zdev, range, cc, retries);
        self.refused.fetch_add(1, Relaxed);
        self.refused_cc.store(cc.into(), Relaxed);
    }

    /// The refresh of a range was refused. If resources were the reason, refreshes the
    /// window.
    #[cold]
    pub(super) fn refresh_instead(
        &self,
        range: Range,
        refusal: Refusal,
        counter: &AtomicU64,
    ) -> Result<Extent, Refusal> {
        if refusal != Refusal::Resources || range == self.window {
            self.ignore_unreachable(Err(refusal))?;
            return Ok(Extent::Range);
        }
        counter.fetch_add(1, Ordering::Relaxed);
        self.ignore_unreachable(self.refresh(self.window, 1))?;
        Ok(Extent::All)
    }
}
