// SPDX-License-Identifier: GPL-2.0

//! A function and its machine, as the model checks of the flush protocol see them.

use std::collections::BTreeSet;
use std::sync::Mutex as Unseen;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use loom::sync::Mutex;

use crate::address_space::members::{Extent, Member};
use crate::dma_table::Depth;
use crate::range::Range;
use crate::zpci::Refusal;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Machine {
    /// Hardware: may walk a table as soon as it is registered, and caches entries until a
    /// refresh, even if another table is registered.
    Walks,
    /// A hypervisor with a shadow, which only a refresh fills, and which is emptied when
    /// another table is registered.
    Shadows,
}

/// The registered table, or the state without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// The function is disabled: it does no DMA, and a refresh finds an invalid handle.
    Disabled,
    Nothing,
    Empty,
    Identity,
    Space(usize),
}

/// A page that an address space may map.
pub(super) struct Page {
    /// The table entry: whether the page is mapped.
    pub(super) entry: AtomicBool,
    /// The memory of the page. The machine reads it, its next owner writes it.
    pub(super) memory: UnsafeCell<()>,
}

// SAFETY: The model checker detects data races.
unsafe impl Sync for Page {}

/// A function and its machine, which reads the tables of both address spaces.
pub(super) struct Function {
    machine: Machine,
    pub(super) pages: [[Page; 2]; 2],
    /// `Function::live`.
    pub(super) live: AtomicBool,
    /// The machine executes one instruction at a time for a function.
    pub(super) instruction: Mutex<()>,
    pub(super) registered: Unseen<Target>,
    cached: Unseen<BTreeSet<(usize, usize)>>,
}

/// The model of the machine.
impl Function {
    pub(super) fn new(machine: Machine, mapped: bool) -> Self {
        let page = || Page {
            entry: AtomicBool::new(mapped),
            memory: UnsafeCell::new(()),
        };
        Function {
            machine,
            pages: [[page(), page()], [page(), page()]],
            live: AtomicBool::new(false),
            instruction: Mutex::new(()),
            registered: Unseen::new(Target::Nothing),
            cached: Unseen::default(),
        }
    }

    /// Walks the registered table and caches the mapped pages.
    fn walk(&self) {
        let Target::Space(space) = *self.registered.lock().unwrap() else {
            return;
        };
        for (number, page) in self.pages[space].iter().enumerate() {
            if page.entry.load(Relaxed) {
                page.memory.with(|_| ());
                self.cached.lock().unwrap().insert((space, number));
            }
        }
    }

    /// Registers a table, or another state.
    pub(super) fn register(&self, target: Target) {
        let _one = self.instruction.lock().unwrap();
        *self.registered.lock().unwrap() = target;
        match self.machine {
            Machine::Walks => self.walk(),
            Machine::Shadows => self.cached.lock().unwrap().clear(),
        }
    }

    pub(super) fn refresh(&self) {
        let _one = self.instruction.lock().unwrap();
        let target = *self.registered.lock().unwrap();
        if target == Target::Disabled {
            return;
        }
        let legal = matches!(target, Target::Empty | Target::Space(_));
        assert!(legal, "refreshed while {target:?} is registered");
        self.cached.lock().unwrap().clear();
        self.walk();
    }

    /// Enables the function, or disables it, which drops the registration.
    pub(super) fn enable(&self, enabled: bool) {
        let _one = self.instruction.lock().unwrap();
        *self.registered.lock().unwrap() = if enabled {
            Target::Nothing
        } else {
            Target::Disabled
        };
        self.cached.lock().unwrap().clear();
    }

    pub(super) fn has_cached(&self, space: usize, page: usize) -> bool {
        self.cached.lock().unwrap().contains(&(space, page))
    }
}

impl Member for Function {
    fn window(&self) -> Range {
        Range::ALL
    }

    fn deepest(&self) -> Depth {
        Depth::First
    }

    fn needs_refresh_to_map(&self) -> bool {
        self.machine == Machine::Shadows
    }

    fn refresh_in_window(&self, _: Range, _: &AtomicU64) -> Result<Extent, Refusal> {
        if !self.live.load(Acquire) {
            return Ok(Extent::All);
        }
        self.refresh();
        Ok(Extent::Range)
    }

    fn log_refused_flush(&self, refusal: Refusal) {
        unreachable!("{refusal:?}");
    }
}
