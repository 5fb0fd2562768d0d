// SPDX-License-Identifier: GPL-2.0

//! Sequences of operations, made by the property tests or by the fuzzer. Every
//! value of these types is a legal sequence: places and sizes are fitted into
//! what the tree reaches.

use crate::checked::Checked;
use crate::dma_table::{
    Access, Depth, Iova, Mapping, Phys, LARGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE,
};
use crate::memory::HostMemory;
use crate::walker::Level;

/// Where a range begins: so many pages from where something ends in the tree.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Place {
    /// Which end.
    pub anchor: Anchor,
    /// The multiple of it.
    pub times: u8,
    /// Pages from there on, or back.
    pub pages: i16,
}

/// Something that has ends in the tree.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Anchor {
    /// What a page table spans.
    PageTable,
    /// What a segment table spans.
    SegmentTable,
    /// What a region-third table spans.
    ThirdTable,
    /// What a region-second table spans.
    SecondTable,
    /// The last page that the tree reaches.
    Reach,
}

/// How large a range is.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Extent {
    /// So many pages modulo 1024, and one.
    Pages(u16),
    /// So many large pages modulo 8, and one. Aligned to a large page.
    LargePages(u8),
    /// What a segment table spans, aligned to it.
    SegmentTable,
}

/// One call.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub enum Operation {
    /// Maps a range.
    Map {
        /// Where it begins.
        at: Place,
        /// How large it is.
        extent: Extent,
        /// The physical page that it begins at.
        phys: u32,
        /// Whether writes are refused.
        read_only: bool,
        /// Whether large pages may be used, if the scenario has them.
        large: bool,
        /// How many allocations succeed, if not all.
        budget: Option<u8>,
    },
    /// Unmaps a range that was chosen like one to map.
    Unmap {
        /// Where it begins.
        at: Place,
        /// How large it is.
        extent: Extent,
    },
    /// Unmaps what an earlier map was asked for, or a part, or more.
    UnmapEarlier {
        /// Which one, from the latest on.
        nth: u8,
        /// Pages that the start is moved by.
        start: i8,
        /// Pages that the end is moved by.
        end: i8,
    },
    /// Looks an address up.
    Lookup {
        /// Its page.
        at: Place,
        /// Where in it.
        offset: u16,
    },
    /// Makes the tree deeper.
    Widen {
        /// By two levels, or by one.
        twice: bool,
        /// How many allocations succeed, if not all.
        budget: Option<u8>,
    },
    /// The machine forgets what it read; unlinked tables are given back.
    Refresh,
}

use Operation::{Lookup, Map, Refresh, Unmap, UnmapEarlier, Widen};

/// A tree and what is done to it.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct Scenario {
    /// The levels that the tree begins with, less three, modulo three.
    pub depth: u8,
    /// Whether large pages are used at all.
    pub large: bool,
    /// The calls.
    pub operations: Vec<Operation>,
}

/// The depth with so many levels more than three.
pub(crate) fn depth(more: u8) -> Depth {
    [Depth::Third, Depth::Second, Depth::First][usize::from(more) % 3]
}

/// A range, in bytes.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    size: u64,
}

impl Range {
    /// What of `size` bytes, rounded to a unit, lies within reach.
    fn fit(start: u64, size: u64, unit: u64, reach: u64) -> Self {
        let start = start & reach & !(unit - 1);
        let most = reach - start;
        let size = size.max(unit) & !(unit - 1);
        let size = if size - 1 > most { most + 1 } else { size };
        Range { start, size }
    }
}

fn place(at: Place, reach: u64) -> u64 {
    let level = match at.anchor {
        Anchor::PageTable => Level::Segment,
        Anchor::SegmentTable => Level::RegionThird,
        Anchor::ThirdTable => Level::RegionSecond,
        Anchor::SecondTable => Level::RegionFirst,
        Anchor::Reach => return reach.wrapping_add_signed(i64::from(at.pages) << PAGE_SHIFT),
    };
    let base = level.span().wrapping_mul(u64::from(at.times));
    base.wrapping_add_signed(i64::from(at.pages) << PAGE_SHIFT)
}

fn range(at: Place, extent: Extent, unit: u64, reach: u64) -> Range {
    let table = Level::RegionThird.span();
    let (size, unit) = match extent {
        Extent::Pages(pages) => ((u64::from(pages) % 1024 + 1) << PAGE_SHIFT, unit),
        Extent::LargePages(large) => (
            (u64::from(large) % 8 + 1) * LARGE_PAGE_SIZE,
            LARGE_PAGE_SIZE,
        ),
        // As pages this would take half a million of them.
        Extent::SegmentTable if unit == PAGE_SIZE && cfg!(not(loom)) => {
            (LARGE_PAGE_SIZE, LARGE_PAGE_SIZE)
        }
        Extent::SegmentTable => (table, table),
    };
    Range::fit(place(at, reach), size, unit, reach)
}

/// A tree and the ranges that were asked for.
struct Run<'m> {
    tree: Checked<'m>,
    large: bool,
    earlier: Vec<Range>,
}

impl Run<'_> {
    fn step(&mut self, operation: Operation) {
        let reach = self.tree.reach();
        match operation {
            Map {
                at,
                extent,
                phys,
                read_only,
                large,
                budget,
            } => {
                let large = large && self.large;
                let unit = if large { LARGE_PAGE_SIZE } else { PAGE_SIZE };
                let range = range(at, extent, unit, reach);
                let mapping = Mapping {
                    iova: Iova(range.start),
                    // A machine takes an entry that is all zero for an error.
                    phys: Phys((u64::from(phys) + 1) * unit),
                    size: range.size,
                    access: match read_only {
                        true => Access::READ_ONLY,
                        false => Access::READ_WRITE,
                    },
                    large,
                };
                let _ = self.tree.map(mapping, budget.map(u64::from));
                self.earlier.push(range);
            }
            Unmap { at, extent } => {
                let range = range(at, extent, PAGE_SIZE, reach);
                self.tree.unmap(range.start, range.size);
            }
            UnmapEarlier { nth, start, end } => {
                let Some(index) = self.earlier.len().checked_sub(usize::from(nth) + 1) else {
                    return;
                };
                let range = self.earlier[index];
                let pages = |n: i8| i64::from(n) << PAGE_SHIFT;
                let size = range.size as i64 - pages(start) + pages(end);
                let start = range.start.wrapping_add_signed(pages(start));
                let range = Range::fit(start, size.max(0) as u64, PAGE_SIZE, reach);
                self.tree.unmap(range.start, range.size);
            }
            Lookup { at, offset } => {
                let page = Range::fit(place(at, reach), PAGE_SIZE, PAGE_SIZE, reach).start;
                self.tree.agree(page + u64::from(offset) % PAGE_SIZE);
            }
            Widen { twice, budget } => {
                let more = 1 + u8::from(twice);
                let _ = self.tree.widen(depth(more), budget.map(u64::from));
            }
            Refresh => self.tree.refresh(),
        }
    }
}

impl Scenario {
    /// Does it all. Panics at the first difference.
    pub fn run(&self) {
        let memory = HostMemory::default();
        let tree = Checked::new(&memory, depth(self.depth)).expect("memory is not limited");
        let mut run = Run {
            tree,
            large: self.large,
            earlier: Vec::new(),
        };
        for operation in &self.operations {
            run.step(*operation);
        }
        run.tree.finish();
    }
}
