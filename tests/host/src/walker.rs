// SPDX-License-Identifier: GPL-2.0

//! An independent walker of I/O translation tables, which implements only the format.
//!
//! It shares no constants or code with the driver, reads table memory as the machine
//! does, and is strict: entries that the machine would not accept, or that the driver
//! has no reason to write, are errors rather than "invalid".

use std::fmt;

/// The level of a table, from the leaves up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    /// Entries map 4 KiB.
    Page,
    /// Entries span 1 MiB.
    Segment,
    /// Entries span 2 GiB.
    RegionThird,
    /// Entries span 4 TiB.
    RegionSecond,
    /// Entries span 8 PiB.
    RegionFirst,
}

use Level::{Page, RegionFirst, RegionSecond, RegionThird, Segment};

/// Type of a region or segment entry.
const TYPE: u64 = 0xc;
/// Table length in a region entry; 3 is a whole table.
const LENGTH: u64 = 0x3;
/// Table offset in a region entry; 0 is a table that starts with its first entry.
const OFFSET: u64 = 0xc0;
/// Invalid bit of a region or segment entry.
const INVALID: u64 = 0x20;
/// Invalid bit of a page entry.
const PAGE_INVALID: u64 = 0x400;
/// Protection bit: read-only.
const PROTECTION: u64 = 0x200;
/// Format control: a segment entry that maps a large page of 1 MiB.
const FORMAT_CONTROL: u64 = 0x400;

impl Level {
    /// The levels of top tables with three, four and five levels.
    pub(crate) const TOPS: [Level; 3] = [RegionThird, RegionSecond, RegionFirst];

    const fn index_bits(self) -> u32 {
        match self {
            _ if cfg!(loom) => 1,
            Page => 8,
            _ => 11,
        }
    }

    const fn entries(self) -> usize {
        1 << self.index_bits()
    }

    const fn shift(self) -> u32 {
        match self.below() {
            None => 12,
            Some(below) => below.shift() + below.index_bits(),
        }
    }

    /// The span of an entry, in bytes.
    pub(crate) const fn span(self) -> u64 {
        1 << self.shift()
    }

    /// The last address that a table of this level translates.
    pub(crate) const fn last(self) -> u64 {
        u64::MAX >> (64 - self.shift() - self.index_bits())
    }

    const fn below(self) -> Option<Level> {
        match self {
            Page => None,
            Segment => Some(Page),
            RegionThird => Some(Segment),
            RegionSecond => Some(RegionThird),
            RegionFirst => Some(RegionSecond),
        }
    }

    const fn type_bits(self) -> u64 {
        match self {
            RegionFirst => 0xc,
            RegionSecond => 0x8,
            RegionThird => 0x4,
            Segment | Page => 0x0,
        }
    }
}

/// Memory as the machine reads it.
pub(crate) trait Storage {
    /// Reads entries of the table at a physical address, if the machine can still find
    /// one there.
    fn table(&self, origin: u64, entries: usize) -> Option<impl Fn(usize) -> u64>;
}

/// A page or a large page that maps an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    /// The physical address.
    pub(crate) phys: u64,
    /// The size in bytes.
    pub(crate) size: u64,
    /// Whether the protection bit is set.
    pub(crate) read_only: bool,
}

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    Invalid,
    Table(u64),
    Leaf(Leaf),
}

/// The result of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// A translation.
    Leaf(Leaf),
    /// An invalid entry in a table of this level.
    Invalid(Level),
}

impl Found {
    /// Whether there is neither a mapping nor a table below this level.
    pub(crate) fn is_free(self, level: Level) -> bool {
        matches!(self, Found::Invalid(at) if at >= level)
    }
}

/// An error in the format of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FormatError {
    /// The level of the table.
    pub(crate) level: Level,
    /// The bad entry, or the origin of a missing table.
    pub(crate) word: u64,
    /// What is wrong with the entry.
    pub(crate) what: &'static str,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {} ({:#x})", self.level, self.what, self.word)
    }
}

/// Fails unless `good`.
fn need(good: bool, level: Level, word: u64, what: &'static str) -> Result<(), FormatError> {
    match good {
        true => Ok(()),
        false => Err(FormatError { level, word, what }),
    }
}

fn leaf(level: Level, word: u64, flags: u64) -> Result<Entry, FormatError> {
    let low = level.span() - 1;
    need(
        word & low & !flags == 0,
        level,
        word,
        "stray bits in a leaf",
    )?;
    Ok(Entry::Leaf(Leaf {
        phys: word & !low,
        size: level.span(),
        read_only: word & PROTECTION != 0,
    }))
}

fn decode(level: Level, word: u64) -> Result<Entry, FormatError> {
    need(word != 0, level, word, "an all-zero entry")?;
    if level == Page {
        return match word & PAGE_INVALID {
            0 => leaf(Page, word, PROTECTION),
            _ => Ok(Entry::Invalid),
        };
    }
    if word & INVALID != 0 {
        return Ok(Entry::Invalid);
    }
    need(word & TYPE == level.type_bits(), level, word, "wrong type")?;
    if level == Segment {
        if word & FORMAT_CONTROL != 0 {
            return leaf(Segment, word, PROTECTION | FORMAT_CONTROL);
        }
        need(word & 0x7ff == 0, level, word, "stray bits in an entry")?;
        return Ok(Entry::Table(word));
    }
    need(
        word & LENGTH == LENGTH,
        level,
        word,
        "table length not whole",
    )?;
    need(word & OFFSET == 0, level, word, "table offset not 0")?;
    let known = TYPE | LENGTH;
    need(
        word & 0x3fff & !known == 0,
        level,
        word,
        "stray bits in an entry",
    )?;
    Ok(Entry::Table(word & !known))
}

fn no_table(level: Level, origin: u64) -> FormatError {
    FormatError {
        level,
        word: origin,
        what: "no live table at this origin",
    }
}

/// Translates an IOVA, starting at the top table at `origin`. The caller must check that
/// `iova` is within reach: the indices wrap as they do in the machine.
pub(crate) fn find(
    memory: &impl Storage,
    origin: u64,
    top: Level,
    iova: u64,
) -> Result<Found, FormatError> {
    let (mut level, mut origin) = (top, origin);
    loop {
        let table = memory
            .table(origin, level.entries())
            .ok_or_else(|| no_table(level, origin))?;
        let index = (iova >> level.shift()) as usize % level.entries();
        match (decode(level, table(index))?, level.below()) {
            (Entry::Invalid, _) => return Ok(Found::Invalid(level)),
            (Entry::Leaf(leaf), _) => return Ok(Found::Leaf(leaf)),
            (Entry::Table(next), Some(below)) => (level, origin) = (below, next),
            (Entry::Table(_), None) => unreachable!("a page entry points to no table"),
        }
    }
}

/// Reads a whole tree. Calls `visit` with each leaf and its IOVA, in order, and returns
/// the number of tables.
pub(crate) fn walk(
    memory: &impl Storage,
    origin: u64,
    level: Level,
    base: u64,
    visit: &mut impl FnMut(u64, Leaf),
) -> Result<usize, FormatError> {
    let table = memory
        .table(origin, level.entries())
        .ok_or_else(|| no_table(level, origin))?;
    let mut tables = 1;
    for index in 0..level.entries() {
        let at = base + index as u64 * level.span();
        match (decode(level, table(index))?, level.below()) {
            (Entry::Table(next), Some(below)) => tables += walk(memory, next, below, at, visit)?,
            (Entry::Leaf(leaf), _) => visit(at, leaf),
            _ => {}
        }
    }
    Ok(tables)
}
