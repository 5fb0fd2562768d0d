// SPDX-License-Identifier: GPL-2.0

//! A tree of translation tables that is compared with a plain map and with the walker in
//! every operation. Any difference panics.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::sync::atomic::AtomicU64;

use crate::dma_table::dump::{self, Dump, Step};
use crate::dma_table::{
    Access, Depth, DmaTable, Iova, MapError, Mapping, Phys, Root, Translation, LARGE_PAGE_SIZE,
    PAGE_SIZE,
};
use crate::memory::{HostMemory, Unlinked};
use crate::walker::{self, Found, Leaf, Level};

/// The walker's level of the top table of a tree of this depth.
fn top(depth: Depth) -> Level {
    Level::TOPS[match depth {
        Depth::Third => 0,
        Depth::Second => 1,
        Depth::First => 2,
    }]
}

/// A tree, its expected content, and all its roots.
pub(crate) struct Checked<'m> {
    memory: &'m HostMemory,
    /// Not dropped after a panic, because dropping a broken tree would panic again.
    tree: ManuallyDrop<DmaTable<&'m HostMemory>>,
    /// The expected leaves, by their first IOVA.
    model: BTreeMap<u64, Leaf>,
    unlinked: Unlinked<'m>,
    /// Every root that the tree has had. Machines may have any of them registered.
    roots: Vec<Root>,
    unmaps: u64,
    maps: u64,
}

/// The wait of a reader for unmaps. Never called, because there is one thread.
fn wait_for_nobody() -> Result<(), ()> {
    unreachable!()
}

/// One in this many maps and unmaps runs while a reader is in the tree.
const VISITED: u64 = 8;

impl<'m> Checked<'m> {
    /// An empty tree.
    ///
    /// # Errors
    ///
    /// There is no memory for the top tables.
    pub(crate) fn new(memory: &'m HostMemory, depth: Depth) -> Result<Self, MapError> {
        let tree = DmaTable::new(memory, memory.vacant(), depth, (), AtomicU64::new)?;
        assert_eq!(tree.root().depth, depth);
        let roots = vec![tree.root()];
        Ok(Checked {
            memory,
            tree: ManuallyDrop::new(tree),
            model: BTreeMap::new(),
            unlinked: Unlinked::new(memory),
            roots,
            unmaps: 0,
            maps: 0,
        })
    }

    /// The last IOVA that the tree reaches.
    pub(crate) fn reach(&self) -> u64 {
        let depth = self.tree.root().depth;
        assert_eq!(depth.reach(), top(depth).last());
        depth.reach()
    }

    fn walk_from(&self, root: Root, iova: u64) -> Found {
        walker::find(self.memory, root.origin.0, top(root.depth), iova)
            .unwrap_or_else(|error| panic!("walk to {iova:#x}: {error}"))
    }

    fn walk(&self, iova: u64) -> Found {
        self.walk_from(self.tree.root(), iova)
    }

    /// The leaf that should map `iova`, and its first IOVA.
    fn expected(&self, iova: u64) -> Option<(u64, Leaf)> {
        let (&start, &leaf) = self.model.range(..=iova).next_back()?;
        (iova - start < leaf.size).then_some((start, leaf))
    }

    /// The offset of the first live mapping in a range, in bytes.
    fn first_live(&self, iova: u64, size: u64) -> Option<u64> {
        if self.expected(iova).is_some() {
            return Some(0);
        }
        let (&start, _) = self.model.range(iova..=iova + (size - 1)).next()?;
        Some(start - iova)
    }

    /// Maps a range, with at most `budget` allocations. Returns the tree's result.
    pub(crate) fn map(
        &mut self,
        mapping: Mapping,
        budget: Option<u64>,
    ) -> (u64, Result<(), MapError>) {
        let Mapping { iova, size, .. } = mapping;
        let step = if mapping.large {
            LARGE_PAGE_SIZE
        } else {
            PAGE_SIZE
        };
        self.maps += 1;
        let is_walked = self.maps.is_multiple_of(VISITED);
        let forgets = !self.maps.is_multiple_of(3);
        // Large pages are used wherever there is no page table, or an empty one that can be
        // replaced.
        let leaves = (0..size).step_by(step as usize).map(|offset| {
            let at = iova.0 + offset;
            let is_replaced =
                || forgets && !is_walked && self.first_live(at, LARGE_PAGE_SIZE).is_none();
            let is_large =
                mapping.large && (self.walk(at).is_free(Level::Segment) || is_replaced());
            (offset, if is_large { LARGE_PAGE_SIZE } else { PAGE_SIZE })
        });
        let leaves: Vec<_> = leaves.collect();
        let live = self.first_live(iova.0, size);

        let walk = is_walked.then(|| self.tree.walk(wait_for_nobody).expect("no wait"));
        let forget = |at: Iova| {
            // The table is not freed before the machine has forgotten it.
            match self.walk(at.0) {
                Found::Leaf(leaf) => assert_eq!(leaf.size, LARGE_PAGE_SIZE),
                found => panic!("nothing to forget at {at:x?}: {found:?}"),
            }
            forgets
        };
        self.memory.limit(budget);
        let (bytes, result) = if self.map_present(mapping) {
            (size, Ok(()))
        } else {
            // SAFETY: There is only one thread, and the range is within reach.
            unsafe { self.tree.map(mapping, (), forget) }
        };
        drop(walk);
        match result {
            Ok(()) => assert_eq!((bytes, live), (size, None), "mapped over a live entry"),
            Err(MapError::InUse) => assert!(live.is_some(), "refused to map a free range"),
            Err(MapError::NoMemory) => assert!(self.memory.refused(), "no allocation failed"),
        }
        self.memory.limit(None);
        assert!(bytes <= live.unwrap_or(size), "mapped over a live entry");
        assert_eq!(bytes % step, 0);

        for (offset, leaf) in leaves.into_iter().take_while(|(at, _)| *at < bytes) {
            for part in (0..step).step_by(leaf as usize) {
                self.model.insert(
                    iova.0 + offset + part,
                    Leaf {
                        phys: mapping.phys.0 + offset + part,
                        size: leaf,
                        read_only: mapping.access == Access::READ_ONLY,
                    },
                );
            }
        }
        self.agree_around(iova.0, size);
        (bytes, result)
    }

    /// Tries the fast path for about half of the maps that it supports.
    fn map_present(&self, mapping: Mapping) -> bool {
        let Mapping {
            iova, phys, access, ..
        } = mapping;
        let count = (mapping.size / PAGE_SIZE) as usize;
        let short = !mapping.large && phys.0 & PAGE_SIZE == 0;
        // SAFETY: There is only one thread, and the range is within reach.
        short
            && unsafe {
                let (tree, low) = (&self.tree, self.tree.low());
                match count {
                    1 => tree
                        .empty_page(low, iova)
                        .map(|page| page.fill(phys, access))
                        .is_some(),
                    _ => tree.map_present(low, iova, phys, count, access),
                }
            }
    }

    /// Tries the fast path for about half of the unmaps that it supports.
    fn unmap_page(&self, iova: u64, size: u64) -> bool {
        // SAFETY: There is only one thread, and the page is within reach.
        size == PAGE_SIZE
            && iova & PAGE_SIZE != 0
            && unsafe { self.tree.unmap_page(self.tree.low(), Iova(iova)) }
    }

    /// Unmaps a range, up to the first hole. Returns the number of bytes.
    pub(crate) fn unmap(&mut self, iova: u64, size: u64) -> u64 {
        let mut expected = 0;
        while let Some(leaf) = self.model.get(&iova.wrapping_add(expected)) {
            if expected == size || leaf.size > size - expected {
                break;
            }
            expected += leaf.size;
        }
        let made = self.memory.made();
        let waiting = self.unlinked.waiting();
        self.unmaps += 1;
        let walk = self
            .unmaps
            .is_multiple_of(VISITED)
            .then(|| self.tree.walk(wait_for_nobody).expect("no wait"));
        let bytes = if self.unmap_page(iova, size) {
            size
        } else {
            // SAFETY: There is only one thread, and the range is within reach.
            unsafe { self.tree.unmap(Iova(iova), size, &mut self.unlinked) }
        };
        let walked = walk.is_some();
        drop(walk);
        assert_eq!(bytes, expected, "unmapped from {iova:#x}, of {size:#x}");
        assert_eq!(self.memory.made(), made, "an unmap allocated");
        if bytes != 0 {
            let last = iova + (bytes - 1);
            let gone: Vec<u64> = self.model.range(iova..=last).map(|(&at, _)| at).collect();
            for at in gone {
                self.model.remove(&at);
            }
            if walked {
                assert_eq!(self.unlinked.waiting(), waiting, "unlinked under a reader");
            } else {
                self.check_reclaim(iova, last);
            }
        }
        self.agree_around(iova, size);
        bytes
    }

    /// Checks that no table is left that an unmap of `iova..=last` covered completely,
    /// except those on the way to IOVA 0, which may be registered.
    fn check_reclaim(&self, iova: u64, last: u64) {
        let root = top(self.tree.root().depth);
        for level in [
            Level::Segment,
            Level::RegionThird,
            Level::RegionSecond,
            Level::RegionFirst,
        ] {
            let first = iova.checked_next_multiple_of(level.span());
            let stays = |at: u64| at == 0 && level > Level::RegionThird;
            let covered = |at: &u64| *at <= last && last - at >= level.span() - 1;
            let mut at = first.filter(|_| level <= root);
            while let Some(here) = at.filter(covered) {
                let found = self.walk(here);
                assert!(
                    stays(here) || found.is_free(level),
                    "a table is left at {here:#x}: {found:?}"
                );
                at = here.checked_add(level.span());
            }
        }
    }

    /// Widens the tree, with at most `budget` allocations.
    pub(crate) fn widen(&mut self, depth: Depth, budget: Option<u64>) -> Result<(), MapError> {
        let before = self.tree.root().depth;
        self.memory.limit(budget);
        let result = self.tree.widen(depth, ());
        let after = self.tree.root();
        match result {
            Ok(()) => assert_eq!(after.depth, before.max(depth)),
            Err(_) => assert!(self.memory.refused() && after.depth < depth),
        }
        assert!(after.depth >= before);
        self.memory.limit(None);
        if !self.roots.contains(&after) {
            self.roots.push(after);
        }
        self.agree_around(0, PAGE_SIZE);
        result
    }

    /// Frees the unlinked tables, as after a refresh.
    pub(crate) fn refresh(&mut self) {
        self.unlinked.refresh();
    }

    /// How many tables were unlinked since the last refresh.
    pub(crate) fn waiting(&self) -> usize {
        self.unlinked.waiting()
    }

    /// Compares the tree's lookup, a walk from every root that reaches the IOVA, and the
    /// plain map.
    pub(crate) fn agree(&self, iova: u64) {
        let expected = self.expected(iova);
        for root in self.roots.iter().filter(|r| iova <= top(r.depth).last()) {
            match (self.walk_from(*root, iova), expected) {
                (Found::Leaf(found), Some((_, leaf))) => assert_eq!(found, leaf, "at {iova:#x}"),
                (Found::Invalid(_), None) => {}
                (found, _) => panic!("at {iova:#x}: {found:?}, expected {expected:x?}"),
            }
        }
        let translation = expected.map(|(start, leaf)| Translation {
            phys: Phys(leaf.phys + (iova - start)),
            page_size: leaf.size,
            access: match leaf.read_only {
                true => Access::READ_ONLY,
                false => Access::READ_WRITE,
            },
        });
        // SAFETY: There is only one thread.
        let found = unsafe { self.tree.lookup(Iova(iova)) };
        assert_eq!(found, translation, "lookup of {iova:#x}");
        let is_near =
            |found: &Translation| found.page_size == PAGE_SIZE && iova <= Depth::Third.reach();
        // SAFETY: As above; the entry point is that of this tree.
        let page = unsafe { self.tree.lookup_page(self.tree.low(), Iova(iova)) };
        assert_eq!(page, found.filter(is_near).map(|found| found.phys));
    }

    /// Compares at the ends of a range, next to them, and at a few places inside.
    pub(crate) fn agree_around(&self, iova: u64, size: u64) {
        let last = iova + (size - 1);
        let inside = (1..8).map(|eighth| iova + (size / 8 * eighth + 0x123) % size);
        let ends = [iova, last, iova.wrapping_sub(1), last.wrapping_add(1)];
        ends.into_iter().chain(inside).for_each(|at| self.agree(at));
    }

    /// Compares a dump, read in steps of a few entries, with the plain map.
    fn agree_dump(&self) {
        let mut expected: Vec<dump::Run> = Vec::new();
        for (&iova, leaf) in &self.model {
            let access = match leaf.read_only {
                true => Access::READ_ONLY,
                false => Access::READ_WRITE,
            };
            let last = iova + (leaf.size - 1);
            match expected.last_mut() {
                Some(run)
                    if run.last + 1 == iova
                        && run.phys + (iova - run.iova) == leaf.phys
                        && (run.page_size, run.access) == (leaf.size, access) =>
                {
                    run.last = last;
                }
                _ => expected.push(dump::Run {
                    iova,
                    last,
                    phys: leaf.phys,
                    page_size: leaf.size,
                    access,
                }),
            }
        }
        let mut dump = Dump::new();
        let mut found = Vec::new();
        loop {
            let walk = self.tree.walk(wait_for_nobody).expect("no wait");
            match dump.step(100, |iova| walk.find(iova)) {
                Step::Run(run) => found.push(run),
                Step::Pause => {}
                Step::End => break,
            }
        }
        assert_eq!(found, expected, "dump");
    }

    /// Compares all leaves from every root, and counts the tables.
    pub(crate) fn agree_all(&self) {
        for root in &self.roots {
            let level = top(root.depth);
            let mut model = self.model.range(..=level.last());
            let mut visit = |at, leaf| assert_eq!(model.next(), Some((&at, &leaf)));
            let tables = walker::walk(self.memory, root.origin.0, level, 0, &mut visit)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(model.next(), None, "a mapping is missing");
            if *root == self.tree.root() {
                assert_eq!(tables, self.memory.live(), "live tables outside the tree");
            }
        }
    }

    /// Compares everything, drops the tree and checks for leaks.
    pub(crate) fn finish(mut self) {
        self.agree_all();
        self.agree_dump();
        drop(ManuallyDrop::into_inner(self.tree));
        self.unlinked.refresh();
        self.memory.check_all_freed();
    }
}
