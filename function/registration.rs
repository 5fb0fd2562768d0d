// SPDX-License-Identifier: GPL-2.0

//! What the machine has registered for a function: step 2 of an attach, and the way
//! back from it (see the head of `function.rs`).

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
    address_space::readers,
    range::Range,
    trace,
    zpci::{
        Iota,
        Outcome,
        Refusal,
        Registered, //
    }, //
};

/// What is to be registered.
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
    /// What is to be registered for what is attached.
    pub(super) fn of(attached: &'a Attached) -> Self {
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

/// What the machine has registered, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Machine {
    Nothing,
    Table(Iota),
    /// An instruction failed while the function could not do DMA.
    Unknown,
}

impl Function {
    /// Step 2: from what is registered to `target`, or back.
    pub(super) fn switch(&self, state: &mut State, target: Target<'_>) -> Result<(), Refusal> {
        let before = state.machine;
        let result = self.install(state, target);
        if let Err(refusal) = result {
            self.go_back(state, before, refusal);
        }
        result
    }

    /// After a refusal: puts back what was registered before, and says so, once
    /// for each attach.
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

    /// Registers `target` and refreshes what it maps. A function that cannot do
    /// DMA is no error: whoever brings it back installs the target again, strictly.
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
                // The machine has forgotten all that it knew before.
                state.settle();
            }
            Err(refusal) if refusal.is_harmless() => {
                self.live.store(false, Relaxed);
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
                // A flush may have passed the function by meanwhile.
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
        self.drop_table(state)?;
        let registered = self.issue(state, false, table);
        if registered.is_err() {
            self.stop_refreshes();
            return registered;
        }
        state.machine = Machine::Table(table);
        state.settled = false;
        self.live.store(true, Relaxed);
        Ok(())
    }

    /// Deregisters what is registered. Flushes may still find the function live.
    pub(super) fn drop_table(&self, state: &mut State) -> Result<(), Refusal> {
        if self.is_registered(state)? {
            self.deregister(state).check()?;
        }
        state.machine = Machine::Nothing;
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
        self.live.store(true, Relaxed);
        // The table that comes next may be read as soon as it is registered: by
        // then every unmap either sees the function live, or has emptied its
        // entries.
        mb(Full);
        Ok(())
    }

    /// Makes refreshes illegal, and waits for those that are under way: also
    /// those that began before something else made the function not live.
    pub(super) fn stop_refreshes(&self) {
        self.live.store(false, Relaxed);
        readers::wait_for_readers();
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

    /// Whether anything is registered; asks the machine if that is not known.
    fn is_registered(&self, state: &State) -> Result<bool, Refusal> {
        match state.machine {
            Machine::Nothing => Ok(false),
            Machine::Table(_) => Ok(true),
            Machine::Unknown => self.has_table(),
        }
    }

    /// Whether anything is registered, as the machine says.
    fn has_table(&self) -> Result<bool, Refusal> {
        Ok(self.zdev.registered()? != Registered::Nothing)
    }

    /// Registers `target`, with whichever instruction fits.
    pub(super) fn set(&self, state: &mut State, target: Iota) -> Result<(), Refusal> {
        let assumed = self.is_registered(state)?;
        let mut result = self.issue(state, assumed, target);
        // The machine may know better whether something is registered. If it says
        // by now that the function is gone, it is being disabled, and that is what
        // the refusal comes to.
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
            match self.install(state, target) {
                // All that was unmapped was looked at.
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

    /// The machine refused to block: takes the table away.
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

    /// Deregisters the table. Returns whether the machine does not use it any more.
    pub(super) fn take_table(&self, state: &mut State) -> bool {
        // In this order no unmap is missed. A flush between the two may put the
        // function into the error state, which blocks it as well.
        let outcome = match self.is_registered(state) {
            Ok(false) => Outcome::DONE,
            _ => self.deregister(state),
        };
        self.stop_refreshes();
        let taken = self.ignore_unreachable(outcome.check()).is_ok();
        if taken {
            state.machine = Machine::Nothing;
            // A want of resources passes: what was learned from it is forgotten.
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

    /// A function that cannot do DMA needs no more: whoever brings it back makes up
    /// for it.
    pub(super) fn ignore_unreachable(&self, result: Result<(), Refusal>) -> Result<(), Refusal> {
        match result {
            Err(refusal) if refusal.is_harmless() => {
                self.missed.store(true, Relaxed);
                Ok(())
            }
            result => result,
        }
    }

    /// Refreshes a range, for the `retries`-th time after the first one.
    #[inline]
    pub(super) fn refresh(&self, range: Range, retries: u32) -> Result<(), Refusal> {
        let result = self.zdev.refresh(range);
        let cc = result.map_or_else(Refusal::condition_code, |()| 0);
        trace::refresh(self.zdev.fid(), range, cc, retries);
        if cc != 0 {
            self.refused.fetch_add(1, Relaxed);
            self.refused_cc.store(cc.into(), Relaxed);
        }
        result
    }
}
