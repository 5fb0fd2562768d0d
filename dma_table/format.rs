// SPDX-License-Identifier: GPL-2.0

//! The format of the tables: levels, entries, how far a tree reaches.
//!
//! This file alone defines what bits mean. C header:
//! [`arch/s390/include/asm/pci_dma.h`](srctree/arch/s390/include/asm/pci_dma.h).

use super::table::Vacant;

/// log2 of the smallest page that can be mapped, in bytes.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// The smallest page that can be mapped, in bytes.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of the range of one segment entry, in bytes: the size of a large page.
pub(crate) const LARGE_PAGE_SHIFT: u32 = Segment::SHIFT;
/// The size of a large page in bytes.
pub(crate) const LARGE_PAGE_SIZE: u64 = 1 << LARGE_PAGE_SHIFT;

/// Index bits of a page table. The model checker explores narrow tables, which have fewer
/// states; the protocol does not depend on the width.
pub(super) const PAGE_TABLE_BITS: u32 = if cfg!(loom) { 1 } else { 8 };
/// Index bits of segment and region tables.
pub(super) const UPPER_TABLE_BITS: u32 = if cfg!(loom) { 1 } else { 11 };

/// Invalid bit of a segment- or region-table entry.
pub(super) const ENTRY_INVALID: u64 = 0x20;
/// Invalid bit of a page-table entry.
pub(super) const PAGE_INVALID: u64 = 0x400;
/// A page entry of a vacant table: invalid, and different from that of an empty page
/// table. The machine ignores all other bits of an invalid entry.
pub(super) const PAGE_VACANT: u64 = PAGE_INVALID | PROTECTED;
/// Writes are refused by the machine (leaf entries).
pub(super) const PROTECTED: u64 = 0x200;
/// Format control of a segment entry: it maps a large page.
pub(super) const LARGE: u64 = 0x400;
/// Table length of a region entry: all 2048 entries are present.
pub(super) const FULL_LENGTH: u64 = 0x3;

/// Checks the constants against the C header.
#[cfg(CONFIG_S390)]
mod as_in_c {
    use super::*;
    use kernel::{
        bindings::*,
        prelude::*, //
    };

    static_assert!(PAGE_TABLE_BITS == ZPCI_PT_BITS);
    static_assert!(UPPER_TABLE_BITS == ZPCI_TABLE_BITS);
    static_assert!(ENTRY_INVALID == ZPCI_TABLE_INVALID as u64);
    static_assert!(PAGE_INVALID == ZPCI_PTE_INVALID as u64);
    static_assert!(PROTECTED == ZPCI_TABLE_PROTECTED as u64);
    static_assert!(Segment::TYPE == ZPCI_TABLE_TYPE_SX as u64);
    static_assert!(Third::TYPE == (ZPCI_TABLE_TYPE_RTX | ZPCI_TABLE_LEN_RTX) as u64);
    static_assert!(Second::TYPE == (ZPCI_TABLE_TYPE_RSX | ZPCI_TABLE_LEN_RSX) as u64);
    static_assert!(First::TYPE == (ZPCI_TABLE_TYPE_RFX | ZPCI_TABLE_LEN_RFX) as u64);
    static_assert!(Depth::Third as u32 == zpci_ioat_dtype_ZPCI_IOTA_RTTO);
    static_assert!(Depth::Second as u32 == zpci_ioat_dtype_ZPCI_IOTA_RSTO);
    static_assert!(Depth::First as u32 == zpci_ioat_dtype_ZPCI_IOTA_RFTO);
}

/// An I/O virtual address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Iova(pub(crate) u64);

/// A physical address, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Phys(pub(crate) u64);

/// The access that a mapping allows, as bits of its entries. The format cannot forbid
/// reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access(u64);

impl Access {
    /// Device writes are refused by the machine.
    pub(crate) const READ_ONLY: Self = Access(PROTECTED);

    /// Devices may read and write.
    pub(crate) const READ_WRITE: Self = Access(0);

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) const fn of(entry: u64) -> Self {
        Access(entry & PROTECTED)
    }
}

/// The depth of a tree, which determines its reach.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub(crate) enum Depth {
    /// Three levels: region third, segment, page.
    Third = 1,
    /// Four levels, from region second.
    Second = 2,
    /// Five levels, from region first.
    First = 3,
}

impl Depth {
    /// The last IOVA (inclusive) that a tree of this depth reaches.
    pub(crate) const fn reach(self) -> u64 {
        match self {
            Depth::Third => last_of::<Third>(),
            Depth::Second => last_of::<Second>(),
            Depth::First => last_of::<First>(),
        }
    }

    /// The least depth that reaches `last` (inclusive).
    pub(crate) const fn for_reach(last: u64) -> Self {
        if last <= Depth::Third.reach() {
            Depth::Third
        } else if last <= Depth::Second.reach() {
            Depth::Second
        } else {
            Depth::First
        }
    }

    /// The number of levels of tables, including page tables.
    pub(crate) const fn levels(self) -> u32 {
        self as u32 + 2
    }

    pub(super) const fn deeper(self) -> Option<Self> {
        match self {
            Depth::Third => Some(Depth::Second),
            Depth::Second => Some(Depth::First),
            Depth::First => None,
        }
    }
}

/// The two kinds of table, as the allocator sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// A page table.
    Page,
    /// A segment or region table.
    Upper,
}

impl Shape {
    pub(super) const fn bits(self) -> u32 {
        match self {
            Shape::Page => PAGE_TABLE_BITS,
            Shape::Upper => UPPER_TABLE_BITS,
        }
    }

    /// The number of entries of a table.
    pub(crate) const fn entries(self) -> usize {
        1 << self.bits()
    }

    /// The size, and so the alignment, of a table in bytes.
    pub(crate) const fn bytes(self) -> usize {
        self.entries() * 8
    }

    /// The value of every entry of an empty table.
    pub(crate) const fn empty(self) -> u64 {
        match self {
            Shape::Page => PAGE_INVALID,
            Shape::Upper => ENTRY_INVALID,
        }
    }
}

/// A level of the tree. Each level is a type, so an entry of one level cannot be read as
/// an entry of another.
pub(crate) trait Level {
    /// log2 of the bytes that one entry spans.
    const SHIFT: u32;
    /// The kind of table at this level.
    const SHAPE: Shape;

    /// The index of the entry that translates `iova` in a table of this level.
    #[inline]
    fn index(iova: Iova) -> usize {
        (iova.0 >> Self::SHIFT) as usize & (Self::SHAPE.entries() - 1)
    }
}

/// The last address (inclusive) of a table of level `L` that begins at 0. (The size would
/// overflow: a region-first table covers 2^64 bytes.)
pub(super) const fn last_of<L: Level>() -> u64 {
    u64::MAX >> (u64::BITS - L::SHIFT - L::SHAPE.bits())
}

/// The bytes that one entry of a table of level `L` spans.
pub(super) const fn span<L: Level>() -> u64 {
    1 << L::SHIFT
}

/// A level whose entries point to tables.
pub(crate) trait Upper: Level {
    /// The level of the tables that entries point to.
    type Below: Level;
    /// Table type and length, as in an entry.
    const TYPE: u64;
    /// Bits that are clear in an entry that points to a table.
    const NOT_TABLE: u64;

    /// The vacant table of the level below.
    fn vacant(vacant: &Vacant) -> Phys;

    /// The table that `entry` points to.
    #[inline]
    fn origin(entry: u64) -> Option<Phys> {
        if entry & Self::NOT_TABLE == 0 {
            // No other bit is set, and a displacement costs no instruction.
            Some(Phys(entry.wrapping_sub(Self::TYPE)))
        } else {
            None
        }
    }

    /// The entry that points to the table at `origin`.
    #[inline]
    fn entry(origin: Phys) -> u64 {
        origin.0 | Self::TYPE
    }
}

/// Page tables: 256 entries of 4 KiB.
pub(crate) struct Page;
/// Segment tables: 2048 entries of 1 MiB.
pub(crate) struct Segment;
/// Region-third tables: 2048 entries of 2 GiB.
pub(crate) struct Third;
/// Region-second tables: 2048 entries of 4 TiB.
pub(crate) struct Second;
/// Region-first tables: 2048 entries of 8 PiB.
pub(crate) struct First;

impl Level for Page {
    const SHIFT: u32 = PAGE_SHIFT;
    const SHAPE: Shape = Shape::Page;
}

impl Level for Segment {
    const SHIFT: u32 = Page::SHIFT + PAGE_TABLE_BITS;
    const SHAPE: Shape = Shape::Upper;
}

impl Upper for Segment {
    type Below = Page;
    const TYPE: u64 = 0x0;
    const NOT_TABLE: u64 = ENTRY_INVALID | LARGE;

    #[inline]
    fn vacant(vacant: &Vacant) -> Phys {
        vacant.page
    }
}

macro_rules! region_level {
    ($level:ident over $below:ident, table type $ty:literal, vacant $vacant:ident) => {
        impl Level for $level {
            const SHIFT: u32 = $below::SHIFT + UPPER_TABLE_BITS;
            const SHAPE: Shape = Shape::Upper;
        }

        impl Upper for $level {
            type Below = $below;
            const TYPE: u64 = $ty | FULL_LENGTH;
            const NOT_TABLE: u64 = ENTRY_INVALID;

            #[inline]
            fn vacant(vacant: &Vacant) -> Phys {
                vacant.$vacant
            }
        }
    };
}

region_level!(Third over Segment, table type 0x4, vacant segment);
region_level!(Second over Third, table type 0x8, vacant third);
region_level!(First over Second, table type 0xc, vacant second);

/// The top table: its origin and depth in one word, so that a walker reads both
/// at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    /// The physical address of the top table.
    pub(crate) origin: Phys,
    /// Which table it is.
    pub(crate) depth: Depth,
}

impl Root {
    #[inline]
    pub(super) fn pack(self) -> u64 {
        self.origin.0 | self.depth as u64
    }

    #[inline]
    pub(super) fn unpack(word: u64) -> Self {
        Root {
            origin: Phys(word & !3),
            depth: match word & 3 {
                1 => Depth::Third,
                2 => Depth::Second,
                _ => Depth::First,
            },
        }
    }
}

/// A translation that was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    /// The physical address of the IOVA that was asked for, offset included.
    pub(crate) phys: Phys,
    /// The size of the page that holds it, in bytes.
    pub(crate) page_size: u64,
    /// What the device may do.
    pub(crate) access: Access,
}

pub(super) fn translation(entry: u64, page_size: u64, iova: Iova) -> Translation {
    let offset = page_size - 1;
    Translation {
        phys: Phys((entry & !offset) | (iova.0 & offset)),
        page_size,
        access: Access::of(entry),
    }
}
