// SPDX-License-Identifier: GPL-2.0

//! Counts cache line transfers between 64 CPUs that map and unmap, with a model of the
//! caches (MESI) around the driver's own tables. Table entries, the root and the walk
//! lock are those of `dma_table.rs`. Other fields need a kernel, so only their offsets
//! are modeled: those of the current layout, and those of the previous one.
//!
//! A transfer is a write to a line that another CPU has cached, or a read of a line that
//! another CPU has modified.

use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dma_table::{
    Access, Cell, DeferFree, Depth, DmaTable, Iova, Low, Mapping, Memory, Phys, Shape, Vacant,
    LARGE_PAGE_SIZE, PAGE_SIZE,
};

/// Size of a cache line on s390
const LINE: usize = 256;
const CPUS: usize = 64;
const ROUNDS: u64 = 200;
/// Distance between the ranges of the CPUs
const APART: u64 = 64 << 20;

/// The state of a cache line.
#[derive(Default)]
struct Holders {
    cpus: u64,
    written: bool,
}

/// The caches of all CPUs.
#[derive(Default)]
struct Caches {
    cpu: usize,
    transfers: u64,
    lines: HashMap<usize, Holders>,
}

impl Caches {
    fn access(&mut self, address: usize, write: bool) {
        let me = 1 << self.cpu;
        let line = self.lines.entry(address / LINE).or_default();
        let others = line.cpus & !me != 0;
        self.transfers += u64::from(others && (write || (line.written && line.cpus & me == 0)));
        match write {
            true => line.cpus = me,
            false => line.cpus |= me,
        }
        // A read by another CPU causes a write-back.
        line.written = write || (line.written && !others);
    }
}

thread_local! {
    static CACHES: RefCell<Caches> = RefCell::default();
}

fn access(address: usize, write: bool) {
    CACHES.with_borrow_mut(|caches| caches.access(address, write));
}

/// An atomic word whose accesses are counted.
struct Word(AtomicU64);

impl Word {
    fn note(&self, write: bool) -> &AtomicU64 {
        access(&raw const self.0 as usize, write);
        &self.0
    }
}

impl Cell for Word {
    fn load(&self) -> u64 {
        self.note(false).load(Ordering::Relaxed)
    }

    fn load_acquire(&self) -> u64 {
        self.note(false).load(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.note(true).store(value, Ordering::Relaxed);
    }

    fn install(&self, old: u64, new: u64) -> Result<(), u64> {
        let cell = self.note(true);
        cell.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    fn change(&self, by: u64) -> u64 {
        self.note(true).fetch_add(by, Ordering::AcqRel)
    }
}

/// Table memory of the host, where physical addresses are virtual ones.
#[derive(Clone, Copy)]
struct Host {
    /// Address of the counter of table memory.
    bytes: usize,
}

fn layout(shape: Shape) -> Layout {
    Layout::from_size_align(shape.bytes(), shape.bytes().max(4096)).unwrap()
}

// SAFETY: Each table is an aligned allocation with the right number of cells.
unsafe impl Memory for Host {
    type Cell = Word;
    type Flags = ();

    fn alloc(&self, shape: Shape, (): ()) -> Option<Phys> {
        access(self.bytes, true);
        // SAFETY: The layout is not empty.
        let table = unsafe { alloc(layout(shape)) };
        let Some(table) = NonNull::new(table.cast::<u64>()) else {
            handle_alloc_error(layout(shape))
        };
        for index in 0..shape.entries() {
            // SAFETY: The index is inside the table.
            unsafe { table.add(index).write(shape.empty()) };
        }
        Some(Phys(table.as_ptr() as u64))
    }

    unsafe fn free(&self, table: Phys, shape: Shape) {
        access(self.bytes, true);
        // SAFETY: By the safety requirements.
        unsafe { dealloc(table.0 as *mut u8, layout(shape)) }
    }

    unsafe fn cells(&self, table: Phys) -> NonNull<Word> {
        NonNull::new(table.0 as *mut Word).unwrap()
    }
}

impl DeferFree for Host {
    fn defer_free(&mut self, table: Phys, shape: Shape) {
        // SAFETY: There is only one thread, so nobody uses the table.
        unsafe { self.free(table, shape) }
    }
}

/// Addresses of the fields outside the tables, in a part of the address space without
/// tables.
#[derive(Clone, Copy)]
struct Around {
    /// The pointer to the table, and the number of members.
    read: [usize; 2],
    /// The counters of mapped and unmapped pages of CPU 0.
    counters: [usize; 2],
    /// The distance between the counters of two CPUs.
    per_cpu: usize,
    marks: usize,
    /// The walk lock, to model which fields share its line (the lock of the real tree is
    /// elsewhere).
    walk_lock: usize,
    /// Whether unmaps that are not queued also mark their range.
    all_mark: bool,
}

/// The previous layout: all CPUs share the counters, and fields that are only read share
/// lines with fields that are written.
const BEFORE: Around = Around {
    read: [112, 64],
    counters: [672, 680],
    per_cpu: 0,
    marks: 128,
    walk_lock: 120,
    all_mark: true,
};

/// The current layout: `Paging` in `domain.rs`, `AddressSpace`, and `page_counts.rs`
const NOW: Around = Around {
    read: [0x1000, 0x2100],
    counters: [0x10_0000, 0x10_0008],
    per_cpu: 0x1000,
    marks: 0x2200,
    walk_lock: 0x2008,
    all_mark: false,
};

/// The range that a CPU maps and unmaps.
#[derive(Clone, Copy)]
struct Job {
    iova: u64,
    size: u64,
}

/// An address space with the driver's own table.
struct Space {
    around: Around,
    memory: Host,
    tree: Box<DmaTable<Host>>,
    low: Low,
    vacant: Vacant,
}

impl Space {
    fn new(around: Around) -> Self {
        // The counter of table memory was on the line of the fields that are only read,
        // and is now on that of the walk lock.
        let memory = Host {
            bytes: if around.all_mark { 88 } else { 0x2000 },
        };
        let vacant = Vacant::new(&memory, ()).unwrap();
        let cell = |value| Word(AtomicU64::new(value));
        let tree = DmaTable::new(memory, vacant, Depth::Third, (), cell).unwrap();
        Space {
            around,
            memory,
            low: tree.low(),
            tree: Box::new(tree),
            vacant,
        }
    }

    fn count(&self, cpu: usize, which: usize) {
        access(
            self.around.counters[which] + cpu * self.around.per_cpu,
            true,
        );
    }

    fn look(&self) {
        self.around
            .read
            .iter()
            .for_each(|address| access(*address, false));
    }

    fn map(&self, cpu: usize, job: Job) {
        CACHES.with_borrow_mut(|caches| caches.cpu = cpu);
        let (iova, phys, access_of) = (Iova(job.iova), Phys(1 << 40), Access::READ_WRITE);
        let single = job.size == PAGE_SIZE;
        self.look();
        // SAFETY: There is only one thread, and the range is within reach.
        unsafe {
            let page = single
                .then(|| self.tree.empty_page(self.low, iova))
                .flatten();
            if let Some(page) = page {
                page.fill(phys, access_of);
            } else {
                let mapping = Mapping {
                    iova,
                    phys,
                    size: job.size,
                    access: access_of,
                    large: false,
                };
                assert_eq!(self.tree.map(mapping, (), |_| true), (job.size, Ok(())));
            }
        }
        self.count(cpu, 0);
    }

    fn unmap(&self, cpu: usize, job: Job, queued: bool) {
        CACHES.with_borrow_mut(|caches| caches.cpu = cpu);
        let (iova, single) = (Iova(job.iova), job.size == PAGE_SIZE);
        self.look();
        if job.size >= LARGE_PAGE_SIZE {
            access(self.around.walk_lock, true);
        }
        // SAFETY: As above.
        unsafe {
            if !(single && self.tree.unmap_page(self.low, iova)) {
                let mut memory = self.memory;
                assert_eq!(self.tree.unmap(iova, job.size, &mut memory), job.size);
            }
        }
        self.count(cpu, 1);
        if queued || self.around.all_mark || job.size >= LARGE_PAGE_SIZE {
            access(self.around.marks + (job.iova >> 20) as usize / 64 * 8, true);
        }
    }
}

/// The average number of transfers for a map and an unmap of 4 KiB.
fn transfers(around: Around, queued: bool, job: impl Fn(usize) -> Job) -> f64 {
    CACHES.take();
    let space = Space::new(around);
    let mut steps = 0u64;
    // Do not count the first round, which allocates tables, nor larger maps.
    let mut counted = |round, cpu, step: &dyn Fn(Job)| {
        let job = job(cpu);
        let before = CACHES.with_borrow(|caches| caches.transfers);
        step(job);
        if round == 0 || job.size != PAGE_SIZE {
            CACHES.with_borrow_mut(|caches| caches.transfers = before);
        } else {
            steps += 1;
        }
    };
    for round in 0..=ROUNDS {
        (0..CPUS).for_each(|cpu| counted(round, cpu, &|job| space.map(cpu, job)));
        (0..CPUS).for_each(|cpu| counted(round, cpu, &|job| space.unmap(cpu, job, queued)));
    }
    let transfers = CACHES.with_borrow(|caches| caches.transfers);
    let Space { tree, vacant, .. } = space;
    let memory = *tree.memory();
    drop(tree);
    // SAFETY: The vacant tables came from this memory, and the tree is gone.
    unsafe { vacant.free(&memory) };
    transfers as f64 * 2.0 / steps as f64
}

fn page(iova: u64) -> Job {
    Job {
        iova,
        size: PAGE_SIZE,
    }
}

#[test]
fn nobody_who_maps_a_page_waits_for_a_line() {
    let apart = |cpu: usize| page(cpu as u64 * APART);
    let one_table = |cpu: usize| page(cpu as u64 * PAGE_SIZE);
    let beside_large = |cpu: usize| match cpu {
        0 => Job {
            iova: 0,
            size: LARGE_PAGE_SIZE,
        },
        cpu => page(cpu as u64 * APART),
    };
    println!("line transfers for a map and an unmap of 4 KiB, {CPUS} CPUs   before   now");
    let both = |what: &str, queued, job: &dyn Fn(usize) -> Job| {
        let [before, now] = [BEFORE, NOW].map(|around| transfers(around, queued, job));
        println!("{what:<58}{before:>8.2}{now:>6.2}");
        (before, now)
    };
    let strict = both("separate ranges, flushed by range", false, &apart);
    let lazy = both("separate ranges, queued", true, &apart);
    let table = both("one page table, flushed by range", false, &one_table);
    let large = both(
        "separate ranges, one CPU maps 1 MiB each time",
        false,
        &beside_large,
    );
    assert_eq!((strict.1, large.1), (0.0, 0.0));
    // At most the mark
    assert!(lazy.1 <= 1.0);
    // The entries of 32 pages share a line, which is read and written twice.
    assert!(table.1 <= 4.0);
    for (before, _) in [strict, lazy, table, large] {
        assert!(before >= 3.0, "the model misses shared lines");
    }
}
