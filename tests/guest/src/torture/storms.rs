// SPDX-License-Identifier: GPL-2.0
//! Functions are plugged and unplugged repeatedly during I/O.

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

/// The devices to plug: name on the host, and driver
const DEVICES: [(&str, &str); 4] =
    [("nvme", "nvme"), ("igb", "igb"), ("e1000e", "e1000e"), ("virtio", "virtio-pci")];
/// The maximum time that a function works before it is removed, in milliseconds
const AT_WORK: u64 = 50;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "storms", 100)?;
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

/// The function of a device of the host.
fn find(device: &str, driver: &str) -> Result<Function> {
    let functions = Function::of_driver(driver);
    // The host plugs the first drive, but the last of the virtio functions.
    let found = if device == "virtio" { functions.last() } else { functions.first() };
    found.cloned().with_context(|| format!("no function is bound to {driver}"))
}

/// Removes a function and brings it back, alternately by unplugging it on the host and by
/// its slot, during verified transfers of the other drive.
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

/// Runs `action` while the function does DMA.
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
            // The cards already send and receive packets.
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

/// Unplugs the first drive and immediately plugs it again.
fn replug() -> Result<Function> {
    host::unplug("nvme")?;
    host::plug("nvme")?;
    sysfs::wait_for("the drive", COME_UP, || {
        let drives = Function::of_driver("nvme");
        (drives.len() > 1).then(|| drives[0].clone())
    })
}

/// Replugs a drive while its disk is open. Reads of the old file must fail, and the new
/// drive must work.
fn disk_is_open(rounds: u64) -> Result<()> {
    if Path::new("/proc/lockdep").exists() {
        skip!("known lockdep splat: zpci_add_remove_lock is taken under a disk's lock");
    }
    for round in 0..rounds / 10 + 1 {
        let nvme = Function::first_of("nvme")?;
        let disk = nvme.disk()?;
        let old = File::open(&disk).with_context(|| format!("open {}", disk.display()))?;
        let nvme = replug()?;
        let mut byte = [0];
        // An offset that is not in the page cache
        let read = old.read_at(&mut byte, 128 * MIB as u64 + round * MIB as u64);
        // The kernel sets the capacity to 0, so a read may also return 0 bytes.
        ensure!(matches!(read, Err(_) | Ok(0)), "round {round}: the removed drive was read");
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

/// Starts a program that uses the function and maps and unmaps. It ignores the kernel's
/// request to release the function, so it has to be killed.
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

/// Recovers the first drive, which removes and rescans it, and resets the other one.
fn recoveries(campaign: &mut Campaign) -> Result<()> {
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() > 1, "the machine has one drive, not two");
    let last = &drives[drives.len() - 1];
    let other = last.disk()?;
    let seed = campaign.rng.u64(..) >> 8;
    work::beside_transfers(&other, seed, || {
        for _ in 0..campaign.rounds / 10 + 1 {
            std::thread::sleep(Duration::from_millis(campaign.rng.u64(0..AT_WORK)));
            // The driver repeats lost requests.
            sysfs::write(last.path().join("reset"), "1")?;
            sysfs::write(drives[0].path().join("recover"), "1")?;
            sysfs::wait_for("driver", COME_UP, || drives[0].driver())?;
        }
        Ok(())
    })?;
    Transfer::new(980, MIB).verify(&drives[0].disk()?).map(drop)
}

/// Switches a group between strict and deferred flushing. Switching to deferred flushing
/// is possible while a driver is bound, switching back is not.
fn switch_type(rounds: u64) -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    let kind = nvme.group_type()?;
    for round in 0..rounds / 10 + 1 {
        nvme.unbind()?;
        nvme.set_group_type("DMA")?;
        nvme.probe()?;
        let disk = nvme.disk()?;
        work::beside_transfers(&disk, 990 + 100 * round, || {
            std::thread::sleep(Duration::from_millis(20));
            nvme.set_group_type("DMA-FQ")
        })?;
        verify_type(&nvme, "DMA-FQ", &disk, round)?;
    }
    nvme.unbind()?;
    nvme.set_group_type(&kind)?;
    nvme.probe()
}

fn verify_type(nvme: &Function, kind: &str, disk: &Path, round: u64) -> Result<()> {
    let now = nvme.group_type()?;
    ensure!(now == kind, "the group's type is {now}, expected {kind}");
    Transfer::new(995 + round, MIB).verify(disk).map(drop)
}
