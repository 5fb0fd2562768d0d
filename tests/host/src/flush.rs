// SPDX-License-Identifier: GPL-2.0

//! Model checks of the flush protocol: no flush is missed, and none hits a
//! function that is not registered.
//!
//! Marks and full flushes are the driver's own (`pending.rs`). The rest needs a kernel
//! around it, so it is written down once more here, as small as it can be: two
//! pages, two address spaces, one function. Each piece names the one that it mirrors. RCU is a lock that
//! readers share and a grace period takes. What holds:
//!
//! - a page is given away when its unmap and flush are done: no machine has it
//!   cached by then, and none is loading it (a data race, for the checker);
//! - after a map, and a flush for it, the machine of every attached function
//!   sees the page;
//! - a refresh hits only a function that is registered with a table.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release flush`.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex as Unseen};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{
    fence, AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use loom::sync::{Mutex, RwLock};
use loom::thread;

use crate::aperture::Range;
use crate::pending::{Flushes, Pending};

/// What can be left out of the protocol, on purpose.
trait Protocol: Send + Sync + 'static {
    /// The barrier between a flush's stores and its look for members.
    const FENCE_IN_FLUSH: bool = true;
    /// The barrier between joining, or becoming live, and the registration.
    const FENCE_BEFORE_REGISTER: bool = true;
    /// The refresh of all that is mapped, after a registration.
    const REFRESH_AFTER_REGISTER: bool = true;
    /// The old address space is left last.
    const LEAVE_LAST: bool = true;
    /// The wait for flushes that may have seen the function live.
    const GRACE_PERIOD: bool = true;
    /// A function is disabled before flushes leave it alone.
    const DISABLE_FIRST: bool = true;
    /// What a full flush took stays known to others until it ends.
    const SHARED: bool = true;
    /// A full flush looks for members after it took the marks.
    const TAKE_FIRST: bool = true;
}

/// As in the driver.
struct Sound;
impl Protocol for Sound {}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Machine {
    /// Hardware: may walk the table as soon as it is registered, and caches
    /// what it found until a refresh, whatever is registered.
    Walks,
    /// A hypervisor: a shadow that only a refresh fills, emptied when another
    /// table is registered.
    Shadows,
}

/// What is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    /// The function is disabled: it does no DMA, and a refresh finds no function.
    Disabled,
    Nothing,
    Empty,
    Identity,
    Space(usize),
}

/// A page that an address space may map.
struct Page {
    /// The table entry: whether it is mapped.
    entry: AtomicBool,
    /// Its memory. The machine reads it, who gets it after an unmap writes it.
    memory: UnsafeCell<()>,
}

/// `domain::Space`, with `Members` of one slot. Marks and full flushes are the
/// driver's own.
struct Space {
    pages: [Page; 2],
    count: AtomicUsize,
    slot: AtomicBool,
    pending: Pending,
    flushes: Mutex<Flushes>,
}

impl Space {
    fn new(mapped: bool) -> Self {
        let page = || Page {
            entry: AtomicBool::new(mapped),
            memory: UnsafeCell::new(()),
        };
        Space {
            pages: [page(), page()],
            count: AtomicUsize::new(0),
            slot: AtomicBool::new(false),
            pending: Pending::new(Range::sized(0, 1 << 30).expect("not empty")),
            flushes: Mutex::new(Flushes::new()),
        }
    }

    /// `Members::join`.
    fn join(&self) {
        self.count.fetch_add(1, SeqCst);
        self.slot.store(true, SeqCst);
        fence(SeqCst);
    }

    /// `Members::leave`.
    fn leave(&self) {
        self.slot.store(false, Release);
        self.count.fetch_sub(1, Release);
    }

    /// Marks a page; each is in a chunk of its own.
    fn mark(&self, page: usize) {
        self.pending.mark_one((page as u64) << 20);
    }

    /// `Space::next_known`: whether there is anything to refresh.
    fn is_known(&self) -> bool {
        let mapped = |page: &Page| page.entry.load(Relaxed);
        self.pages.iter().any(mapped) || self.pending.next_marked(0).is_some()
    }
}

/// One function on its machine, and two address spaces.
struct World<P> {
    machine: Machine,
    spaces: [Space; 2],
    /// `Function::live`.
    live: AtomicBool,
    rcu: RwLock<()>,
    /// The machine does one instruction for a function at a time.
    instruction: Mutex<()>,
    registered: Unseen<Target>,
    cached: Unseen<BTreeSet<(usize, usize)>>,
    protocol: PhantomData<P>,
}

/// The machine.
impl<P: Protocol> World<P> {
    /// Reads what is registered.
    fn walk(&self) {
        let Target::Space(space) = *self.registered.lock().unwrap() else {
            return;
        };
        for (number, page) in self.spaces[space].pages.iter().enumerate() {
            if page.entry.load(Relaxed) {
                page.memory.with(|_| ());
                self.cached.lock().unwrap().insert((space, number));
            }
        }
    }

    /// Registers something else, or nothing.
    fn register(&self, target: Target) {
        let _one = self.instruction.lock().unwrap();
        *self.registered.lock().unwrap() = target;
        match self.machine {
            Machine::Walks => self.walk(),
            Machine::Shadows => self.cached.lock().unwrap().clear(),
        }
    }

    fn refresh(&self) {
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

    /// The function is disabled, which drops what is registered, or enabled.
    fn enable(&self, enabled: bool) {
        let _one = self.instruction.lock().unwrap();
        *self.registered.lock().unwrap() = if enabled {
            Target::Nothing
        } else {
            Target::Disabled
        };
        self.cached.lock().unwrap().clear();
    }

    fn has_cached(&self, space: usize, page: usize) -> bool {
        self.cached.lock().unwrap().contains(&(space, page))
    }
}

/// The driver.
impl<P: Protocol> World<P> {
    /// A function that was never attached, and two address spaces that map both
    /// pages, or none.
    fn new(machine: Machine, mapped: bool) -> Self {
        World {
            machine,
            spaces: [Space::new(mapped), Space::new(mapped)],
            live: AtomicBool::new(false),
            rcu: RwLock::new(()),
            instruction: Mutex::new(()),
            registered: Unseen::new(Target::Nothing),
            cached: Unseen::default(),
            protocol: PhantomData,
        }
    }

    /// `Members::nobody_sees_stores`.
    fn nobody_sees_stores(&self, space: &Space) -> bool {
        if P::FENCE_IN_FLUSH {
            fence(SeqCst);
        }
        space.count.load(Relaxed) == 0
    }

    /// `Space::refresh_mapped` and `refresh_unmapped`.
    fn refresh_members(&self, space: &Space) {
        let _guard = self.rcu.read().unwrap();
        if space.slot.load(Acquire) && self.live.load(Acquire) {
            self.refresh();
        }
    }

    /// `Space::sync_map`, `Space::sync`.
    fn sync(&self, space: &Space) {
        if !self.nobody_sees_stores(space) {
            self.refresh_members(space);
        }
    }

    /// `Space::flush_all`.
    fn flush_all(&self, space: &Space) {
        let nobody = !P::TAKE_FIRST && self.nobody_sees_stores(space);
        let mut alone = Flushes::new();
        let begin = |flushes: &mut Flushes| flushes.begin(&space.pending, true);
        let ticket = match P::SHARED {
            true => begin(&mut space.flushes.lock().unwrap()),
            false => begin(&mut alone),
        };
        if !ticket.ranges.as_slice().is_empty() && !nobody {
            self.sync(space);
        }
        match P::SHARED {
            true => space.flushes.lock().unwrap().end(&ticket, true),
            false => alone.end(&ticket, true),
        };
    }

    fn map(&self, space: usize, page: usize) {
        let space = &self.spaces[space];
        space.pages[page].entry.store(true, Relaxed);
        self.sync(space);
    }

    /// The page belongs to somebody else from here on.
    fn give_away(&self, space: usize, page: usize) {
        self.spaces[space].pages[page].memory.with_mut(|_| ());
        let _between_instructions = self.instruction.lock().unwrap();
        assert!(!self.has_cached(space, page), "the machine has it cached");
    }

    /// An unmap that is flushed at once.
    fn unmap(&self, space: usize, page: usize) {
        self.spaces[space].pages[page].entry.store(false, Relaxed);
        self.sync(&self.spaces[space]);
        self.give_away(space, page);
    }

    /// An unmap that a full flush follows.
    fn unmap_lazily(&self, space: usize, page: usize) {
        self.spaces[space].pages[page].entry.store(false, Relaxed);
        self.spaces[space].mark(page);
        self.flush_all(&self.spaces[space]);
        self.give_away(space, page);
    }

    /// `Function::tell`. `old` is what was attached.
    fn install(&self, target: Target, old: Option<usize>) {
        let before = *self.registered.lock().unwrap();
        if matches!(before, Target::Nothing | Target::Identity) {
            self.register(Target::Empty);
        }
        self.live.store(true, Relaxed);
        if P::FENCE_BEFORE_REGISTER {
            fence(SeqCst);
        }
        self.register(target);
        if P::REFRESH_AFTER_REGISTER {
            fence(SeqCst);
            let new = match target {
                Target::Space(space) => Some(space),
                _ => None,
            };
            let mut spaces = [old, new].into_iter().flatten();
            if spaces.any(|space| self.spaces[space].is_known()) {
                self.refresh();
            }
        }
    }

    /// `Function::attach`.
    fn attach(&self, from: Option<usize>, to: usize) {
        let leave = || from.into_iter().for_each(|from| self.spaces[from].leave());
        self.spaces[to].join();
        if !P::LEAVE_LAST {
            leave();
        }
        self.install(Target::Space(to), from);
        if P::LEAVE_LAST {
            leave();
        }
    }

    /// `Function::block`.
    fn block(&self, from: usize) {
        self.install(Target::Empty, Some(from));
        self.spaces[from].leave();
    }

    /// `Function::stop_refreshes`.
    fn stop_refreshes(&self) {
        self.live.swap(false, Relaxed);
        if P::GRACE_PERIOD {
            drop(self.rcu.write().unwrap());
        }
    }

    /// `Function::attach_identity`.
    fn attach_identity(&self, from: usize) {
        self.install(Target::Empty, Some(from));
        self.stop_refreshes();
        self.register(Target::Identity);
        self.spaces[from].leave();
    }

    /// A reset: `Function::disabled` and `Function::register_recorded`.
    fn reset(&self, recorded: usize) {
        if P::DISABLE_FIRST {
            self.enable(false);
            self.stop_refreshes();
        } else {
            self.stop_refreshes();
            self.enable(false);
        }
        self.enable(true);
        self.install(Target::Space(recorded), None);
    }
}

/// How often a thread of three may be interrupted where it could go on. Two
/// threads are checked without a bound. Three take minutes then; so they run
/// with `LOOM_MAX_PREEMPTIONS=1000`.
const PREEMPTIONS: usize = 3;

type Job<P> = fn(&World<P>);

/// Lets `prepare` set a world up, gives each of `jobs` a thread, and then calls
/// `after`. Under every interleaving.
fn check<P: Protocol>(
    machine: Machine,
    mapped: bool,
    prepare: Job<P>,
    jobs: &'static [Job<P>],
    after: Job<P>,
) {
    let runs = Arc::new(Unseen::new(0));
    let count = runs.clone();
    let mut model = loom::model::Builder::new();
    if jobs.len() > 2 {
        model.preemption_bound = Some(model.preemption_bound.unwrap_or(PREEMPTIONS));
    }
    model.check(move || {
        *count.lock().unwrap() += 1;
        let world = Arc::new(World::<P>::new(machine, mapped));
        prepare(&world);
        let (first, others) = jobs.split_first().expect("a job");
        let spawn = |job: &Job<P>| {
            let (world, job) = (world.clone(), *job);
            thread::spawn(move || job(&world))
        };
        let threads: Vec<_> = others.iter().map(spawn).collect();
        first(&world);
        for thread in threads {
            thread.join().unwrap();
        }
        after(&world);
    });
    println!("{} interleavings", runs.lock().unwrap());
}

/// A map, beside something that ends with the function attached to space 0.
fn map_beside<P: Protocol>(prepare: Job<P>, jobs: &'static [Job<P>]) {
    let seen: Job<P> = |w| assert!(w.has_cached(0, 0), "a mapping that is not seen");
    check(Machine::Shadows, false, prepare, jobs, seen);
}

/// An unmap of page 0 of space 0, beside something.
fn unmap_beside<P: Protocol>(prepare: Job<P>, jobs: &'static [Job<P>]) {
    for machine in [Machine::Walks, Machine::Shadows] {
        let gone: Job<P> = |w| assert!(!w.has_cached(0, 0), "the machine has it cached");
        check(machine, true, prepare, jobs, gone);
    }
}

#[test]
fn map_beside_first_attach() {
    map_beside::<Sound>(|_| (), &[|w| w.map(0, 0), |w| w.attach(None, 0)]);
}

#[test]
fn map_beside_attach_from_another_space() {
    map_beside::<Sound>(
        |w| w.attach(None, 1),
        &[|w| w.map(0, 0), |w| w.attach(Some(1), 0)],
    );
}

#[test]
fn map_beside_reset() {
    map_beside::<Sound>(|w| w.attach(None, 0), &[|w| w.map(0, 0), |w| w.reset(0)]);
}

#[test]
fn two_maps_beside_attach() {
    map_beside::<Sound>(
        |_| (),
        &[|w| w.map(0, 0), |w| w.map(0, 1), |w| w.attach(None, 0)],
    );
}

#[test]
fn unmap_beside_first_attach() {
    unmap_beside::<Sound>(|_| (), &[|w| w.unmap(0, 0), |w| w.attach(None, 0)]);
}

#[test]
fn unmap_beside_attach_to_another_space() {
    unmap_beside::<Sound>(
        |w| w.attach(None, 0),
        &[|w| w.unmap(0, 0), |w| w.attach(Some(0), 1)],
    );
}

#[test]
fn unmap_beside_attach_there_and_back() {
    unmap_beside::<Sound>(
        |w| w.attach(None, 0),
        &[
            |w| w.unmap(0, 0),
            |w| {
                w.attach(Some(0), 1);
                w.attach(Some(1), 0);
            },
        ],
    );
}

#[test]
fn unmap_beside_block() {
    unmap_beside::<Sound>(|w| w.attach(None, 0), &[|w| w.unmap(0, 0), |w| w.block(0)]);
}

#[test]
fn unmap_beside_identity() {
    unmap_beside::<Sound>(
        |w| w.attach(None, 0),
        &[|w| w.unmap(0, 0), |w| w.attach_identity(0)],
    );
}

#[test]
fn unmap_beside_reset() {
    unmap_beside::<Sound>(|w| w.attach(None, 0), &[|w| w.unmap(0, 0), |w| w.reset(0)]);
}

#[test]
fn unmap_beside_map_and_attach() {
    unmap_beside::<Sound>(
        |_| (),
        &[|w| w.unmap(0, 0), |w| w.map(0, 1), |w| w.attach(None, 0)],
    );
}

#[test]
fn two_full_flushes() {
    unmap_beside::<Sound>(
        |w| w.attach(None, 0),
        &[|w| w.unmap_lazily(0, 0), |w| w.unmap_lazily(0, 1)],
    );
}

#[test]
fn full_flush_beside_attach() {
    unmap_beside::<Sound>(|_| (), &[|w| w.unmap_lazily(0, 0), |w| w.attach(None, 0)]);
}

#[test]
fn full_flushes_beside_attach() {
    unmap_beside::<Sound>(
        |_| (),
        &[
            |w| w.unmap_lazily(0, 0),
            |w| w.flush_all(&w.spaces[0]),
            |w| w.attach(None, 0),
        ],
    );
}

/// The core's flush queue: an unmap marks, then reads after a barrier how many flushes
/// began; who flushes counts itself first, without an order. A flush that was not
/// counted yet takes the mark.
#[test]
fn marks_beside_a_counted_flush() {
    loom::model(|| {
        let space = Arc::new(Space::new(false));
        let started = Arc::new(AtomicUsize::new(0));
        let flush = thread::spawn({
            let (space, started) = (space.clone(), started.clone());
            move || {
                started.fetch_add(1, Relaxed);
                let ticket = space.flushes.lock().unwrap().begin(&space.pending, true);
                !ticket.ranges.as_slice().is_empty()
            }
        });
        space.mark(0);
        fence(SeqCst);
        let before = started.load(Relaxed) == 0;
        let taken = flush.join().unwrap();
        assert!(taken || !before, "a flush that began later misses the mark");
    });
}

/// What the checker must find: each leaves one thing out on purpose.
mod weakened {
    use super::*;

    macro_rules! weakened {
        ($($name:ident { $($weak:item)* } $check:ident($prepare:expr, [$($job:expr),*])
            panics $expected:literal;)*) => {$(
            #[test]
            #[should_panic(expected = $expected)]
            fn $name() {
                struct Weak;
                impl Protocol for Weak { $($weak)* }
                $check::<Weak>($prepare, &[$($job),*]);
            }
        )*};
    }

    weakened! {
        map_without_fence { const FENCE_IN_FLUSH: bool = false; }
            map_beside(|_| (), [|w| w.map(0, 0), |w| w.attach(None, 0)])
            panics "a mapping that is not seen";

        unmap_without_fence { const FENCE_IN_FLUSH: bool = false; }
            unmap_beside(|_| (), [|w| w.unmap(0, 0), |w| w.attach(None, 0)])
            panics "";

        register_without_fence { const FENCE_BEFORE_REGISTER: bool = false; }
            unmap_beside(|_| (), [|w| w.unmap(0, 0), |w| w.attach(None, 0)])
            panics "";

        register_without_fence_after_reset { const FENCE_BEFORE_REGISTER: bool = false; }
            unmap_beside(
                |w| w.attach(None, 0),
                [|w| w.unmap(0, 0), |w| w.reset(0)]
            )
            panics "";

        attach_without_refresh { const REFRESH_AFTER_REGISTER: bool = false; }
            map_beside(|_| (), [|w| w.map(0, 0), |w| w.attach(None, 0)])
            panics "a mapping that is not seen";

        leave_first { const LEAVE_LAST: bool = false; }
            unmap_beside(
                |w| w.attach(None, 0),
                [|w| w.unmap(0, 0), |w| w.attach(Some(0), 1)]
            )
            panics "the machine has it cached";

        reset_without_grace_period { const GRACE_PERIOD: bool = false; }
            unmap_beside(
                |w| w.attach(None, 0),
                [|w| w.unmap(0, 0), |w| w.reset(0)]
            )
            panics "refreshed while Nothing is registered";

        left_alone_while_it_translates { const DISABLE_FIRST: bool = false; }
            unmap_beside(
                |w| w.attach(None, 0),
                [|w| w.unmap(0, 0), |w| w.reset(0)]
            )
            panics "the machine has it cached";

        identity_without_grace_period { const GRACE_PERIOD: bool = false; }
            unmap_beside(|w| w.attach(None, 0), [|w| w.unmap(0, 0), |w| w.attach_identity(0)])
            panics "refreshed while Identity is registered";

        full_flushes_that_know_nothing_of_others { const SHARED: bool = false; }
            unmap_beside(
                |w| w.attach(None, 0),
                [|w| w.unmap_lazily(0, 0), |w| w.unmap_lazily(0, 1)]
            )
            panics "";

        look_for_members_before_the_marks { const TAKE_FIRST: bool = false; }
            unmap_beside(
                |_| (),
                [
                    |w| w.unmap_lazily(0, 0),
                    |w| w.flush_all(&w.spaces[0]),
                    |w| w.attach(None, 0)
                ]
            )
            panics "";
    }
}
