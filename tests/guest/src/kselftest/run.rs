// SPDX-License-Identifier: GPL-2.0
//! Runs a program on a device and evaluates its results.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};

use super::devices::Devices;
use super::program::{self, End, Point};
use crate::cmdline::Cmdline;
use crate::kmsg::Tail;
use crate::ktap::{KnownFailure, Suite, skip};

/// Timeout of a program. Usually it needs a fraction of this; a busy host needs more.
const LIMIT: Duration = Duration::from_secs(1800);
/// Timeout until an error event is reported
const LATE: Duration = Duration::from_secs(60);

/// An expected skip.
pub struct Expected {
    pub program: &'static str,
    /// Part of the test's name.
    pub test: &'static str,
    /// The kinds of devices; empty means all.
    pub only: &'static [&'static str],
    /// Part of the program's reason.
    pub says: &'static str,
    /// What the machine lacks.
    pub why: &'static str,
    /// Whether the machine lacks it.
    pub is_lacking: fn(&Devices, &str) -> Result<bool>,
}

/// Known failures of the kernel, which do not depend on the driver.
pub struct Known {
    pub program: &'static str,
    /// Parts of the tests' names.
    pub tests: &'static [&'static str],
    pub why: &'static str,
}

/// A program and the device that it runs on.
pub struct Run<'a> {
    /// The program's directory.
    pub folder: &'a str,
    pub program: &'a str,
    /// The kind of the device, or another name for what the program runs on.
    pub on: &'a str,
    pub devices: &'a Devices,
    pub expected: &'a [Expected],
    pub known: &'a [Known],
}

impl Run<'_> {
    /// Runs the program; `refused` is how many accesses the IOMMU must refuse.
    pub fn run(&self, suite: &mut Suite, arguments: &[&str], refused: usize) {
        let label = format!("{}: {}", self.on, self.program);
        let tail = Tail::open();
        let output = program::run(&format!("{}/{}", self.folder, self.program), arguments, LIMIT);
        let output = match output {
            Ok(output) => output,
            Err(error) => return suite.result(&label, Err(error)),
        };
        if let Some(why) = &output.skipped {
            return suite.result(&label, self.judge_skip("", why));
        }
        for point in &output.points {
            suite.result(&format!("{label}: {}", point.name), self.judge(point));
        }
        // The tests accept any result of the device, so without this check they would
        // also pass with a driver that lets the accesses through.
        suite.test(&format!("{label}: refused accesses"), || check_refused(tail?, refused));
    }

    fn judge(&self, point: &Point) -> Result<()> {
        let is_it = |k: &&Known| {
            k.program == self.program && k.tests.iter().any(|part| point.name.contains(part))
        };
        let known = self.known.iter().find(is_it);
        match (point.end, known) {
            (End::Passed, None) => Ok(()),
            (End::Passed, Some(_)) => Err(anyhow!("listed as a known failure, but passes")),
            (End::Failed, None) => Err(anyhow!("{}", point.why)),
            (End::Failed, Some(known)) => Err(KnownFailure(known.why.to_owned()).into()),
            (End::Skipped, _) => self.judge_skip(&point.name, &point.why),
        }
    }

    /// A skip that is not expected, or whose reason does not hold, is a failure.
    fn judge_skip(&self, test: &str, says: &str) -> Result<()> {
        let explains = |expected: &&Expected| {
            expected.program == self.program
                && test.contains(expected.test)
                && is_for(expected.only, self.on)
                && says.contains(expected.says)
        };
        let Some(expected) = self.expected.iter().find(explains) else {
            bail!("unexpected skip: {says}");
        };
        ensure!(
            (expected.is_lacking)(self.devices, self.on)?,
            "skipped, but the reason does not hold ({}): {says}",
            expected.why
        );
        skip!("{}", expected.why)
    }
}

/// Checks how many error events the kernel has reported. A kernel thread reports them,
/// so wait.
fn check_refused(mut tail: Tail, refused: usize) -> Result<()> {
    let end = Instant::now() + LATE;
    let mut events = 0;
    loop {
        let messages = tail.read()?;
        events += messages.iter().filter(|message| is_error_event(message)).count();
        if events >= refused || Instant::now() > end {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(events == refused, "{events} error events of the function, expected {refused}");
    Ok(())
}

/// Whether the PCI code reports that a function is in the error state.
fn is_error_event(message: &str) -> bool {
    message.starts_with("zpci:") && message.contains("reports an error for PCI function")
}

/// Whether a list contains a kind of device; an empty list means all kinds.
pub fn is_for(only: &[&str], kind: &str) -> bool {
    only.is_empty() || only.contains(&kind)
}

/// Whether the command line selects this name: the argument `key` lists parts of names.
pub fn is_chosen(cmdline: &Cmdline, key: &str, name: &str) -> bool {
    let wanted = cmdline.value(key);
    wanted.is_none_or(|list| list.split(',').any(|part| name.contains(part)))
}
