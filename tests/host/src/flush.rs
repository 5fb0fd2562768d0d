// SPDX-License-Identifier: GPL-2.0

//! Model checks of the flush protocol: no function misses a flush, and no function is
//! refreshed without a registered table.
//!
//! Members, marks, flushes and the walk lock are the driver's own code (`address_space/`,
//! `dma_table/`), with its memory orderings; `tests/host/kernel` replaces the kernel
//! crate. `function.rs` needs a machine, so its steps are modeled here, with two pages,
//! two address spaces and one function. The checked properties:
//!
//! - After an unmap and its flush, the page can be reused: the machine no longer caches
//!   it, and is not loading it (the checker would report a data race).
//! - After a map and its flush, the machine of every attached function can access the
//!   page.
//! - Only functions with a registered table are refreshed.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release flush`.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex as Unseen};

use kernel::sync::{rcu, Arc as Shared};
use loom::sync::atomic::{
    fence, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, SeqCst},
};
use loom::sync::Mutex;
use loom::thread;

use crate::address_space::members::Members;
use crate::address_space::pending::{Flushes, Pending};
use crate::atomic::AtomicU64 as Word;
use crate::dma_table::walk_lock::WalkLock;
use crate::range::Range;

mod machine;

use machine::{Function, Machine, Page, Target};

/// Steps of an attach or a reset that a test can leave out on purpose. `tests/mutations`
/// does this for flushes.
trait Protocol: Send + Sync + 'static {
    /// The barrier between joining (or becoming live) and the registration.
    const FENCE_BEFORE_REGISTER: bool = true;
    /// The refresh of everything that is mapped, after the registration.
    const REFRESH_AFTER_REGISTER: bool = true;
    /// The function leaves the old address space last.
    const LEAVE_LAST: bool = true;
    /// The wait for flushes that may have found the function live.
    const GRACE_PERIOD: bool = true;
    /// The function is disabled before it stops being live.
    const DISABLE_FIRST: bool = true;
    /// The attach checks for unmaps that run beside a reader.
    const LOOK_BESIDE: bool = true;
}

/// The unmodified protocol of the driver.
struct Sound;
impl Protocol for Sound {}

/// The parts of `AddressSpace` that flushes use.
struct Space {
    members: Members<Function>,
    walk_lock: WalkLock<Word>,
    pending: Pending,
    flushes: Mutex<Flushes>,
    counter: AtomicU64,
}

impl Space {
    fn new() -> Self {
        Space {
            members: Members::new(),
            walk_lock: WalkLock(Word::new(0)),
            pending: Pending::new(Range::sized(0, 1 << 30).expect("not empty")),
            flushes: Mutex::new(Flushes::new()),
            counter: AtomicU64::new(0),
        }
    }

    /// Marks a page. Each page is in its own chunk.
    fn mark(&self, page: usize) {
        self.pending.mark_one((page as u64) << 20);
    }

    /// `AddressSpace::flush_all`.
    fn flush_all(&self) {
        let begin = || self.flushes.lock().unwrap().begin(&self.pending, true);
        self.members
            .flush_all(&self.counter, begin, |ticket, done| {
                self.flushes.lock().unwrap().end(ticket, done);
            });
    }
}

/// One function and two address spaces.
struct World<P> {
    function: Shared<Function>,
    spaces: [Space; 2],
    protocol: PhantomData<P>,
}

/// The model of the driver.
impl<P: Protocol> World<P> {
    /// A function that was never attached, and two address spaces that map both pages, or
    /// none.
    fn new(machine: Machine, mapped: bool) -> Self {
        World {
            function: Shared::new(Function::new(machine, mapped)),
            spaces: [Space::new(), Space::new()],
            protocol: PhantomData,
        }
    }

    fn page(&self, space: usize, page: usize) -> &Page {
        &self.function.pages[space][page]
    }

    fn has_cached(&self, space: usize, page: usize) -> bool {
        self.function.has_cached(space, page)
    }

    /// `AddressSpace::is_uncertain` and `next_known`: whether there is anything to
    /// refresh.
    fn is_known(&self, space: usize) -> bool {
        let pages = &self.function.pages[space];
        let Space {
            walk_lock,
            pending,
            flushes,
            ..
        } = &self.spaces[space];
        if P::LOOK_BESIDE && walk_lock.is_unmapped_beside() {
            return true;
        }
        let wait = || {
            thread::yield_now();
            Ok::<(), ()>(())
        };
        let _walk = walk_lock.read(wait);
        let mapped = |page: &Page| page.entry.load(Acquire);
        let is_mapped = pages.iter().any(mapped);
        is_mapped || flushes.lock().unwrap().next_known(pending, 0).is_some()
    }

    fn map(&self, space: usize, page: usize) {
        self.page(space, page).entry.store(true, Relaxed);
        let Space {
            members, counter, ..
        } = &self.spaces[space];
        if members.needs_flush() {
            members
                .refresh_mapped(Range::ALL, false, counter)
                .expect("no refresh is refused");
        }
    }

    /// Passes the page to its next owner, who may write it.
    fn give_away(&self, space: usize, page: usize) {
        self.page(space, page).memory.with_mut(|_| ());
        let _between_instructions = self.function.instruction.lock().unwrap();
        assert!(!self.has_cached(space, page), "the machine has it cached");
    }

    /// Flushes by range, then gives the page away.
    fn sync(&self, space: usize, page: usize) {
        let Space {
            members, counter, ..
        } = &self.spaces[space];
        if members.needs_flush() {
            assert!(members.refresh_unmapped(Range::ALL, counter));
        }
        self.give_away(space, page);
    }

    /// An unmap that is flushed immediately.
    fn unmap(&self, space: usize, page: usize) {
        self.page(space, page).entry.store(false, Relaxed);
        self.sync(space, page);
    }

    /// An unmap that is followed by a full flush.
    fn unmap_lazily(&self, space: usize, page: usize) {
        self.page(space, page).entry.store(false, Relaxed);
        self.spaces[space].mark(page);
        self.spaces[space].flush_all();
        self.give_away(space, page);
    }

    /// `AddressSpace::unmap_range` of a page that covers a whole segment entry.
    fn empty(&self, space: usize, page: usize) {
        let _guard = self.spaces[space].walk_lock.unmap();
        self.spaces[space].mark(page);
        fence(SeqCst);
        self.page(space, page).entry.store(false, Relaxed);
        self.spaces[space].mark(page);
    }

    /// An unmap of such a page that is flushed immediately.
    fn unmap_whole(&self, space: usize, page: usize) {
        self.empty(space, page);
        self.sync(space, page);
    }

    /// An unmap of such a page that is followed by a full flush.
    fn unmap_whole_lazily(&self, space: usize, page: usize) {
        self.empty(space, page);
        self.spaces[space].flush_all();
        self.give_away(space, page);
    }

    fn join(&self, space: usize) {
        let function = self.function.as_arc_borrow();
        // SAFETY: The function outlives the threads, and only one of them joins.
        unsafe { self.spaces[space].members.join(function) }.expect("memory is not limited");
    }

    fn leave(&self, space: usize) {
        self.spaces[space].members.leave(&*self.function);
    }

    /// `Function::install`. `old` is the address space that was attached.
    fn install(&self, target: Target, old: Option<usize>) {
        let before = *self.function.registered.lock().unwrap();
        if matches!(before, Target::Nothing | Target::Identity) {
            self.function.register(Target::Empty);
        }
        self.function.live.store(true, Relaxed);
        if P::FENCE_BEFORE_REGISTER {
            fence(SeqCst);
        }
        self.function.register(target);
        if P::REFRESH_AFTER_REGISTER {
            fence(SeqCst);
            let new = match target {
                Target::Space(space) => Some(space),
                _ => None,
            };
            let mut spaces = [old, new].into_iter().flatten();
            if spaces.any(|space| self.is_known(space)) {
                self.function.refresh();
            }
        }
    }

    /// `Function::attach`.
    fn attach(&self, from: Option<usize>, to: usize) {
        let leave = || from.into_iter().for_each(|from| self.leave(from));
        self.join(to);
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
        self.leave(from);
    }

    /// `Function::stop_refreshes`.
    fn stop_refreshes(&self) {
        self.function.live.swap(false, Relaxed);
        if P::GRACE_PERIOD {
            rcu::synchronize_rcu();
        }
    }

    /// `Function::attach_identity`.
    fn attach_identity(&self, from: usize) {
        self.install(Target::Empty, Some(from));
        self.stop_refreshes();
        self.function.register(Target::Identity);
        self.leave(from);
    }

    /// A reset: `Function::disabled` and `Function::register_recorded`.
    fn reset(&self, recorded: usize) {
        if P::DISABLE_FIRST {
            self.function.enable(false);
            self.stop_refreshes();
        } else {
            self.stop_refreshes();
            self.function.enable(false);
        }
        self.function.enable(true);
        self.install(Target::Space(recorded), None);
    }
}

/// How often a thread may be preempted in checks with three threads. Checks with two
/// threads have no bound. With three, they take minutes without a bound, which
/// `LOOM_MAX_PREEMPTIONS=1000` removes.
const PREEMPTIONS: usize = 3;

type Job<P> = fn(&World<P>);

/// Calls `prepare`, runs each of `jobs` in its own thread, then calls `after`, for every
/// interleaving.
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
        let (first, others) = jobs.split_first().expect("at least one job");
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

/// Checks a map during jobs that leave the function attached to space 0.
fn map_beside<P: Protocol>(prepare: Job<P>, jobs: &'static [Job<P>]) {
    let visible: Job<P> = |w| assert!(w.has_cached(0, 0), "a mapping that is not visible");
    check(Machine::Shadows, false, prepare, jobs, visible);
}

/// Checks an unmap of page 0 of space 0 during other jobs.
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
            |w| w.spaces[0].flush_all(),
            |w| w.attach(None, 0),
        ],
    );
}

/// Checks an unmap of the only mapped page during other jobs.
fn unmap_last_beside<P: Protocol>(prepare: Job<P>, jobs: &'static [Job<P>]) {
    for machine in [Machine::Walks, Machine::Shadows] {
        check(machine, false, prepare, jobs, |_| ());
    }
}

/// Checks such an unmap during a block and a full flush, which may take the first mark.
fn unmap_last_beside_flush_and_block<P: Protocol>(prepare: Job<P>) {
    unmap_last_beside(
        prepare,
        &[
            |w| w.unmap_whole(0, 0),
            |w| w.spaces[0].flush_all(),
            |w| w.block(0),
        ],
    );
}

/// Attaches space 0, which maps page 0, and makes the machine cache it.
fn one_page<P: Protocol>(world: &World<P>) {
    world.attach(None, 0);
    world.map(0, 0);
    world.function.refresh();
    assert!(world.has_cached(0, 0));
}

/// Like [`one_page`], with a reader that walks the table all the time.
fn one_page_walked<P: Protocol>(world: &World<P>) {
    one_page(world);
    let walk = world.spaces[0].walk_lock.read(|| Err("unmap running"));
    std::mem::forget(walk);
}

#[test]
fn last_full_flush_beside_block() {
    unmap_last_beside::<Sound>(one_page, &[|w| w.unmap_whole_lazily(0, 0), |w| w.block(0)]);
}

#[test]
fn last_full_flush_beside_attach_to_another_space() {
    unmap_last_beside::<Sound>(
        one_page,
        &[|w| w.unmap_whole_lazily(0, 0), |w| w.attach(Some(0), 1)],
    );
}

#[test]
fn last_unmap_beside_block() {
    unmap_last_beside::<Sound>(one_page, &[|w| w.unmap_whole(0, 0), |w| w.block(0)]);
}

#[test]
fn last_unmap_beside_block_and_full_flush() {
    unmap_last_beside_flush_and_block::<Sound>(one_page);
}

#[test]
fn last_unmap_beside_walk_block_and_full_flush() {
    unmap_last_beside_flush_and_block::<Sound>(one_page_walked);
}

/// The core's flush queue: an unmap marks, then after a barrier reads how many flushes
/// have started. A flush first counts itself, without ordering. A flush that was not
/// counted yet must take the mark.
#[test]
fn marks_beside_a_counted_flush() {
    loom::model(|| {
        let space = Arc::new(Space::new());
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

/// Faults that the checker must find: each test leaves out one step on purpose.
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
            panics "a mapping that is not visible";

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
    }

    #[test]
    #[should_panic(expected = "the machine has it cached")]
    fn unmap_beside_a_walk_is_not_looked_for() {
        struct Weak;
        impl Protocol for Weak {
            const LOOK_BESIDE: bool = false;
        }
        unmap_last_beside_flush_and_block::<Weak>(one_page_walked);
    }
}
