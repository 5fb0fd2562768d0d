// SPDX-License-Identifier: GPL-2.0
//! Runs a program on a device and judges what it reports.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};

use super::devices::Devices;
use super::program::{self, End, Point};
use crate::cmdline::Cmdline;
use crate::kmsg::Tail;
use crate::ktap::{KnownFailure, Suite, skip};

/// A program takes a fraction of this, on a machine that has to share.
const LIMIT: Duration = Duration::from_secs(1800);
/// And an event a fraction of this to be reported.
const LATE: Duration = Duration::from_secs(60);

/// A skip that is expected.
pub struct Expected {
    pub program: &'static str,
    /// Part of the name of the test.
    pub test: &'static str,
    /// The kinds; none means each of them.
    pub only: &'static [&'static str],
    /// Part of what the program says.
    pub says: &'static str,
    /// What it is that the machine lacks.
    pub why: &'static str,
    /// Whether it does.
    pub is_lacking: fn(&Devices, &str) -> Result<bool>,
}

/// Failures that are on record: of the kernel's, whichever driver is in it.
pub struct Known {
    pub program: &'static str,
    /// Parts of the names of the tests.
    pub tests: &'static [&'static str],
    pub why: &'static str,
}

/// A program and what it is run on.
pub struct Run<'a> {
    /// The folder of the program.
    pub folder: &'a str,
    pub program: &'a str,
    /// What to call that which it is run on.
    pub on: &'a str,
    pub devices: &'a Devices,
    /// The skips that are expected.
    pub expected: &'a [Expected],
    /// The failures that are on record.
    pub known: &'a [Known],
}

impl Run<'_> {
    /// Runs it; `refused` is how many accesses the IOMMU must refuse.
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
        // A driver that let the access through would pass without this: the
        // tests take any answer of the device.
        suite.test(&format!("{label}: refused accesses"), || check_refused(tail?, refused));
    }

    fn judge(&self, point: &Point) -> Result<()> {
        let is_it = |k: &&Known| {
            k.program == self.program && k.tests.iter().any(|part| point.name.contains(part))
        };
        let known = self.known.iter().find(is_it);
        match (point.end, known) {
            (End::Passed, None) => Ok(()),
            (End::Passed, Some(_)) => Err(anyhow!("it is on record as failing, and passes")),
            (End::Failed, None) => Err(anyhow!("{}", point.why)),
            (End::Failed, Some(known)) => Err(KnownFailure(known.why.to_owned()).into()),
            (End::Skipped, _) => self.judge_skip(&point.name, &point.why),
        }
    }

    /// A skip that nothing explains is a failure.
    fn judge_skip(&self, test: &str, says: &str) -> Result<()> {
        let explains = |expected: &&Expected| {
            expected.program == self.program
                && test.contains(expected.test)
                && is_for(expected.only, self.on)
                && says.contains(expected.says)
        };
        let Some(expected) = self.expected.iter().find(explains) else {
            bail!("an unexpected skip: {says}");
        };
        ensure!(
            (expected.is_lacking)(self.devices, self.on)?,
            "a skip without its reason, {}: {says}",
            expected.why
        );
        skip!("{}", expected.why)
    }
}

/// A thread of the kernel's reports the events, when it gets to it.
fn check_refused(mut tail: Tail, refused: usize) -> Result<()> {
    let end = Instant::now() + LATE;
    let mut seen = 0;
    loop {
        let messages = tail.read()?;
        seen += messages.iter().filter(|message| is_error_event(message)).count();
        if seen >= refused || Instant::now() > end {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(seen == refused, "{seen} error events of the function, not {refused}");
    Ok(())
}

/// How the PCI code reports that a function is in the error state.
fn is_error_event(message: &str) -> bool {
    message.starts_with("zpci:") && message.contains("reports an error for PCI function")
}

/// Whether a list has a kind of device; an empty one has each.
pub fn is_for(only: &[&str], kind: &str) -> bool {
    only.is_empty() || only.contains(&kind)
}

/// Whether the command line wants something of this name: a word of it lists
/// parts of names.
pub fn is_chosen(cmdline: &Cmdline, key: &str, name: &str) -> bool {
    let wanted = cmdline.value(key);
    wanted.is_none_or(|list| list.split(',').any(|part| name.contains(part)))
}
