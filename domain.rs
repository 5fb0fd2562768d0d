// SPDX-License-Identifier: GPL-2.0

//! An address space: its table, the functions attached to it, and the flushes
//! that keep them in step.
//!
//! # No flush is missed, none hits a function that is not registered
//!
//! A map or an unmap stores entries, then runs a full barrier, then refreshes
//! every member that it sees and that is *live*. An attach makes the function a
//! member, then runs a full barrier, then registers the table, runs another full
//! barrier, and refreshes all that the table maps (`function.rs`): it looks for the
//! segment entries that are in use, and skips what has none. Whichever barrier
//! comes first: either the flush sees the member, or the attach sees the entries. A
//! flush that saw the member, but refreshed it before the table was registered, had
//! stored its entries before that refresh, so the attach sees those as well.
//!
//! What the function leaves is refreshed too, as the machine may go on using what
//! it knows of the old table: all that the old table maps, and all that was unmapped
//! and waits for a full flush, which will not reach the function any more.
//!
//! A function is live while the machine has a table registered for it, whatever
//! table that is: refreshing it is then legal. It stays registered from its
//! first attach on; while blocked, with a table that maps nothing. So a flush
//! that still sees a function which is just leaving does no harm, and an attach
//! waits for no grace period.
//!
//! A function stops to be live where a refresh would be an error: before it
//! stops translating (identity, by way of the empty table), and after it was
//! disabled (to be reset), when it does no DMA and a refresh still finds an
//! invalid handle. Flushes that may have found it live are waited for (RCU) before
//! it can be enabled again. It becomes live again after the empty table was
//! registered, then comes a full barrier, then the table that is attached and the
//! refresh of what it maps: again Dekker's pattern.
//!
//! # What the machine refuses
//!
//! A refresh that is refused for want of resources is followed by one of the whole
//! window, which lets a hypervisor find all that was unmapped, and by no more. If a
//! device may still be using what was unmapped, nothing is lost or forgotten: the
//! tables that were unlinked wait on a list of the domain's, and the next flush, of
//! whichever kind, refreshes everything (`pending.rs`). Tables that a *queued* unmap
//! unlinks go to that list at once: the core would free them after the full flush,
//! whatever the machine said of it. They are there only after their range was marked,
//! and a full flush takes them before it takes the marks.
//!
//! # Locks
//!
//! The core's group mutex or the subsystem's state lock, then a function's
//! mutex, then the domain's attach lock. Flushes take none of these; they run
//! in any context, under RCU. The flush lock is taken before and after a full flush
//! asks the machine, never meanwhile.

use core::sync::atomic::{
    AtomicBool,
    AtomicU64,
    Ordering, //
};

use kernel::{
    bindings,
    current,
    error::code::EINTR,
    new_mutex,
    new_spinlock_irq,
    prelude::*,
    sync::{
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
    aperture::Range,
    debugfs,
    dma_table::{
        Access,
        Depth,
        DmaTable,
        Iova,
        MapError,
        Mapping,
        Phys,
        Translation,
        Vacant,
        LARGE_PAGE_SHIFT,
        LARGE_PAGE_SIZE,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    dump::{Dump, Step},
    function::Function,
    iommu::{self, Gather, Gfp, PagesList, Prot},
    members::Members,
    memory::{TablePages, Unlinked},
    pending::{Flushes, Pending},
    seq_file::Entry,
    trace,
    zpci::{Counters, Iota, Refusal}, //
};

/// How many entries a dump looks at in one walk of a table. Unmaps give no tables
/// back meanwhile, so it is to be short: some tens of microseconds.
const STRETCH: usize = 1024;

/// How far apart ranges are that are refreshed each by itself, in bytes: about
/// what a hypervisor walks in the time that another instruction takes.
const GAP: u64 = 16 << 20;

/// A domain as the core sees it.
pub(crate) type Domain = iommu::Domain<Paging>;

/// What the core's domain holds: a share in the address space. Functions hold
/// others, so a table outlives a function that could not be taken off it.
pub(crate) struct Paging {
    /// Its folder in debugfs.
    _shown: Option<Entry<Arc<Space>>>,
    /// The address space.
    pub(crate) space: Arc<Space>,
}

/// An address space.
#[pin_data(PinnedDrop)]
pub(crate) struct Space {
    /// The number by which it is traced and shown, from 1 on.
    number: u64,
    page_sizes: u64,
    table: DmaTable<TablePages>,
    members: Members<Function>,
    pending: Pending,
    #[pin]
    flushes: SpinLockIrq<Flushes>,
    /// Tables that wait for a full flush; under the flush lock.
    #[pin]
    deferred: PagesList,
    /// Whether a refused refresh is to be made up for; set under the flush lock.
    is_behind: AtomicBool,
    #[pin]
    attach: Mutex<()>,
    counters: Counters,
}

impl Domain {
    /// An empty address space that suits `function`: its table is as deep as
    /// the function's window needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn for_function(
        function: &Function,
        page_sizes: u64,
        vacant: Vacant,
    ) -> Result<Pin<KBox<Self>>> {
        let window = function.window();
        let depth = Depth::for_reach(window.last());
        let space = Space::new(depth, window, page_sizes, vacant);
        let space = Arc::pin_init(space, GFP_KERNEL)?;
        space.adapt_to_shadow(function)?;
        let paging = Paging {
            _shown: debugfs::show_domain(&space),
            space,
        };
        Domain::new(paging, page_sizes, depth.reach())
    }

    /// The address space.
    #[inline]
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.data().space
    }

    /// Maps `count` pages of `page_size` bytes. Returns how many bytes were
    /// mapped before an error.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what cannot be mapped at all, `EADDRINUSE` if the range
    /// holds a live mapping, `ENOMEM`.
    #[inline(never)]
    pub(crate) unsafe fn map(
        &self,
        iova: u64,
        phys: u64,
        page_size: usize,
        count: usize,
        prot: Prot,
        gfp: Gfp,
    ) -> (usize, Result) {
        if !prot.allows_access() {
            return (0, Err(EINVAL));
        }
        let access = access(prot);
        if page_size as u64 == PAGE_SIZE {
            // SAFETY: The caller's promise.
            let mapped = unsafe { self.space().map_run(iova, phys, count, access) };
            if mapped {
                return (count << PAGE_SHIFT, Ok(()));
            }
        }
        match self.mapping(iova, phys, page_size, count, access) {
            // SAFETY: The caller's promise.
            Ok(mapping) => unsafe { self.space().map(mapping, gfp) },
            Err(error) => (0, Err(error)),
        }
    }

    /// Unmaps a range up to the first hole. Returns how many bytes were
    /// unmapped: none of what cannot have been mapped.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline(never)]
    pub(crate) unsafe fn unmap(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        if self.holds_pages(iova, size) {
            // SAFETY: The caller's promise.
            unsafe { self.space().unmap(iova, size, gather) }
        } else {
            0
        }
    }

    /// Checks a map of `count` pages of `page_size` bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is empty, not aligned, not in the aperture, or of a page
    /// size that the domain does not have.
    fn mapping(
        &self,
        iova: u64,
        phys: u64,
        page_size: usize,
        count: usize,
        access: Access,
    ) -> Result<Mapping> {
        let page_size = page_size as u64;
        let large = page_size == LARGE_PAGE_SIZE;
        let shift = if large { LARGE_PAGE_SHIFT } else { PAGE_SHIFT };
        let known = if large {
            self.page_sizes() & LARGE_PAGE_SIZE != 0
        } else {
            page_size == PAGE_SIZE
        };
        // The aperture ends where a page of any size ends, so that the pages
        // after the first one can be counted; of none, the first one is short.
        let (first, last) = (iova, self.aperture_last());
        let after_first = (count as u64).wrapping_sub(1);
        let fits = first <= last && after_first <= (last - first) >> shift;
        if !known || !fits || (iova | phys) & (page_size - 1) != 0 {
            return Err(EINVAL);
        }
        Ok(Mapping {
            iova: Iova(iova),
            phys: Phys(phys),
            size: (count as u64) << shift,
            access,
            large,
        })
    }

    /// Whether a range is one of whole pages in the aperture.
    fn holds_pages(&self, iova: u64, size: u64) -> bool {
        (iova | size) & (PAGE_SIZE - 1) == 0 && self.holds(iova, size)
    }

    /// Whether a range is in the aperture, and not empty.
    fn holds(&self, iova: u64, size: u64) -> bool {
        let last = iova.wrapping_add(size).wrapping_sub(1);
        iova <= last && last <= self.aperture_last() && size != 0
    }

    /// Makes a function a member: from here on flushes reach it, if it is live.
    /// The aperture is widened before, if the function needs that; it stays so.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the function, or another member, cannot use a table as deep
    /// as it would have to be; `ENOMEM`.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn admit(&self, function: ArcBorrow<'_, Function>) -> Result {
        let space = self.space();
        let _attach = space.attach.lock();
        let depth = space.depth_with(&function)?;
        space.widen(depth)?;
        space.adapt_to_shadow(&function)?;
        // The core reads the aperture at any time, so the table comes first.
        self.widen_aperture(depth.reach());
        // SAFETY: A function leaves before it goes, and waits for a grace
        // period then. The attach lock is held.
        unsafe { space.members.join(function) }
    }
}

impl Space {
    fn new(
        depth: Depth,
        window: Range,
        page_sizes: u64,
        vacant: Vacant,
    ) -> impl PinInit<Self, Error> {
        static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);

        let number = LAST_NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        let pages = TablePages::of_domain(number);
        try_pin_init!(Self {
            number,
            page_sizes,
            table: DmaTable::new(pages, vacant, depth, Gfp::KERNEL_ACCOUNT, Into::into)?,
            members: Members::new(),
            pending: Pending::new(window),
            flushes <- new_spinlock_irq!(Flushes::new(), "s390_iommu::flushes"),
            deferred <- PagesList::new(),
            is_behind: AtomicBool::new(false),
            attach <- new_mutex!((), "s390_iommu::attach"),
            counters: Counters::default(),
        }? Error)
    }

    /// Makes the table deep enough, if it is not.
    fn widen(&self, depth: Depth) -> Result {
        let before = self.table.root().depth;
        if depth <= before {
            return Ok(());
        }
        let result = self.table.widen(depth, Gfp::KERNEL_ACCOUNT);
        let result = result.map_err(Error::from);
        trace::widen(self.number, before, depth, result);
        result
    }

    /// Makes unmaps such that a hypervisor which shadows the table of `function`
    /// notices them.
    fn adapt_to_shadow(&self, function: &Function) -> Result {
        if !function.needs_refresh_to_map() || self.table.keeps_entries_valid() {
            return Ok(());
        }
        self.table.keep_entries_valid(Self::wait)
    }

    /// Lets unmaps end that are under way.
    fn wait() -> Result {
        fsleep(Delta::from_micros(10));
        Ok(())
    }

    /// The number by which it is traced and shown, from 1 on.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// How deep the table is now.
    pub(crate) fn depth(&self) -> Depth {
        self.table.root().depth
    }

    /// The page sizes, as a bitmap.
    pub(crate) fn page_sizes(&self) -> u64 {
        self.page_sizes
    }

    /// How much memory the tables take, in bytes, without those that wait for a
    /// flush to be freed.
    pub(crate) fn table_bytes(&self) -> usize {
        self.table.memory().bytes()
    }

    /// Calls `work` for each function that is attached, or about to be.
    pub(crate) fn for_each_member(&self, work: impl FnMut(&Function)) {
        let guard = rcu::read_lock();
        self.members.iter(&guard).for_each(work);
    }

    /// Goes on with a dump, for a stretch of entries.
    ///
    /// # Errors
    ///
    /// `EINTR` if a signal came while the dump waited for unmaps.
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

    /// The next range at or after `iova` that a machine may know something of:
    /// what segment entries map that are in use, and what was unmapped and waits
    /// for a full flush. `None` if there is none.
    ///
    /// # Context
    ///
    /// May sleep.
    fn next_known(&self, iova: u64) -> Option<Range> {
        if self.is_behind() {
            return Some(Range::ALL);
        }
        let walk = self.table.walk(Self::wait).ok()?;
        let used = walk.next_used(Iova(iova));
        let used = used.and_then(|(start, last)| Range::new(start.0, last.0));
        let marked = self.pending.next_marked(iova);
        let both = [used, marked];
        both.into_iter().flatten().min_by_key(|range| range.start())
    }

    /// The next range at or after `iova` that a machine may know something of from
    /// any of these address spaces. Ranges that are near each other are joined.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn next_known_of(spaces: [Option<&Space>; 2], iova: u64) -> Option<Range> {
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

    /// Whether a refused refresh is to be made up for.
    fn is_behind(&self) -> bool {
        self.is_behind.load(Ordering::Relaxed)
    }

    /// How deep the table has to be with `function` among the members.
    fn depth_with(&self, function: &Function) -> Result<Depth> {
        let needed = Depth::for_reach(function.window().last());
        let depth = core::cmp::max(needed, self.table.root().depth);
        let guard = rcu::read_lock();
        let reached = |member: &Function| member.deepest() >= depth;
        if reached(function) && self.members.iter(&guard).all(reached) {
            Ok(depth)
        } else {
            Err(EINVAL)
        }
    }

    /// Ends a membership.
    pub(crate) fn remove(&self, function: &Function) {
        let _attach = self.attach.lock();
        self.members.leave(function);
    }

    /// The I/O translation anchor of this table.
    pub(crate) fn iota(&self) -> Iota {
        self.table.root().into()
    }

    /// The counters.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Maps a range, which must be in the aperture and aligned. Returns how
    /// many bytes were mapped before an error.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline]
    pub(crate) unsafe fn map(&self, mapping: Mapping, gfp: Gfp) -> (usize, Result) {
        // SAFETY: The caller's promise.
        let (bytes, result) = unsafe { self.table.map(mapping, gfp) };
        self.counters
            .mapped_pages
            .fetch_add(bytes >> PAGE_SHIFT, Ordering::Relaxed);
        (bytes as usize, result.map_err(Error::from))
    }

    /// Maps one page if that needs no more than to fill its entry. If not,
    /// nothing has changed, and [`Space::map`] does it or says why not.
    ///
    /// # Safety
    ///
    /// The caller owns the page.
    #[inline]
    pub(crate) unsafe fn map_page(&self, iova: u64, phys: u64, access: Access) -> bool {
        // SAFETY: The caller's promise.
        let mapped = unsafe { self.table.map_page(Iova(iova), Phys(phys), access) };
        if mapped {
            self.counters.mapped_pages.fetch_add(1, Ordering::Relaxed);
        }
        mapped
    }

    /// Maps `count` pages of 4 KiB, as [`Space::map_page`] does it with one, if
    /// one page table holds them all.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    #[inline]
    unsafe fn map_run(&self, iova: u64, phys: u64, count: usize, access: Access) -> bool {
        // SAFETY: The caller's promise.
        let mapped = unsafe {
            self.table
                .map_in_leaf(Iova(iova), Phys(phys), count, access)
        };
        if mapped {
            self.counters
                .mapped_pages
                .fetch_add(count as u64, Ordering::Relaxed);
        }
        mapped
    }

    /// Unmaps one page if that needs no more than to empty its entry. If not,
    /// nothing has changed, and [`Space::unmap`] does it.
    ///
    /// # Safety
    ///
    /// The caller owns the page.
    #[inline]
    pub(crate) unsafe fn unmap_page(&self, iova: u64, gather: &mut Gather) -> bool {
        // SAFETY: The caller's promise.
        let unmapped = unsafe { self.table.unmap_page(Iova(iova)) };
        if unmapped {
            gather.add(iova, PAGE_SIZE);
            self.pending.mark_one(iova);
            self.counters.unmapped_pages.fetch_add(1, Ordering::Relaxed);
        }
        unmapped
    }

    /// Unmaps a range, which must be in the aperture, up to the first hole.
    ///
    /// # Safety
    ///
    /// The caller owns the range.
    pub(crate) unsafe fn unmap(&self, iova: u64, size: u64, gather: &mut Gather) -> usize {
        let mut unlinked = Unlinked {
            gather,
            pages: self.table.memory(),
        };
        // SAFETY: The caller's promise.
        let bytes = unsafe { self.table.unmap(Iova(iova), size, &mut unlinked) };
        if bytes != 0 {
            gather.add(iova, bytes);
            self.pending
                .mark(iova, iova.wrapping_add(bytes).wrapping_sub(1));
            self.counters
                .unmapped_pages
                .fetch_add(bytes >> PAGE_SHIFT, Ordering::Relaxed);
            if gather.is_queued() && gather.holds_pages() {
                self.defer(gather);
            }
        }
        bytes as usize
    }

    /// Finds a translation.
    ///
    /// # Safety
    ///
    /// Nobody unmaps a range that holds `iova` meanwhile.
    pub(crate) unsafe fn lookup(&self, iova: u64) -> Option<Translation> {
        // SAFETY: The caller's promise.
        unsafe { self.table.lookup(Iova(iova)) }
    }

    /// Whether any device needs a refresh after what was stored. A full barrier between
    /// the stores and what the answer leads to.
    #[inline]
    pub(crate) fn needs_flush(&self) -> bool {
        !self.members.nobody_sees_stores()
    }

    /// Makes members see what was mapped, after [`Space::needs_flush`].
    ///
    /// # Errors
    ///
    /// The first error of a member that can do DMA; `ENOMEM` if the hypervisor has
    /// no resources left, as a caller may try again later.
    pub(crate) fn sync_map(&self, iova: u64, size: u64) -> Result {
        let range = Range::sized(iova, size).ok_or(EINVAL)?;
        let valid_before = self.table.keeps_entries_valid();
        let counter = &self.counters.sync_map_rpcits;
        let mut result = Ok(());
        let guard = rcu::read_lock();
        for member in self.members.iter(&guard) {
            if valid_before || member.needs_refresh_to_map() {
                result = result.and(member.refresh_all(&[range], counter));
            }
        }
        result.map_err(|refusal| match refusal {
            Refusal::Resources => ENOMEM,
            refusal => refusal.into(),
        })
    }

    /// Makes members forget what is in the gather, then frees the tables that
    /// it holds; after [`Space::needs_flush`].
    pub(crate) fn sync(&self, gather: &mut Gather) {
        let (start, last) = gather.range();
        let forgotten = match Range::new(start, last) {
            Some(range) => self.refresh_unmapped(&[range], &self.counters.sync_rpcits),
            None => true,
        };
        if !forgotten {
            self.fall_behind(gather);
            return;
        }
        if gather.holds_pages() {
            // SAFETY: Every member forgot the range, or cannot do DMA.
            unsafe { gather.free_flushed() }
        }
        if self.is_behind() {
            self.flush_all();
        }
    }

    /// Makes members forget all that was unmapped since the last time.
    pub(crate) fn flush_all(&self) {
        pin_init::stack_pin_init!(let unlinked = PagesList::new());
        let ticket = {
            let mut flushes = self.flushes.lock();
            // SAFETY: The lock is held; `unlinked` is this call's. Tables come
            // before the marks (see the head of this file).
            unsafe { unlinked.take(&self.deferred) };
            flushes.begin(&self.pending, self.table.keeps_entries_valid())
        };
        // A member that came before the marks were taken is among those refreshed.
        let forgotten = !self.needs_flush()
            || self.refresh_unmapped(ticket.ranges.as_slice(), &self.counters.global_rpcits);
        let mut flushes = self.flushes.lock();
        if !forgotten {
            // SAFETY: As above.
            unsafe { self.deferred.take(&unlinked) };
        }
        let is_behind = flushes.end(&ticket, forgotten);
        self.is_behind.store(is_behind, Ordering::Relaxed);
        drop(flushes);
        // SAFETY: `unlinked` is this call's. What is on it was unlinked before the
        // flush began, and every member forgot it, or cannot do DMA.
        unsafe { unlinked.free() };
    }

    /// Keeps the tables in a gather until a full flush has succeeded.
    #[cold]
    fn defer(&self, gather: &mut Gather) {
        let _flushes = self.flushes.lock();
        // SAFETY: The lock is held.
        unsafe { gather.defer(&self.deferred) };
    }

    /// The flush of a gather was refused: the next flush makes up for it.
    #[cold]
    fn fall_behind(&self, gather: &mut Gather) {
        let mut flushes = self.flushes.lock();
        flushes.refused();
        self.is_behind.store(true, Ordering::Relaxed);
        // SAFETY: The lock is held.
        unsafe { gather.defer(&self.deferred) };
    }

    /// Whether no member can be using any of the ranges now.
    fn refresh_unmapped(&self, ranges: &[Range], counter: &AtomicU64) -> bool {
        let mut forgotten = true;
        let guard = rcu::read_lock();
        for member in self.members.iter(&guard) {
            if let Err(refusal) = member.refresh_all(ranges, counter) {
                // A hypervisor that has no resources has looked at the range all the
                // same, as far as anybody knows.
                if refusal != Refusal::Resources {
                    member.log_refused_flush(refusal);
                }
                forgotten = false;
            }
        }
        forgotten
    }
}

impl Drop for Paging {
    /// The core frees a domain although functions are attached when it could not
    /// attach them to anything else. They are blocked, which cannot fail.
    fn drop(&mut self) {
        while let Some(function) = self.space.members.first() {
            pr_warn!(
                "function {:08x}: its domain is freed, and it is blocked\n",
                function.zdev().fid()
            );
            function.block_from(&self.space);
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Space {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Nobody else knows the space any more, and no function has its
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

/// What a protection allows. The format cannot refuse reads, so a mapping to be
/// written only can be read too.
#[inline]
pub(crate) fn access(prot: Prot) -> Access {
    Access::denying_writes(prot.denies_writes())
}
