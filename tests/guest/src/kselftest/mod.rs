// SPDX-License-Identifier: GPL-2.0
//! Mode "kselftest": runs the kernel's selftests and our own in the same style, and
//! reports each of their results as a test point.
//!
//! A skip must be on a list of expected skips, and its reason must hold. Any other skip
//! is a failure.

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

/// The name of a suite, and the function that runs it.
type Entry = (&'static str, fn(&mut Suite, &Cmdline) -> Result<()>);

const SUITES: [Entry; 3] =
    [("vfio", vfio::run), ("s390_iommu", own::run), ("iommufd", iommufd::run)];

/// Runs the suites that the command line names, or all, then checks the log.
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
