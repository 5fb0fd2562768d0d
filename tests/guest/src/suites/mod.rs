// SPDX-License-Identifier: GPL-2.0
//! Mode "test": suites of test points.

mod accounting;
mod boot;
mod counters;
pub mod dmesg;
mod elsewhere;
mod faults;
mod hardware;
mod hotplug;
mod kunit;
mod kvm;
mod lost;
mod memory;
mod module;
pub mod modules;
mod nic;
mod nvme;
mod observability;
mod pressure;
mod root;
mod samples;
mod vfs;
mod windows;

use anyhow::{Result, bail};

use crate::cmdline::Cmdline;
use crate::ktap::{Report, Suite};
use crate::torture::{self, leaks::Leaks};

/// The name of a suite, and the function that runs it.
type Entry = (&'static str, fn(&mut Suite, &Cmdline) -> Result<()>);

/// The suites that run by default, in this order
const SUITES: &[Entry] = &[
    ("boot", boot::run),
    ("nvme", nvme::run),
    ("nic", nic::run),
    ("counters", counters::run),
    // Before the suites that fill the log
    ("observability", observability::run),
    ("api", |suite, cmdline| modules::run(suite, cmdline, "iommu_api")),
    ("dma", |suite, cmdline| modules::run(suite, cmdline, "dma")),
    ("remap", |suite, cmdline| modules::run(suite, cmdline, "remap")),
    ("attach", |suite, cmdline| modules::run(suite, cmdline, "attach")),
    ("transitions", |suite, cmdline| modules::run(suite, cmdline, "transitions")),
    ("refuse", |suite, cmdline| modules::run(suite, cmdline, "refuse")),
    ("flush", |suite, cmdline| modules::run(suite, cmdline, "flush")),
    ("fallback", |suite, cmdline| modules::run(suite, cmdline, "fallback")),
    ("pressure", pressure::run),
    ("stress", |suite, cmdline| modules::run(suite, cmdline, "stress")),
    ("accounting", accounting::run),
    ("aperture", |suite, cmdline| modules::run(suite, cmdline, "aperture")),
    ("reenable", |suite, cmdline| modules::run(suite, cmdline, "reenable")),
    (kvm::NAME, kvm::run),
    ("hotplug", hotplug::run),
    ("samples", samples::run),
    ("kunit", kunit::run),
];

/// Suites that need a special machine and run only if they are named
const SPECIAL: [Entry; 22] = [
    ("faults", faults::run),
    ("lost", lost::run),
    ("gapless", |suite, cmdline| modules::run(suite, cmdline, "gapless")),
    ("windows", windows::run),
    ("vfs", vfs::run),
    ("memory", memory::run),
    ("hardware", hardware::run),
    ("module", module::run),
    ("root", root::run),
    ("absent", elsewhere::absent),
    ("beside", elsewhere::beside),
    ("storms", torture::storms::run),
    ("killed", torture::killed::run),
    ("refusals", torture::refusals::run),
    ("processors", torture::processors::run),
    ("failing", torture::failing),
    ("allocations", torture::allocations::run),
    ("oracle", torture::oracle),
    ("hostile", torture::hostile::run),
    ("reloads", torture::reloads::run),
    ("kexec", torture::kexec::run),
    ("crash", torture::kexec::crash),
];

/// Runs the suites that the command line names, or the default ones, then checks the log.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let chosen = choose(cmdline)?;
    let leaks = cmdline.value("guest.leaks").map(|_| Leaks::before(cmdline)).transpose()?;
    let mut report = Report::start();
    for (name, suite) in chosen {
        let mut points = report.suite(name);
        if let Err(error) = suite(&mut points, cmdline) {
            points.result("the suite can run", Err(error));
        }
    }
    if let Some(leaks) = leaks {
        leaks.run(&mut report.suite("leaks"));
    }
    // Always last: a run with a splat fails.
    dmesg::run(&mut report.suite("dmesg"));
    Ok(report.finish())
}

fn choose(cmdline: &Cmdline) -> Result<Vec<Entry>> {
    let Some(names) = cmdline.suites() else {
        let mut all = SUITES.to_vec();
        // Skip KVM silently if the kernel does not have it.
        all.retain(|(name, _)| *name != kvm::NAME || kvm::is_there());
        return Ok(all);
    };
    let mut chosen = Vec::new();
    for name in names.into_iter().filter(|name| *name != "dmesg") {
        match SUITES.iter().chain(&SPECIAL).find(|(known, _)| *known == name) {
            Some(entry) => chosen.push(*entry),
            None => bail!("guest.suite: there is no suite \"{name}\""),
        }
    }
    Ok(chosen)
}
