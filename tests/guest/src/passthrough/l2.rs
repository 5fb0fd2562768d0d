// SPDX-License-Identifier: GPL-2.0
//! Mode "l2": the nested guest, which tests the drives that L1 passes through.

use std::io::stdin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Drive, MOVED};
use crate::block::KIB;
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::counters::Counters;
use crate::function::Function;
use crate::kmsg;
use crate::ktap::{Report, Suite};
use crate::suites::modules::{self, ANSWER};
use crate::{module, sysfs};

/// The suites that can run on passed-through functions
const SUITES: [&str; 2] = ["remap", "dma"];

/// The largest request of the NVMe driver by default, with an IOMMU
const USUAL_MOST: usize = 128 * KIB;
/// The type of a group without translation
pub const IDENTITY: &str = "identity";

/// How long the drives may take to come up with nested emulation
const COME_UP: Duration = Duration::from_secs(300);

/// The results of a drive's thread: of reading what L1 wrote, and of writing.
type Found = (Result<()>, Result<()>);

/// Runs the tests of L2. Returns whether all of them passed.
pub fn run(cmdline: &Cmdline) -> Result<bool> {
    let mut report = Report::start();
    let mut suite = report.suite("L2");
    if let Err(error) = tests(&mut suite, cmdline) {
        suite.result("the tests can run", Err(error));
    }
    suites(&mut report, cmdline);
    report.suite("L2").test("the log is clean", clean_log);
    Ok(report.finish())
}

/// Runs the suites that the command line names, after the transfers.
fn suites(report: &mut Report, cmdline: &Cmdline) {
    // The suites ask L1 how many pages it has mapped. Forward the answers to the module.
    std::thread::spawn(|| {
        for line in stdin().lines().map_while(Result::ok) {
            // This fails if the module is gone, which then needs no answer.
            let _ = sysfs::write(ANSWER, &line);
        }
    });
    let names = cmdline.suites().unwrap_or_default();
    for name in SUITES.into_iter().filter(|name| names.contains(name)) {
        let mut suite = report.suite(name);
        if let Err(error) = modules::run(&mut suite, cmdline, name) {
            suite.result("the suite can run", Err(error));
        }
    }
}

fn tests(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    suite.test("the right driver is at work", || right_driver(cmdline));
    let mut drives = drives(cmdline)?;
    if drives.iter().any(|drive| drive.request > USUAL_MOST) {
        drives = with_large_requests(drives, cmdline)?;
    }
    suite.test("the groups' type", || group_types(&drives, cmdline));
    let before = counters(&drives)?;
    // All drives at once: each function has its own domain in L1.
    let found: Vec<Found> = std::thread::scope(|scope| {
        let threads: Vec<_> = drives.iter().map(|drive| scope.spawn(|| use_drive(drive))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<Found>| {
            thread.join().map_err(|_| anyhow!("a thread died"))
        };
        threads.into_iter().map(join).collect::<Result<_>>()
    })?;
    for (drive, (read, written)) in drives.iter().zip(found) {
        suite.result(&format!("drive {}: what L1 wrote is read", drive.serial), read);
        suite.result(&format!("drive {}: what is written comes back", drive.serial), written);
    }
    let after = counters(&drives)?;
    for ((drive, before), after) in drives.iter().zip(before).zip(after) {
        let moved = after - before;
        say!("# L2: drive {}: {moved}", drive.serial);
        if drive.function.group_type()? != IDENTITY {
            suite.result(
                &format!("drive {}: maps are reported to L1", drive.serial),
                reported(moved),
            );
        }
    }
    let live: u64 = counters(&drives)?.iter().map(|c| c.mapped - c.unmapped).sum();
    say!("{MOVED} {live}");
    stdin().read_line(&mut String::new()).context("wait for L1")?;
    Ok(())
}

/// Checks that this driver is active with the page sizes that L1 asked for, or the C
/// driver.
fn right_driver(cmdline: &Cmdline) -> Result<()> {
    let messages = kmsg::messages()?;
    let lines = kmsg::driver_lines(&messages);
    if cmdline.value("guest.inner") == Some("c") {
        ensure!(lines.is_empty(), "the Rust driver is active: {lines:?}");
        return Ok(());
    }
    ensure!(!lines.is_empty(), "no driver messages in the log");
    if let Some(large) = cmdline.value("guest.large") {
        let has_large = lines.iter().any(|line| line.contains("4 KiB and 1 MiB"));
        ensure!(has_large == (large == "1"), "guest.large={large}: {lines:?}");
    }
    Ok(())
}

fn drives(cmdline: &Cmdline) -> Result<Vec<Drive>> {
    let (wanted, round) = (cmdline.number("guest.drives")?, cmdline.number("guest.round")?);
    let request = cmdline.number("guest.request")? as usize;
    let functions = sysfs::wait_for("drives", COME_UP, || {
        let functions = Function::of_driver("nvme");
        let ready = functions.iter().filter(|function| function.find_disk().is_some()).count();
        (ready as u64 == wanted).then_some(functions)
    })?;
    functions.into_iter().map(|function| Drive::of(function, round, request)).collect()
}

fn group_types(drives: &[Drive], cmdline: &Cmdline) -> Result<()> {
    let usual = if cmdline.strict() { "DMA" } else { "DMA-FQ" };
    let wanted = cmdline.value("guest.type").unwrap_or(usual);
    for drive in drives {
        let kind = drive.function.group_type()?;
        ensure!(kind == wanted, "the group type is {kind}, not {wanted}");
    }
    Ok(())
}

/// Reads the counters, which are zero for an identity domain.
fn counters(drives: &[Drive]) -> Result<Vec<Counters>> {
    let read = |drive: &Drive| match drive.function.group_type()?.as_str() {
        IDENTITY => Ok(Counters::default()),
        _ => Counters::read(&drive.function),
    };
    drives.iter().map(read).collect()
}

fn use_drive(drive: &Drive) -> Found {
    (read(drive), write(drive).and_then(|()| large_requests(drive)))
}

/// Loads a module that allows larger requests, and probes the drives again.
fn with_large_requests(drives: Vec<Drive>, cmdline: &Cmdline) -> Result<Vec<Drive>> {
    module::load("mapping_size", "")?;
    for drive in drives {
        drive.function.unbind()?;
        drive.function.probe()?;
    }
    self::drives(cmdline)
}

/// Checks that requests have on average at least half the size that was asked for.
fn large_requests(drive: &Drive) -> Result<()> {
    if drive.request <= USUAL_MOST {
        return Ok(());
    }
    let disk = sysfs::name(&drive.function.disk()?);
    let text = sysfs::read(format!("/sys/block/{disk}/stat"))?;
    let fields: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
    let [_, _, _, _, requests, _, sectors, ..] = fields[..] else { bail!("{disk}: {text}") };
    let small = drive.by_l2()[1].bytes as u64;
    let large = sectors * 512 - small;
    let count = requests - small / drive.by_l2()[1].request as u64;
    say!("# L2: drive {}: {large} bytes in {count} requests", drive.serial);
    for limit in ["max_hw_sectors_kb", "max_sectors_kb", "max_segments"] {
        let path = format!("/sys/block/{disk}/queue/{limit}");
        say!("# L2: drive {}: {limit} {}", drive.serial, sysfs::read(path)?);
    }
    ensure!(large * 2 >= count * drive.request as u64, "{large} bytes in {count} requests");
    Ok(())
}

fn read(drive: &Drive) -> Result<()> {
    drive.before().read(&drive.function.disk()?).map(drop)
}

fn write(drive: &Drive) -> Result<()> {
    for transfer in drive.by_l2() {
        let outcome = transfer.verify(&drive.function.disk()?)?;
        drive.announce(&transfer, outcome.written);
    }
    Ok(())
}

/// Checks that maps were refreshed: in a guest, a new mapping needs a refresh.
fn reported(moved: Counters) -> Result<()> {
    ensure!(moved.mapped > 0 && moved.sync_map > 0, "{moved}");
    Ok(())
}

fn clean_log() -> Result<()> {
    let messages = kmsg::messages()?;
    let bad = kmsg::bad(&messages);
    ensure!(bad.is_empty(), "{} bad messages, the first: {}", bad.len(), bad[0]);
    Ok(())
}
