// SPDX-License-Identifier: GPL-2.0
//! Mode "passthrough": passes drives through to L2, takes them back, and verifies what
//! L2 wrote.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::qemu::{Qemu, Stopped};
use super::{Drive, MOVED};
use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::counters::Counters;
use crate::function::Function;
use crate::kmsg;
use crate::ktap::{Report, Suite};
use crate::suites::dmesg;
use crate::suites::modules::QUESTION;

/// The driver of a function that is passed through
const VFIO: &str = "vfio-pci";

/// One boot of L2.
struct Round {
    name: &'static str,
    iommufd: bool,
    drives: usize,
    /// The size of L2's requests.
    request: usize,
    /// Arguments for L2's kernel command line.
    args: &'static str,
    /// L2 does DMA to unmapped memory, so that QEMU stops it.
    is_stopped: bool,
}

/// Defaults of a round
const USUAL: Round =
    Round { name: "", iommufd: false, drives: 1, request: 128 * KIB, args: "", is_stopped: false };

const ROUNDS: [Round; 8] = [
    Round {
        name: "legacy",
        args: "s390_iommu.large_pages=1 guest.large=1 guest.suite=remap,dma",
        ..USUAL
    },
    Round {
        name: "legacy-small",
        args: "s390_iommu.large_pages=0 guest.large=0 guest.suite=remap iommu.strict=1",
        ..USUAL
    },
    Round {
        name: "iommufd",
        iommufd: true,
        // L2 flushes every unmap, so L1 unmaps every page immediately.
        args: "s390_iommu.large_pages=1 guest.large=1 guest.suite=remap,dma iommu.strict=1",
        ..USUAL
    },
    Round {
        name: "iommufd-small",
        iommufd: true,
        args: "s390_iommu.large_pages=0 guest.large=0 guest.suite=remap",
        ..USUAL
    },
    Round { name: "two", iommufd: true, drives: 2, ..USUAL },
    // Each unmap covers a whole page table, which a hypervisor may overlook.
    Round {
        name: "requests",
        request: MIB,
        args: "s390_iommu.large_pages=0 iommu.strict=1",
        ..USUAL
    },
    Round {
        name: "stopped",
        args: "guest.suite=remap guest.only=1M iommu.strict=1",
        is_stopped: true,
        ..USUAL
    },
    Round { name: IDENTITY, args: "iommu.passthrough=1 guest.type=identity", ..USUAL },
];

/// A round without translation in L2: QEMU maps L2's memory once. Debian's QEMU does not
/// offer this for functions of an emulated host, the one of `make machine` does.
const IDENTITY: &str = "identity";

/// Arguments of L1 that are forwarded to L2
const FORWARDED: [&str; 3] = ["guest.suite", "guest.only", "guest.inner"];

/// Runs the rounds that `guest.rounds=` names, or all that L1's QEMU supports.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let names: Option<Vec<_>> = cmdline.value("guest.rounds").map(|v| v.split(',').collect());
    if let Some(unknown) = names.iter().flatten().find(|n| ROUNDS.iter().all(|r| r.name != **n)) {
        let known = ROUNDS.map(|round| round.name).join(", ");
        bail!("guest.rounds: there is no round \"{unknown}\"; there are {known}");
    }
    let limit = Duration::from_secs(cmdline.number("guest.limit")?);
    let forwarded: String = FORWARDED
        .into_iter()
        .filter_map(|key| Some(format!(" {key}={}", cmdline.value(key)?)))
        .collect();
    let has_identity = cmdline.value("guest.machine") == Some("1");
    let mut report = Report::start();
    let mut stopped = 0;
    for (number, round) in ROUNDS.iter().enumerate() {
        let is_usual = round.name != IDENTITY || has_identity;
        if !names.as_ref().map_or(is_usual, |names| names.contains(&round.name)) {
            continue;
        }
        stopped += usize::from(round.is_stopped);
        let mut suite = report.suite(round.name);
        if let Err(error) = round.run(&mut suite, number as u64, &forwarded, limit) {
            suite.result("the round can run", Err(error));
        }
    }
    let mut suite = report.suite("L1");
    suite.test("no function reported an error but where L2 was stopped", || events(stopped));
    dmesg::run(&mut report.suite("dmesg"));
    Ok(report.finish())
}

impl Round {
    fn run(&self, suite: &mut Suite, number: u64, forwarded: &str, limit: Duration) -> Result<()> {
        let mut functions = Function::of_driver("nvme");
        ensure!(functions.len() >= self.drives, "{} drives are too few", functions.len());
        functions.truncate(self.drives);
        let drives =
            functions.into_iter().map(|function| Drive::of(function, number, self.request));
        let drives: Vec<Drive> = drives.collect::<Result<_>>()?;
        for drive in &drives {
            let name = format!("drive {}: L1 writes", drive.serial);
            suite.test(&name, || write(drive, &drive.before()));
        }
        let args = format!(
            "guest.drives={} guest.round={number} guest.request={} guest.calm={} {}{forwarded}",
            self.drives,
            self.request,
            u8::from(!self.is_stopped),
            self.args
        );
        let given = give(&drives).and_then(|()| self.guest(suite, &drives, &args, limit));
        if self.is_stopped {
            suite.result("an access after an unmap stopped L2", expect_stopped(given));
        } else {
            suite.result("L2 came to its end by itself", given);
        }
        take_back(&drives)?;
        for drive in &drives {
            let name = |what: &str| format!("drive {}: {what}", drive.serial);
            suite.test(&name("L1 reads what L2 wrote"), || read_all(drive));
            suite.test(&name("L1 writes again"), || write(drive, &drive.after()));
        }
        Ok(())
    }

    /// Boots L2 and reports its results as test points.
    fn guest(
        &self,
        suite: &mut Suite,
        drives: &[Drive],
        args: &str,
        limit: Duration,
    ) -> Result<()> {
        let addresses: Vec<_> = drives.iter().map(|d| d.function.address.as_str()).collect();
        // QEMU's default depends on what L1 knows about the function's group.
        let zpci = if self.name == IDENTITY { ",relaxed-translation=on" } else { "" };
        let mut qemu = Qemu::start(&addresses, self.iommufd, zpci, args, limit)?;
        let mut heard = Heard::default();
        while let Some(line) = qemu.line()? {
            // Search the whole line: it may begin with part of a kernel message.
            if let Some((_, live)) = line.split_once(MOVED) {
                look_at_domains(suite, drives);
                if self.args.contains("strict=1") {
                    suite.test("L1 has mapped what L2 has, no more", || expect_live(drives, live));
                }
                qemu.answer("")?;
            } else if line.contains(QUESTION) {
                let counters = Counters::read(&drives[0].function)?;
                qemu.answer(&(counters.mapped - counters.unmapped).to_string())?;
            } else if line.starts_with("bytes: ") {
                // For the host, which checks the contents of the drive's file itself.
                say!("{line}");
            }
            heard.line(suite, &line);
        }
        let complaints = qemu.complaints();
        let time = qemu.wait()?;
        heard.judge()?;
        ensure!(complaints == 0, "L1's QEMU printed {complaints} errors");
        say!("# {}: L2 took {} s", self.name, time.as_secs());
        Ok(())
    }
}

/// Checks that the pages that L2 maps are mapped in L1's domains.
fn look_at_domains(suite: &mut Suite, drives: &[Drive]) {
    for drive in drives {
        let name = format!("drive {}: L2's pages are mapped in L1's domain", drive.serial);
        suite.test(&name, || {
            let counters = Counters::read(&drive.function)?;
            say!("# drive {}: L1's domain: {counters}", drive.serial);
            let pages: usize = drive.by_l2().iter().map(|t| t.bytes / 4096).sum();
            ensure!(counters.mapped >= pages as u64, "{counters}, L2 wrote {pages} pages");
            ensure!(counters.sync_map > 0, "no refresh after a map: {counters}");
            Ok(())
        });
    }
}

/// Checks that L1 has as many pages mapped as L2, so every unmap has reached L1.
fn expect_live(drives: &[Drive], live: &str) -> Result<()> {
    let live: u64 = live.trim().parse().context("how many pages L2 has mapped")?;
    let mut outside = 0;
    for drive in drives {
        let counters = Counters::read(&drive.function)?;
        outside += counters.mapped - counters.unmapped;
    }
    ensure!(live > 0 && live == outside, "{outside} pages are mapped in L1, {live} in L2");
    Ok(())
}

fn expect_stopped(given: Result<()>) -> Result<()> {
    match given {
        Err(error) if error.is::<Stopped>() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => bail!("L2 was not stopped"),
    }
}

/// What L2 has reported so far.
#[derive(Default)]
struct Heard {
    points: usize,
    plan: Option<usize>,
    status: Option<i32>,
}

impl Heard {
    fn line(&mut self, suite: &mut Suite, line: &str) {
        if let Some((what, result)) = point(line) {
            self.points += 1;
            suite.result(what, result);
        } else if let Some(count) = line.strip_prefix("1..") {
            self.plan = count.parse().ok();
        } else if let Some(status) = line.strip_prefix("guest: done status=") {
            self.status = status.parse().ok();
        }
    }

    fn judge(&self) -> Result<()> {
        let status = self.status.context("L2 printed no final status")?;
        let plan = self.plan.context("L2 printed no plan")?;
        ensure!(plan == self.points, "{plan} tests planned, {} reported", self.points);
        ensure!(status == 0, "L2 ended with status {status}");
        Ok(())
    }
}

/// Parses `ok 1 name` or `not ok 2 name # why`.
fn point(line: &str) -> Option<(&str, Result<()>)> {
    let numbered = |rest: &'_ str| rest.split(' ').next()?.parse::<usize>().ok();
    if let Some(rest) = line.strip_prefix("not ok ") {
        numbered(rest)?;
        let (what, why) = rest.split_once(' ')?.1.split_once(" # ")?;
        return Some((what, Err(anyhow!("{why}"))));
    }
    let rest = line.strip_prefix("ok ")?;
    numbered(rest)?;
    Some((rest.split_once(' ')?.1, Ok(())))
}

fn write(drive: &Drive, transfer: &Transfer) -> Result<()> {
    let outcome = transfer.verify(&drive.function.disk()?)?;
    drive.announce(transfer, outcome.written);
    Ok(())
}

fn read_all(drive: &Drive) -> Result<()> {
    let disk = drive.function.disk()?;
    drive.before().read(&disk)?;
    for transfer in drive.by_l2() {
        transfer.read(&disk)?;
    }
    Ok(())
}

fn give(drives: &[Drive]) -> Result<()> {
    drives.iter().try_for_each(|drive| change_driver(&drive.function, VFIO, VFIO))
}

fn take_back(drives: &[Drive]) -> Result<()> {
    drives.iter().try_for_each(|drive| change_driver(&drive.function, "", "nvme"))
}

/// Restricts a function to a driver (or to none), and checks which one is bound.
fn change_driver(function: &Function, only: &str, wanted: &str) -> Result<()> {
    function.unbind()?;
    function.set_override(only)?;
    function.probe()?;
    let driver = function.driver();
    ensure!(driver.as_deref() == Some(wanted), "{}: {driver:?}", function.address);
    Ok(())
}

/// Checks how many error events the PCI code has logged: DMA to an unmapped IOVA puts the
/// function into the error state.
fn events(wanted: usize) -> Result<()> {
    let messages = kmsg::messages()?;
    let events = messages.iter().filter(|m| m.contains("reports an error for PCI function"));
    let events: Vec<_> = events.collect();
    ensure!(events.len() == wanted, "{} error events, expected {wanted}: {events:?}", events.len());
    Ok(())
}
