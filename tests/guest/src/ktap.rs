// SPDX-License-Identifier: GPL-2.0
//! Test results in KTAP (Kernel Test Anything Protocol).

use std::fmt;
use std::time::Instant;

use anyhow::{Error, Result};

use crate::console::say;

/// The error of a test that this machine cannot run.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The error of a test that fails for a known reason.
#[derive(Debug)]
pub struct KnownFailure(pub String);

impl fmt::Display for KnownFailure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KnownFailure {}

/// Ends a test as skipped.
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::ktap::Skip(format!($($arg)*)).into()) };
}
pub(crate) use skip;

/// Numbers and prints the test points of one boot.
#[derive(Default)]
pub struct Report {
    points: usize,
    failed: usize,
    skipped: usize,
    known: usize,
}

/// A suite; its name is the prefix of all its test points.
pub struct Suite<'a> {
    report: &'a mut Report,
    name: &'static str,
}

impl Report {
    /// Prints the version line.
    pub fn start() -> Self {
        say!("KTAP version 1");
        Self::default()
    }

    pub fn suite(&mut self, name: &'static str) -> Suite<'_> {
        Suite { report: self, name }
    }

    /// Prints the plan and the totals, and returns whether the run passed. The plan comes
    /// last because modules add their own test points.
    pub fn finish(self) -> bool {
        say!("1..{}", self.points);
        let (failed, skipped, known) = (self.failed, self.skipped, self.known);
        let passed = self.points - failed - skipped - known;
        say!(
            "# Totals: pass:{passed} fail:{failed} xfail:{known} skip:{skipped} total:{}",
            self.points
        );
        failed == 0 && passed > 0
    }

    fn point(&mut self, name: &str, result: Result<()>) {
        self.points += 1;
        let number = self.points;
        let error = match result {
            Ok(()) => return say!("ok {number} {name}"),
            Err(error) => error,
        };
        if let Some(why) = error.downcast_ref::<Skip>() {
            self.skipped += 1;
            return say!("ok {number} {name} # SKIP {why}");
        }
        if let Some(why) = error.downcast_ref::<KnownFailure>() {
            self.known += 1;
            return say!("ok {number} {name} # XFAIL {why}");
        }
        self.failed += 1;
        say!("not ok {number} {name} # {}", one_line(&error));
    }
}

impl Suite<'_> {
    /// Runs `test` as one test point.
    pub fn test(&mut self, what: &str, test: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        let result = test();
        let seconds = start.elapsed().as_secs_f64();
        // Report slow tests.
        if seconds > 2.0 {
            say!("# {}: {what}: took {seconds:.1} s", self.name);
        }
        self.result(what, result);
    }

    /// Reports the result of a test that has already run.
    pub fn result(&mut self, what: &str, result: Result<()>) {
        let name = format!("{}: {what}", self.name);
        self.report.point(&name, result);
    }
}

/// The error and its causes in one line, without `#`, which would start a directive.
fn one_line(error: &Error) -> String {
    format!("{error:#}").replace('\n', "; ").replace('#', "no. ")
}
