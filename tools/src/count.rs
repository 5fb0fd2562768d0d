// SPDX-License-Identifier: GPL-2.0
//! How many passed, failed and were skipped.

use std::{fmt, ops::AddAssign};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Count {
    pub fn one(good: bool) -> Self {
        [good].into_iter().collect()
    }

    /// Ends a command with a line that readers of test results understand.
    pub fn finish(self) {
        println!("{self}");
        self.exit_if_bad();
    }

    /// For a command that has printed what failed. One that did nothing has failed.
    pub fn exit_if_bad(self) {
        if self.failed > 0 || self.passed == 0 {
            std::process::exit(1);
        }
    }
}

impl FromIterator<bool> for Count {
    fn from_iter<T: IntoIterator<Item = bool>>(results: T) -> Self {
        let mut count = Self::default();
        for good in results {
            count.passed += usize::from(good);
            count.failed += usize::from(!good);
        }
        count
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        match self.skipped {
            0 => Ok(()),
            skipped => write!(f, ", {skipped} skipped"),
        }
    }
}
