// SPDX-License-Identifier: GPL-2.0

//! An address space: its table, the functions attached to it, and the flushes
//! that keep them in step. The core's part of a domain is in `domain.rs`.
//!
//! # No flush is missed, and none hits a function that is not registered
//!
//! A map or an unmap stores entries, then executes a full barrier, then refreshes
//! every *live* member that it finds. An attach makes the function a member, executes
//! a full barrier, registers the table, executes another full barrier, and refreshes
//! everything that the table maps (`function.rs`): it looks for the segment entries in
//! use and skips the ranges without any. Whichever barrier comes first, either the
//! flush finds the member, or the attach finds the entries. A flush may also find the
//! member and refresh it before the table is registered. That flush stored its entries
//! before the refresh, so the attach finds them as well.
//!
//! The attach also refreshes what the function leaves, because the machine may still
//! use what it knows of the old table. This is everything that the old table maps, and
//! everything that was unmapped and waits for a full flush or is being flushed: that
//! flush may not reach the function any more.
//!
//! A function is live while the machine has a table registered for it, whichever table
//! that is: refreshing it is then legal. A function stays registered from its first
//! attach on; while it is blocked, with a table that maps nothing. So a flush may safely
//! refresh a function that is just leaving, and an attach waits for no grace period.
//!
//! A function stops being live where a refresh would be an error: before it stops
//! translating (for identity, by way of the empty table), and after it was disabled for
//! a reset, when it does no DMA and a refresh finds an invalid handle. Before it can be
//! enabled again, flushes that may have found it live must end (RCU). It becomes live
//! again after the empty table is registered. A full barrier follows, then the
//! registration of the attached table and the refresh of what it maps: again Dekker's
//! pattern.
//!
//! # Refusals
//!
//! If a refresh is refused for lack of resources, the driver refreshes the whole window
//! once, which lets a hypervisor process everything that was unmapped, and leaves it at
//! that. If a device may still use what was unmapped, nothing is lost: the unlinked
//! tables wait on a list of the domain, and the next flush of any kind refreshes
//! everything (`pending.rs`). Tables that a *queued* unmap unlinks go to that list at
//! once, because the core would free them after the full flush even if the machine
//! refused it. They get there only after their range was marked, and a full flush takes
//! the tables before it takes the marks.
//!
//! # Locks
//!
//! The order is: the core's group mutex or the subsystem's state lock, a function's
//! mutex, the domain's attach lock. Flushes take none of these and run in any context,
//! under RCU. A full flush takes the flush lock before and after its instructions, but
//! does not hold it while it issues them.

use kernel::{
    bindings,
    current,
    error::code::EINTR,
    new_mutex,
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        barrier::{
            smp_mb,
            Write, //
        },
        rcu,
        Arc,
        ArcBorrow,
        Mutex,
        SpinLockIrq, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use crate::{
    atomic::{
        AtomicBool,
        Ordering, //
    },
    dma_table::{
        dump::{
            Dump,
            Step, //
        },
        memory::{
            TablePages,
            Unlinked, //
        },
        Access,
        Depth,
        DmaTable,
        Iova,
        MapError,
        Mapping,
        Phys,
        Root,
        Translation,
        Vacant,
        LARGE_PAGE_SHIFT,
        LARGE_PAGE_SIZE,
        LINE,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    iommu::{
        Gather,
        Gfp,
        PagesList,
        Prot, //
    },
    range::Range,
    trace,
    zpci::{
        Counters,
        Refusal, //
    }, //
};

mod flush;
pub(crate) mod members;
mod page_counts;
pub(crate) mod pending;
pub(crate) mod readers;
mod share;

pub(crate) use share::Share;

use members::{
    Member,
    Members, //
};
use page_counts::PageCounts;
use pending::{
    Flushes,
    Pending,
    Ticket, //
};

/// How many entries a dump reads in one walk of a table. Unmaps free no tables during
/// a walk, so it should be short: some tens of microseconds.
const STRETCH: usize = 1024;

/// Ranges that are further apart than this, in bytes, are refreshed separately. A
/// hypervisor walks about this much in the time of one more instruction.
const GAP: u64 = 16 << 20;

/// An address space. Fields that are written and fields that every call reads are on
/// different cache lines.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct AddressSpace<M: Member> {
    table: DmaTable<TablePages>,
    members: Members<M>,
    /// Its number in traces and in debugfs, from 1 on.
    number: u64,
    page_sizes: u64,
    /// Whether the next flush must make up for a refused one; set under the flush lock.
    is_behind: AtomicBool,
    page_counts: PageCounts,
    // Its marks have cache lines of their own.
    pending: Pending,
    _apart: [u64; LINE / 8],
    #[pin]
    flushes: SpinLockIrq<Flushes>,
    /// Tables that wait for a full flush; protected by the flush lock.
    #[pin]
    deferred: PagesList,
    #[pin]
    attach: Mutex<()>,
    counters: Counters,
}

impl<M: Member> AddressSpace<M> {
    /// An empty address space for IOVAs in `window`.
    pub(crate) fn new(
        depth: Depth,
        window: Range,
        page_sizes: u64,
        vacant: Vacant,
    ) -> impl PinInit<Self, Error> {
        static LAST_NUMBER: Atomic<u64> = Atomic::new(0);

        let number = LAST_NUMBER.fetch_add(1, Relaxed) + 1;
        let pages = TablePages::of_domain(number);
        try_pin_init!(Self {
            table: DmaTable::new(pages, vacant, depth, Gfp::KERNEL_ACCOUNT, Into::into)?,
            members: Members::new(),
            number,
            page_sizes,
            is_behind: AtomicBool::new(false),
            page_counts: PageCounts::new()?,
            pending: Pending::new(window),
            _apart: [0; LINE / 8],
            flushes <- new_spinlock_irq!(Flushes::new(), "s390_iommu::flushes"),
            deferred <- PagesList::new(),
            attach <- new_mutex!((), "s390_iommu::attach"),
            counters: Counters::default(),
        }? Error)
    }

    /// Makes a function a member: from here on flushes reach it, if it is live. Widens
    /// the table first if the function needs that; the table never shrinks. Calls
    /// `widened` with the last IOVA that the table then reaches.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the table would be too deep for the function or for another member;
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn admit(&self, member: ArcBorrow<'_, M>, widened: impl FnOnce(u64)) -> Result {
        let _attach = self.attach.lock();
        let depth = self.depth_with(&member)?;
        self.widen(depth)?;
        self.adapt_to_shadow(&member)?;
        // The core may read the aperture at any time, so the table is widened first.
        widened(depth.reach());
        // SAFETY: Before a function is freed it leaves, and waits for a grace period.
        // The attach lock is held.
        unsafe { self.members.join(member) }
    }

    /// Makes the table at least as deep as `depth`.
    fn widen(&self, depth: Depth) -> Result {
        let before = self.table.root().depth;
        if depth <= before {
            return Ok(());
        }
        let result = self.table.widen(depth, Gfp::KERNEL_ACCOUNT);
        let result = result.map_err(Error::from);
        trace::widen(self.number, before.levels(), depth.levels(), result);
        result
    }

    /// If a hypervisor shadows the table of `member`, unmaps in the way that such a
    /// hypervisor understands from here on.
    pub(crate) fn adapt_to_shadow(&self, member: &M) -> Result {
        if !member.needs_refresh_to_map() || self.table.keeps_entries_valid() {
            return Ok(());
        }
        self.table.keep_entries_valid(Self::wait)
    }

    /// Sleeps a little, so that unmaps under way can end.
    fn wait() -> Result {
        fsleep(Delta::from_micros(10));
        Ok(())
    }

    /// Its number in traces and in debugfs, from 1 on.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The current depth of the table.
    pub(crate) fn depth(&self) -> Depth {
        self.table.root().depth
    }

    /// The page sizes, as a bitmap.
    pub(crate) fn page_sizes(&self) -> u64 {
        self.page_sizes
    }

    /// The memory of the tables, in bytes, without those that wait for a flush before
    /// they are freed.
    pub(crate) fn table_bytes(&self) -> usize {
        self.table.memory().bytes()
    }

    /// Calls `work` for each function that is attached, or about to be.
    pub(crate) fn for_each_member(&self, work: impl FnMut(&M)) {
        let guard = rcu::read_lock();
        self.members.iter(&guard).for_each(work);
    }

    /// Continues a dump by [`STRETCH`] entries.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal arrived while the dump waited for unmaps.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn dump(&self, dump: &mut Dump) -> Result<Step> {
        let walk = self.table.walk(|| {
            if current!().signal_pending() {
                return Err(EINTR);
            }
            Self::wait()
        })?;
        Ok(dump.step(STRETCH, |iova| walk.find(iova)))
    }

    /// The next range at or after `iova` of which a machine may hold translations: the
    /// range of a segment entry in use, or one that was unmapped and waits for a full
    /// flush or is being flushed. `None` if there is none.
    ///
    /// # Context
    ///
    /// May sleep.
    fn next_known(&self, iova: u64) -> Option<Range> {
        let walk = self.table.walk(Self::wait).ok()?;
        let used = walk.next_used(Iova(iova));
        let used = used.and_then(|(start, last)| Range::new(start.0, last.0));
        // After the walk: an unmap marks its range before the walk can find it empty.
        let marked = self.flushes.lock().next_known(&self.pending, iova);
        let both = [used, marked];
        both.into_iter().flatten().min_by_key(|range| range.start())
    }

    /// Whether a walk and the marks may miss something that a machine knows: an unmap beside
    /// a walk may empty entries after a full flush has taken its first mark.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.table.is_unmapped_beside()
    }

    /// The next range at or after `iova` of which a machine may hold translations from any
    /// of these address spaces. Ranges less than [`GAP`] apart are joined.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn next_known_of(spaces: [Option<&AddressSpace<M>>; 2], iova: u64) -> Option<Range> {
        let next = |iova| {
            let spaces = spaces.into_iter().flatten();
            spaces
                .filter_map(|space| space.next_known(iova))
                .min_by_key(|range| range.start())
        };
        let mut found = next(iova)?;
        while let Some(after) = found.last().checked_add(1) {
            match next(after) {
                Some(more) if more.start() <= after.saturating_add(GAP) => {
                    found = found.through(more);
                }
                _ => break,
            }
        }
        Some(found)
    }

    /// Whether this flush must make up for a refused one.
    fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    /// The depth that the table needs with `member` among the members.
    fn depth_with(&self, member: &M) -> Result<Depth> {
        let needed = Depth::for_reach(member.window().last());
        let depth = core::cmp::max(needed, self.table.root().depth);
        let guard = rcu::read_lock();
        let reached = |member: &M| member.deepest() >= depth;
        if reached(member) && self.members.iter(&guard).all(reached) {
            Ok(depth)
        } else {
            Err(EINVAL)
        }
    }

    /// Ends a membership.
    pub(crate) fn remove(&self, member: &M) {
        let _attach = self.attach.lock();
        self.members.leave(member);
    }

    /// The counters, as they are now.
    pub(crate) fn counters(&self) -> &Counters {
        self.page_counts.move_to(&self.counters);
        &self.counters
    }

    /// The first member, if there is one.
    pub(crate) fn first_member(&self) -> Option<Arc<M>> {
        self.members.first()
    }

    /// The top of the table, as it is now.
    pub(crate) fn root(&self) -> Root {
        self.table.root()
    }

    /// The last IOVA (inclusive) that the table reaches.
    fn reach(&self) -> u64 {
        self.table.root().depth.reach()
    }

    /// Checks and maps any range; sets `mapped` to the number of bytes mapped.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(never)]
    // The arguments are those of `iommu_domain_ops::map_pages`.
    #[allow(clippy::too_many_arguments)]
    unsafe fn map_checked(
        &self,
        iova: u64,
        phys: u64,
        page_size: usize,
        count: usize,
        prot: Prot,
        gfp: Gfp,
        mapped: &mut usize,
    ) -> Result {
        let mapping = self.mapping(iova, phys, page_size, count, prot)?;
        // SAFETY: The caller's promise; the mapping is in reach.
        let (bytes, result) = unsafe { self.table.map(mapping, gfp, |at| self.forget(at)) };
        self.page_counts.mapped(bytes);
        *mapped = bytes as usize;
        result.map_err(Error::from)
    }

    /// Makes the members forget the page table that a large page has replaced. Returns
    /// whether none of them can be using it now.
    fn forget(&self, iova: Iova) -> bool {
        let counter = &self.counters.sync_map_rpcits;
        !self.needs_flush()
            || Range::sized(iova.0, LARGE_PAGE_SIZE)
                .is_some_and(|range| self.members.refresh_unmapped(range, counter))
    }

    /// Checks a map of `count` pages of `page_size` bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is empty, not aligned, beyond the reach of the table, or its page
    /// size is not one of the address space.
    fn mapping(
        &self,
        iova: u64,
        phys: u64,
        page_size: usize,
        count: usize,
        prot: Prot,
    ) -> Result<Mapping> {
        let page_size = page_size as u64;
        let large = page_size == LARGE_PAGE_SIZE;
        let shift = if large { LARGE_PAGE_SHIFT } else { PAGE_SHIFT };
        let known = if large {
            self.page_sizes & LARGE_PAGE_SIZE != 0
        } else {
            page_size == PAGE_SIZE
        };
        // The reach ends at the end of a page of any size, so it is enough to compare
        // the number of pages after the first one. A count of 0 wraps and does not fit.
        let (first, last) = (iova, self.reach());
        let after_first = (count as u64).wrapping_sub(1);
        let fits = first <= last && after_first <= (last - first) >> shift;
        if !prot.allows_access() || !known || !fits || (iova | phys) & (page_size - 1) != 0 {
            return Err(EINVAL);
        }
        Ok(Mapping {
            iova: Iova(iova),
            phys: Phys(phys),
            size: (count as u64) << shift,
            access: access(prot),
            large,
        })
    }

    /// Unmaps a range of any size.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(never)]
    unsafe fn unmap_range(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        if !self.holds_pages(iova, size) {
            return 0;
        }
        let mut unlinked = Unlinked {
            gather,
            pages: self.table.memory(),
            mark: |size| {
                self.mark(iova, size);
                // An attach walks the table before it looks for marks.
                smp_mb(Write);
            },
        };
        // SAFETY: The caller's promise; the range is in reach.
        let bytes = unsafe { self.table.unmap(Iova(iova), size, &mut unlinked) };
        if bytes != 0 {
            let queued = gather.is_queued();
            if !queued {
                gather.add(iova, bytes);
            }
            // The mark must come after the entries are emptied, so that the full flush
            // which takes it covers them. Longer unmaps have set theirs already.
            if queued && bytes < LARGE_PAGE_SIZE {
                self.mark(iova, bytes);
            }
            self.page_counts.unmapped(bytes);
            if queued && gather.holds_pages() {
                self.defer(gather);
            }
        }
        bytes as usize
    }

    /// Marks a range, for the next full flush.
    fn mark(&self, iova: u64, size: u64) {
        self.pending
            .mark(iova, iova.wrapping_add(size).wrapping_sub(1));
    }

    /// Whether a range consists of whole pages in reach.
    fn holds_pages(&self, iova: u64, size: u64) -> bool {
        (iova | size) & (PAGE_SIZE - 1) == 0 && self.holds(iova, size)
    }

    /// Whether a range is in reach and not empty.
    fn holds(&self, iova: u64, size: u64) -> bool {
        let last = iova.wrapping_add(size).wrapping_sub(1);
        // Most ranges are low enough for a table of any depth.
        let in_reach = last <= Depth::Third.reach() || last <= self.reach();
        iova <= last && in_reach && size != 0
    }

    /// Whether any device needs a refresh after the stores before. Executes a full barrier
    /// between these stores and whatever depends on the answer.
    #[inline]
    pub(crate) fn needs_flush(&self) -> bool {
        self.members.needs_flush()
    }

    /// Makes new mappings known to the members. Call [`AddressSpace::needs_flush`] before.
    ///
    /// # Errors
    ///
    /// The first error of a member that can do DMA; `ENOMEM` if the hypervisor has no
    /// resources left, because the caller may try again later.
    #[inline]
    pub(crate) fn sync_map(&self, iova: u64, size: u64) -> Result {
        let range = Range::sized(iova, size).ok_or(EINVAL)?;
        let all = self.table.keeps_entries_valid();
        let counter = &self.counters.sync_map_rpcits;
        let result = self.members.refresh_mapped(range, all, counter);
        result.map_err(|refusal| match refusal {
            Refusal::Resources => ENOMEM,
            refusal => refusal.into(),
        })
    }

    /// Makes the members forget the range of the gather, then frees the tables that it
    /// holds. Call [`AddressSpace::needs_flush`] before.
    #[inline]
    pub(crate) fn sync(&self, gather: &mut Gather) {
        let (start, last) = gather.range();
        let counter = &self.counters.sync_rpcits;
        let forgotten = Range::new(start, last)
            .is_none_or(|range| self.members.refresh_unmapped(range, counter));
        if !forgotten {
            self.fall_behind(gather);
            return;
        }
        if gather.holds_pages() {
            // SAFETY: Every member has forgotten the range, or cannot do DMA.
            unsafe { gather.free_flushed() }
        }
        if self.is_behind() {
            self.flush_all();
        }
    }

    /// Makes the members forget everything that was unmapped since the last full flush.
    pub(crate) fn flush_all(&self) {
        pin_init::stack_pin_init!(let unlinked = PagesList::new());
        let begin = || {
            let mut flushes = self.flushes.lock();
            // SAFETY: The lock is held; `unlinked` belongs to this call. It takes the
            // tables before the marks (see the head of this file).
            unsafe { unlinked.take(&self.deferred) };
            flushes.begin(&self.pending, self.table.keeps_entries_valid())
        };
        let end = |ticket: &Ticket, forgotten: bool| {
            let mut flushes = self.flushes.lock();
            if !forgotten {
                // SAFETY: As above.
                unsafe { self.deferred.take(&unlinked) };
            }
            let is_behind = flushes.end(ticket, forgotten);
            self.is_behind.store(is_behind, Ordering::Relaxed);
        };
        self.members
            .flush_all(&self.counters.global_rpcits, begin, end);
        // SAFETY: `unlinked` belongs to this call. Its tables were unlinked before the
        // flush began, and every member has forgotten them, or cannot do DMA.
        unsafe { unlinked.free() };
    }

    /// Keeps the tables in a gather until a full flush has succeeded.
    #[cold]
    fn defer(&self, gather: &mut Gather) {
        let _flushes = self.flushes.lock();
        // SAFETY: The lock is held.
        unsafe { gather.defer(&self.deferred) };
    }

    /// The flush of a gather was refused: the next flush must make up for it.
    #[cold]
    fn fall_behind(&self, gather: &mut Gather) {
        let mut flushes = self.flushes.lock();
        flushes.refused();
        self.is_behind.store(true, Ordering::Relaxed);
        // SAFETY: The lock is held.
        unsafe { gather.defer(&self.deferred) };
    }

    /// Finds a translation.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that contains `iova` meanwhile.
    pub(crate) unsafe fn lookup(&self, iova: u64) -> Option<Translation> {
        // SAFETY: The caller's promise.
        unsafe { self.table.lookup(Iova(iova)) }
    }
}

#[pinned_drop]
impl<M: Member> PinnedDrop for AddressSpace<M> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Nobody else has a reference to the space, and no function has its
        // table.
        unsafe { self.deferred.free() }
    }
}

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        match error {
            MapError::InUse => Error::from_errno(-(bindings::EADDRINUSE as c_int)),
            MapError::NoMemory => ENOMEM,
        }
    }
}

/// The access that a protection allows. The format cannot forbid reads, so a write-only
/// mapping can be read too.
#[inline]
fn access(prot: Prot) -> Access {
    if prot.allows_writes() {
        Access::READ_WRITE
    } else {
        Access::READ_ONLY
    }
}
