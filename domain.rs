// SPDX-License-Identifier: GPL-2.0

//! An address space: its table, the functions attached to it, and the flushes
//! that keep them in step.
//!
//! # No flush is missed, none hits a function that is not registered
//!
//! A map or an unmap stores entries, then runs a full barrier, then refreshes
//! every member that it sees and that is *live*. An attach makes the function a
//! member, then runs a full barrier, then registers the table and refreshes the
//! whole window (`function.rs`). Whichever barrier comes first: either the
//! flush sees the member, or the refresh of the attach sees the entries.
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
//! invalid handle. Flushes that may have seen it live are waited for (RCU) before
//! it can be enabled again. It becomes live again after the empty table was
//! registered, then comes a full barrier, then the table that is attached and a
//! refresh of the whole window: again Dekker's pattern.
//!
//! # Locks
//!
//! The core's group mutex or the subsystem's state lock, then a function's
//! mutex, then the domain's attach lock. Flushes take none of these; they run
//! in any context, under RCU. Full flushes take turns under the flush lock, so
//! that none returns before what another took is refreshed: the flush queue
//! frees IOVAs when one returns.

use core::sync::atomic::{
    AtomicU64,
    Ordering, //
};

use kernel::{
    bindings,
    new_mutex,
    prelude::*,
    static_lock_class,
    sync::{
        rcu,
        Arc,
        Mutex, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use crate::{
    aperture::Range,
    debugfs::Entry,
    dma_table::{
        Access,
        Depth,
        DmaTable,
        Iova,
        MapError,
        Mapping,
        Phys,
        Translation,
        FRAME_SHIFT,
        FRAME_SIZE,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    dump::{Dump, Step},
    function::Function,
    iommu::{self, Gather, Gfp, Prot},
    irqlock::IrqLock,
    members::Members,
    memory::{Retired, TablePages},
    pending::Pending,
    seen,
    trace,
    zpci::{Counters, Designation, Refusal}, //
};

/// How many entries a dump looks at in one visit of a table. Unmaps give no tables
/// back meanwhile, so it is to be short: some tens of microseconds.
const STRETCH: usize = 1024;

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
#[pin_data]
pub(crate) struct Space {
    /// The number by which it is traced and shown, from 1 on.
    number: u64,
    page_sizes: u64,
    table: DmaTable<TablePages>,
    members: Members<Function>,
    pending: Pending,
    #[pin]
    flush: IrqLock<()>,
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
    pub(crate) fn for_function(function: &Function, page_sizes: u64) -> Result<Pin<KBox<Self>>> {
        let last = function.window().last();
        let depth = Depth::for_reach(last);
        let space = Arc::pin_init(Space::new(depth, last, page_sizes), GFP_KERNEL)?;
        let paging = Paging {
            _shown: seen::show_domain(&space),
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
        let frames = page_size == FRAME_SIZE;
        let shift = if frames { FRAME_SHIFT } else { PAGE_SHIFT };
        let known = if frames {
            self.page_sizes() & FRAME_SIZE != 0
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
            frames,
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
    pub(crate) fn admit(&self, function: &Function) -> Result {
        let space = self.space();
        let _attach = space.attach.lock();
        let depth = space.depth_with(function)?;
        space.widen(depth)?;
        // The core reads the aperture at any time, so the table comes first.
        self.widen_aperture(depth.reach());
        // SAFETY: A function leaves before it goes, and waits for a grace
        // period then. The attach lock is held.
        unsafe { space.members.join(function) }
    }
}

impl Space {
    fn new(depth: Depth, last: u64, page_sizes: u64) -> impl PinInit<Self, Error> {
        static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);

        let number = LAST_NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
        let pages = TablePages::of_domain(number);
        try_pin_init!(Self {
            number,
            page_sizes,
            table: DmaTable::new(pages, depth, Gfp::KERNEL_ACCOUNT, Into::into)?,
            members: Members::new(),
            pending: Pending::new(last),
            flush <- IrqLock::new((), c"s390_iommu::flush", static_lock_class!()),
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
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn dump(&self, dump: &mut Dump) -> Step {
        let visit = self.table.visit(|| fsleep(Delta::from_micros(10)));
        dump.step(STRETCH, |iova| visit.find(iova))
    }

    /// How deep the table has to be with `function` among the members.
    fn depth_with(&self, function: &Function) -> Result<Depth> {
        let needed = Depth::for_reach(function.window().last());
        let depth = core::cmp::max(needed, self.table.root().depth);
        let guard = rcu::read_lock();
        let served = |member: &Function| member.deepest() >= depth;
        if served(function) && self.members.iter(&guard).all(served) {
            Ok(depth)
        } else {
            Err(EINVAL)
        }
    }

    /// Ends a membership.
    pub(crate) fn dismiss(&self, function: &Function) {
        let _attach = self.attach.lock();
        self.members.leave(function);
    }

    /// What the machine is told to use this table.
    pub(crate) fn designation(&self) -> Designation {
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
        let mut retired = Retired {
            gather,
            pages: self.table.memory(),
        };
        // SAFETY: The caller's promise.
        let bytes = unsafe { self.table.unmap(Iova(iova), size, &mut retired) };
        if bytes != 0 {
            gather.add(iova, bytes);
            self.pending
                .mark(iova, iova.wrapping_add(bytes).wrapping_sub(1));
            self.counters
                .unmapped_pages
                .fetch_add(bytes >> PAGE_SHIFT, Ordering::Relaxed);
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

    /// Whether anybody has to be told of what was stored. A full barrier between
    /// the stores and what the answer leads to.
    #[inline]
    pub(crate) fn is_seen(&self) -> bool {
        !self.members.nobody_sees_stores()
    }

    /// Makes members see what was mapped, after [`Space::is_seen`].
    ///
    /// # Errors
    ///
    /// The first error of a member that is neither gone nor in the error state.
    pub(crate) fn sync_map(&self, iova: u64, size: u64) -> Result {
        self.refresh_mapped(Range::sized(iova, size).ok_or(EINVAL)?)
    }

    fn refresh_mapped(&self, range: Range) -> Result {
        let mut result = Ok(());
        let guard = rcu::read_lock();
        for member in self.members.iter(&guard) {
            if member.needs_refresh_to_map() {
                let refreshed = member.refresh_or_all(range, &self.counters.sync_map_rpcits);
                result = result.and(refreshed);
            }
        }
        result.map_err(Error::from)
    }

    /// Makes members forget what is in the gather, then frees the tables that
    /// it holds; after [`Space::is_seen`].
    pub(crate) fn sync(&self, gather: &mut Gather) {
        let (start, last) = gather.range();
        let forgotten = match Range::new(start, last) {
            Some(range) => self.refresh_unmapped(range, &self.counters.sync_rpcits),
            None => true,
        };
        // Tables that a member may still be walking are rather lost than used.
        if gather.holds_pages() && forgotten {
            // SAFETY: Every member forgot the range, or cannot do DMA.
            unsafe { gather.free_flushed() }
        }
    }

    /// Makes members forget all that was unmapped since the last time.
    pub(crate) fn flush_all(&self) {
        let _turn = self.flush.lock();
        self.pending.take(|range| {
            // Asked anew for each: a member may have come, and seen the entry,
            // before the mark that was taken.
            if self.is_seen() {
                self.refresh_unmapped(range, &self.counters.global_rpcits);
            }
        });
    }

    /// Whether no member can be using any of the range now.
    fn refresh_unmapped(&self, range: Range, counter: &AtomicU64) -> bool {
        let mut forgotten = true;
        let guard = rcu::read_lock();
        for member in self.members.iter(&guard) {
            if let Err(refusal) = member.refresh_or_all(range, counter) {
                member.complain(refusal);
                forgotten = false;
            }
        }
        forgotten
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

/// Whether a refusal leaves a member that goes on translating with what it
/// should have forgotten.
pub(crate) fn matters(result: Result<(), Refusal>) -> Result<(), Refusal> {
    match result {
        Err(refusal) if refusal.is_harmless() => Ok(()),
        result => result,
    }
}
