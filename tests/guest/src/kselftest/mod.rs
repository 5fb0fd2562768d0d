// SPDX-License-Identifier: GPL-2.0
//! Mode "kselftest": programs in the kernel's selftest style, those of the
//! kernel and our own, with every result of theirs as one of ours.
//!
//! A program's skip must be one that is expected, with its reason: what is not
//! run has not passed.

mod devices;
mod iommufd;
mod own;
mod program;
mod run;
mod vfio;

use anyhow::{Result, bail};

use crate::cmdline::Cmdline;
use crate::ktap::{Report, Suite};
use crate::suites::dmesg;

/// A suite: its name and what runs it.
type Entry = (&'static str, fn(&mut Suite, &Cmdline) -> Result<()>);

const SUITES: [Entry; 3] =
    [("vfio", vfio::run), ("s390_iommu", own::run), ("iommufd", iommufd::run)];

/// Runs the suites that the command line names, or all, then looks at the log.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let names = cmdline.suites().unwrap_or_else(|| SUITES.map(|(name, _)| name).to_vec());
    let mut report = Report::start();
    for wanted in names {
        let Some((name, suite)) = SUITES.iter().find(|(name, _)| *name == wanted) else {
            bail!("guest.suite: there is no kselftest suite \"{wanted}\"");
        };
        let mut points = report.suite(name);
        if let Err(error) = suite(&mut points, cmdline) {
            points.result("the suite can run", Err(error));
        }
    }
    dmesg::run(&mut report.suite("dmesg"));
    Ok(report.finish())
}
