// SPDX-License-Identifier: GPL-2.0

//! What a table maps, merged into ranges: the order and the arithmetic of a dump.
//!
//! A dump reads one entry after the other, and remembers only its position. So it can
//! continue over any number of walks, even if the table changes in between. Each range was
//! present when the dump read it. A range that changes during the dump may appear with
//! parts from before and after the change.
//!
//! This file is pure: it does not know who reads the dump.

use super::{
    Access,
    Iova,
    Translation, //
};

/// IOVAs that follow each other, mapped to physical addresses that follow each
/// other, by pages of one size, with the same access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// The first IOVA.
    pub(crate) iova: u64,
    /// The last IOVA (inclusive).
    pub(crate) last: u64,
    /// The physical address of the first IOVA.
    pub(crate) phys: u64,
    /// The size of the pages, in bytes.
    pub(crate) page_size: u64,
    /// What devices may do.
    pub(crate) access: Access,
}

impl Run {
    /// Merges `next` into this range if it continues it.
    fn join(&mut self, next: &Run) -> bool {
        let goes_on = self.last.wrapping_add(1) == next.iova
            && self.phys.wrapping_add(next.iova.wrapping_sub(self.iova)) == next.phys
            && self.page_size == next.page_size
            && self.access == next.access;
        if goes_on {
            self.last = next.last;
        }
        goes_on
    }
}

/// The result of a step of a dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// A range that is complete.
    Run(Run),
    /// The budget of entries is used up, and no range is complete yet.
    Pause,
    /// The dump is complete.
    End,
}

/// The state of a dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dump {
    /// The next IOVA to read; `None` after the last one.
    at: Option<u64>,
    /// The part found so far of a range that may continue.
    run: Option<Run>,
}

impl Dump {
    /// At the first IOVA.
    pub(crate) const fn new() -> Self {
        Dump {
            at: Some(0),
            run: None,
        }
    }

    /// Continues to the end of a range, but reads at most `budget` entries. `find` reads the
    /// entry of an IOVA as [`Walk::find`] does; it may belong to another walk each time.
    ///
    /// [`Walk::find`]: super::walk::Walk::find
    pub(crate) fn step(
        &mut self,
        budget: usize,
        find: impl Fn(Iova) -> Option<Result<Translation, u64>>,
    ) -> Step {
        for _ in 0..budget {
            let Some((at, found)) = self.at.and_then(|at| Some((at, find(Iova(at))?))) else {
                self.at = None;
                return self.run.take().map_or(Step::End, Step::Run);
            };
            let done = match found {
                Ok(found) => self.mapped(at, found),
                Err(span) => self.empty(at, span),
            };
            if let Some(run) = done {
                return Step::Run(run);
            }
        }
        Step::Pause
    }

    /// Where the entry at `at` ends (inclusive), which spans `span` bytes; the
    /// dump goes on behind it. (`at` need not be where the entry begins: the table
    /// may have changed since the entry before was looked at.)
    fn pass(&mut self, at: u64, span: u64) -> u64 {
        let last = at | (span - 1);
        self.at = last.checked_add(1);
        last
    }

    fn empty(&mut self, at: u64, span: u64) -> Option<Run> {
        self.pass(at, span);
        self.run.take()
    }

    fn mapped(&mut self, at: u64, found: Translation) -> Option<Run> {
        let next = Run {
            iova: at,
            last: self.pass(at, found.page_size),
            phys: found.phys.0,
            page_size: found.page_size,
            access: found.access,
        };
        if self.run.as_mut().is_some_and(|run| run.join(&next)) {
            return None;
        }
        self.run.replace(next)
    }
}
