// SPDX-License-Identifier: GPL-2.0
//! Loads and unloads the driver while a drive is plugged and unplugged independently. The
//! machine starts without functions.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use fastrand::Rng;
use nix::errno::Errno;

use super::Campaign;
use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{COME_UP, Function};
use crate::host;
use crate::ktap::Suite;
use crate::module;
use crate::state::{self, State};
use crate::sysfs;

const DRIVER: &str = "s390_iommu";
const FILE: &str = "/lib/modules/s390_iommu.ko";
/// Maximum pause between two steps, in milliseconds
const PAUSE: u64 = 50;
/// For all loads and unloads
const PATIENCE: Duration = Duration::from_secs(600);

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "reloads", 100)?;
    ensure!(Function::all().is_empty(), "the machine has functions");
    let before = State::take()?;
    let name = format!("{} loads and unloads beside plugs and unplugs", campaign.rounds);
    suite.test(&name, || beside_plugs(&mut campaign));
    suite.test("nothing is left", || {
        before.ensure_unchanged()?;
        let objects = state::allocations()?;
        ensure!(objects.is_empty(), "the driver has leaked objects: {}", objects.join("; "));
        Ok(())
    });
    Ok(())
}

fn pause(rng: &mut Rng) {
    std::thread::sleep(Duration::from_millis(rng.u64(0..PAUSE)));
}

fn beside_plugs(campaign: &mut Campaign) -> Result<()> {
    let is_over = AtomicBool::new(false);
    let mut rng = campaign.rng.fork();
    let plugs = std::thread::scope(|scope| {
        let plugger = scope.spawn(|| {
            let mut plugs = 0;
            while !is_over.load(Ordering::Relaxed) {
                host::plug("nvme")?;
                pause(&mut rng);
                host::unplug("nvme")?;
                pause(&mut rng);
                plugs += 1;
            }
            Ok::<_, anyhow::Error>(plugs)
        });
        let reloaded = reload(campaign);
        is_over.store(true, Ordering::Relaxed);
        let plugs = plugger.join().map_err(|_| anyhow!("the other thread died"))??;
        reloaded.map(|()| plugs)
    })?;
    ensure!(plugs > 0, "no drive was plugged");
    use_it()
}

/// Loads and unloads the driver as often as there are rounds. Unloading fails while the
/// driver has a function.
fn reload(campaign: &mut Campaign) -> Result<()> {
    let start = Instant::now();
    let mut unloads = 0;
    while unloads < campaign.rounds {
        ensure!(start.elapsed() < PATIENCE, "{unloads} unloads in {PATIENCE:?}");
        if !Path::new("/sys/module").join(DRIVER).exists() {
            module::try_load(Path::new(FILE), "").context("load the driver")?;
        }
        pause(&mut campaign.rng);
        match module::try_unload(DRIVER) {
            Ok(()) => unloads += 1,
            Err(Errno::EAGAIN | Errno::EBUSY) => {}
            Err(error) => return Err(error).context("unload the driver"),
        }
    }
    Ok(())
}

fn use_it() -> Result<()> {
    if !Path::new("/sys/module").join(DRIVER).exists() {
        module::try_load(Path::new(FILE), "").context("load the driver")?;
    }
    host::plug("nvme")?;
    let nvme = sysfs::wait_for("the drive", COME_UP, || Function::first_of("nvme").ok())?;
    Transfer::new(1600, 2 * MIB).verify(&nvme.disk()?)?;
    host::unplug("nvme")?;
    let unload = || module::try_unload(DRIVER).ok();
    sysfs::wait_for("end of references", COME_UP, unload)
}
