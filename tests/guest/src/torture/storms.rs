// SPDX-License-Identifier: GPL-2.0
//! Functions are plugged and unplugged, again and again, while they are at work.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Campaign, work};
use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{COME_UP, Function};
use crate::ktap::{Suite, skip};
use crate::{host, sysfs};

/// What comes and goes: its name on the host, and its driver.
const DEVICES: [(&str, &str); 4] =
    [("nvme", "nvme"), ("igb", "igb"), ("e1000e", "e1000e"), ("virtio", "virtio-pci")];
/// How long a function works before it goes, in milliseconds, at most.
const AT_WORK: u64 = 50;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "storms", 100);
    let rounds = campaign.rounds;
    for (device, driver) in DEVICES {
        suite.test(&format!("{device} comes and goes at work, {rounds} times"), || {
            come_and_go(&mut campaign, device, driver)
        });
    }
    suite.test("the same function at once, while its disk is open", || disk_is_open(rounds));
    suite.test("the same function at once, while its VFIO group is open", || group_is_open(rounds));
    suite.test("the same function at once, while an iommufd has it", || iommufd_has_it(5));
    suite.test("recoveries and resets of two functions beside each other", || {
        recoveries(&mut campaign)
    });
    suite.test("DMA and DMA-FQ, switched at work", || switch_type(rounds));
    suite.test("the data is right in the end", || {
        for (seed, nvme) in (900..).zip(Function::of_driver("nvme")) {
            Transfer::new(seed, 4 * MIB).verify(&nvme.disk()?)?;
        }
        Ok(())
    });
    Ok(())
}

/// The function of a driver that the host's device is, and how many functions the
/// driver has with it.
fn find(device: &str, driver: &str) -> Result<Function> {
    let functions = Function::of_driver(driver);
    // The host plugs the first drive, and the last of virtio's functions.
    let found = if device == "virtio" { functions.last() } else { functions.first() };
    found.cloned().with_context(|| format!("no function is bound to {driver}"))
}

/// Half of the times the host takes it away, half of the times its slot is switched
/// off. The other drive's data is right all the time.
fn come_and_go(campaign: &mut Campaign, device: &str, driver: &str) -> Result<()> {
    let function = find(device, driver)?;
    let slot = function.slot()?;
    let other = work::other_disk()?;
    let seed = campaign.rng.u64(..) >> 8;
    work::beside_transfers(&other, seed, || {
        work::beside_packets(|| {
            for round in 0..campaign.rounds {
                let is_plugged = round % 2 == 0;
                let go = || match is_plugged {
                    true => host::unplug(device),
                    false => sysfs::write(&slot, "0"),
                };
                let come = || match is_plugged {
                    true => host::plug(device),
                    false => sysfs::write(&slot, "1"),
                };
                let what = || format!("round {round}");
                at_work(campaign, &function, driver, go).with_context(what)?;
                come().and_then(|()| is_back(&function, driver)).with_context(what)?;
            }
            Ok(())
        })
    })
}

/// Has the function do DMA, and something happen to it meanwhile.
fn at_work(
    campaign: &mut Campaign,
    function: &Function,
    driver: &str,
    action: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let pause = Duration::from_millis(campaign.rng.u64(0..AT_WORK));
    let is_over = AtomicBool::new(false);
    let disk = if driver == "nvme" { Some(function.disk()?) } else { None };
    std::thread::scope(|scope| {
        match (driver, disk) {
            ("nvme", Some(disk)) => {
                let is_over = &is_over;
                scope.spawn(move || work::read_to_its_end(&disk, is_over));
            }
            ("virtio-pci", _) => {
                scope.spawn(|| read_random(&is_over));
            }
            // Packets go to and from the cards anyway.
            _ => {}
        }
        std::thread::sleep(pause);
        let result = action();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}

fn read_random(is_over: &AtomicBool) {
    let mut bytes = [0; 512];
    while !is_over.load(Ordering::Relaxed) {
        let Ok(file) = File::open("/dev/hwrng") else { return };
        if file.read_at(&mut bytes, 0).is_err() {
            return;
        }
    }
}

fn is_back(function: &Function, driver: &str) -> Result<()> {
    let is_bound = || (function.driver().as_deref() == Some(driver)).then_some(());
    sysfs::wait_for(&format!("{driver} on {}", function.address), COME_UP, is_bound)
}

/// Takes the first drive away and brings it back at once.
fn replug() -> Result<Function> {
    host::unplug("nvme")?;
    host::plug("nvme")?;
    sysfs::wait_for("the drive", COME_UP, || {
        let drives = Function::of_driver("nvme");
        (drives.len() > 1).then(|| drives[0].clone())
    })
}

/// A file of the drive before reaches nothing; the new drive works.
fn disk_is_open(rounds: u64) -> Result<()> {
    if Path::new("/proc/lockdep").exists() {
        skip!("the PCI core of s390 takes zpci_add_remove_lock under a disk's lock: a splat");
    }
    for round in 0..rounds / 10 + 1 {
        let nvme = Function::first_of("nvme")?;
        let disk = nvme.disk()?;
        let old = File::open(&disk).with_context(|| format!("open {}", disk.display()))?;
        let nvme = replug()?;
        let mut byte = [0];
        // Not what the page cache has.
        let read = old.read_at(&mut byte, 128 * MIB as u64 + round * MIB as u64);
        // The kernel makes it empty: then it ends before.
        ensure!(matches!(read, Err(_) | Ok(0)), "round {round}: the drive that is gone was read");
        Transfer::new(910 + round, MIB).verify(&nvme.disk()?)?;
    }
    Ok(())
}

fn with_vfio<T>(nvme: &Function, work: impl FnOnce() -> Result<T>) -> Result<T> {
    nvme.unbind()?;
    nvme.set_override("vfio-pci")?;
    nvme.probe()?;
    work()
}

fn group_is_open(rounds: u64) -> Result<()> {
    for round in 0..rounds / 10 + 1 {
        let nvme = Function::first_of("nvme")?;
        let group = nvme.group().context("no group")?;
        let path = format!("/dev/vfio/{group}");
        let held = with_vfio(&nvme, || {
            sysfs::wait_for(&path, COME_UP, || {
                File::options().read(true).write(true).open(&path).ok()
            })
        })?;
        let nvme = replug()?;
        Transfer::new(930 + round, MIB).verify(&nvme.disk()?)?;
        drop(held);
        Transfer::new(950 + round, MIB).verify(&nvme.disk()?)?;
    }
    Ok(())
}

/// A program that has the function and maps and unmaps there. The kernel asks it to
/// let the function go, which it does not: it has to be killed.
pub fn user(nvme: &Function) -> Result<Child> {
    let mut command = Command::new("/bin/vfio_identify");
    command.arg(&nvme.address).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start vfio_identify")
}

fn iommufd_has_it(rounds: u64) -> Result<()> {
    for round in 0..rounds {
        let nvme = Function::first_of("nvme")?;
        let mut child = with_vfio(&nvme, || user(&nvme))?;
        std::thread::sleep(Duration::from_millis(30 * round));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            child.kill()?;
            child.wait()
        });
        let nvme = replug()?;
        killer.join().map_err(|_| anyhow::anyhow!("the thread died"))??;
        Transfer::new(970 + round, MIB).verify(&nvme.disk()?)?;
    }
    Ok(())
}

/// A recovery takes the first drive away and brings it back, resets the other one.
fn recoveries(campaign: &mut Campaign) -> Result<()> {
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() > 1, "the machine has one drive, not two");
    let last = &drives[drives.len() - 1];
    let other = last.disk()?;
    let seed = campaign.rng.u64(..) >> 8;
    work::beside_transfers(&other, seed, || {
        for _ in 0..campaign.rounds / 10 + 1 {
            std::thread::sleep(Duration::from_millis(campaign.rng.u64(0..AT_WORK)));
            // The driver repeats what was lost.
            sysfs::write(last.path().join("reset"), "1")?;
            sysfs::write(drives[0].path().join("recover"), "1")?;
            sysfs::wait_for("driver", COME_UP, || drives[0].driver())?;
        }
        Ok(())
    })?;
    Transfer::new(980, MIB).verify(&drives[0].disk()?).map(drop)
}

/// From strict to a queue of unmaps goes while the driver has the function, back
/// only without it.
fn switch_type(rounds: u64) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    let kind = nvme.group_type()?;
    let file = nvme.path().join("iommu_group/type");
    for round in 0..rounds / 10 + 1 {
        nvme.unbind()?;
        sysfs::write(&file, "DMA")?;
        nvme.probe()?;
        let disk = nvme.disk()?;
        work::beside_transfers(&disk, 990 + 100 * round, || {
            std::thread::sleep(Duration::from_millis(20));
            sysfs::write(&file, "DMA-FQ")
        })?;
        verify_type(&nvme, "DMA-FQ", &disk, round)?;
    }
    nvme.unbind()?;
    sysfs::write(&file, &kind)?;
    nvme.probe()
}

fn verify_type(nvme: &Function, kind: &str, disk: &Path, round: u64) -> Result<()> {
    let now = nvme.group_type()?;
    ensure!(now == kind, "the group is {now}, not {kind}");
    Transfer::new(995 + round, MIB).verify(disk).map(drop)
}
