// SPDX-License-Identifier: GPL-2.0

//! The walk lock: keeps tables in the tree while a reader that owns no range walks it.

use super::table::Cell;

/// Keeps tables in the tree while there are readers (see the head of `dma_table.rs`). One
/// word counts, from its lowest bit: unmaps that may unlink, unmaps that may not because
/// there is a reader, and readers. A map that replaces a table counts as an unmap.
pub(crate) struct WalkLock<C: Cell>(pub(crate) C);

impl<C: Cell> WalkLock<C> {
    const UNLINKER: u64 = 1;
    const BESIDE: u64 = 1 << 16;
    const READER: u64 = 1 << 32;

    /// Starts an unmap, and returns whether it may unlink tables: it may not while there is
    /// a reader. The unmap looks for readers before it counts itself, so later unmaps do
    /// not keep a reader waiting.
    #[inline]
    pub(crate) fn unmap(&self) -> (WalkGuard<'_, C>, bool) {
        if self.0.load_acquire() < Self::READER {
            let before = self.0.change(Self::UNLINKER);
            let guard = self.guard(Self::UNLINKER);
            if before < Self::READER {
                return (guard, true);
            }
        }
        self.0.change(Self::BESIDE);
        (self.guard(Self::BESIDE), false)
    }

    /// Starts a reader, after the last unmap that may unlink. An error of `wait` ends the
    /// wait.
    pub(crate) fn read<E>(
        &self,
        wait: impl FnMut() -> Result<(), E>,
    ) -> Result<WalkGuard<'_, C>, E> {
        self.enter(Self::BESIDE, wait)
    }

    /// Waits until all unmaps that began before have ended.
    pub(crate) fn wait_for_unmaps<E>(&self, wait: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        self.enter(Self::READER, wait).map(|_| ())
    }

    /// Whether an unmap is under way beside a reader.
    pub(crate) fn is_unmapped_beside(&self) -> bool {
        self.0.load_acquire() % Self::READER >= Self::BESIDE
    }

    /// Counts a reader, and waits until all counts below `limit` are 0.
    fn enter<E>(
        &self,
        limit: u64,
        mut wait: impl FnMut() -> Result<(), E>,
    ) -> Result<WalkGuard<'_, C>, E> {
        let mut now = self.0.change(Self::READER).wrapping_add(Self::READER);
        let guard = self.guard(Self::READER);
        while now % limit != 0 {
            wait()?;
            now = self.0.load_acquire();
        }
        Ok(guard)
    }

    fn guard(&self, who: u64) -> WalkGuard<'_, C> {
        WalkGuard { lock: self, who }
    }
}

/// A holder of the walk lock.
pub(crate) struct WalkGuard<'t, C: Cell> {
    lock: &'t WalkLock<C>,
    who: u64,
}

impl<C: Cell> Drop for WalkGuard<'_, C> {
    #[inline]
    fn drop(&mut self) {
        self.lock.0.change(self.who.wrapping_neg());
    }
}
