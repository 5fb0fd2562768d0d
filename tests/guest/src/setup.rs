// SPDX-License-Identifier: GPL-2.0
//! What the first process of a machine has to do: mounts and power-off.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use crate::function::{COME_UP, Function};
use crate::{module, sysfs};

/// File system, where it goes, and whether the guest can do without it.
const MOUNTS: [(&str, &str, bool); 7] = [
    ("proc", "/proc", true),
    ("sysfs", "/sys", true),
    ("devtmpfs", "/dev", true),
    ("debugfs", "/sys/kernel/debug", true),
    ("tracefs", "/sys/kernel/tracing", false),
    ("tmpfs", "/tmp", true),
    ("devpts", "/dev/pts", false),
];

/// Mounts the kernel's file systems.
pub fn mount_all() -> Result<()> {
    for (kind, path, needed) in MOUNTS {
        let done = mount_one(kind, path);
        if needed {
            done.with_context(|| format!("mount {kind} on {path}"))?;
        }
    }
    Ok(())
}

fn mount_one(kind: &str, path: &str) -> Result<()> {
    // The folder may be there, or be made by the file system above it.
    let _ = std::fs::create_dir_all(path);
    match mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>) {
        // The kernel mounts devtmpfs itself where it is configured to.
        Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Loads the driver where it is a module; without it there are no functions.
pub fn load_driver() -> Result<()> {
    const DRIVER: &str = "s390_iommu";
    if Path::new("/sys/module").join(DRIVER).exists() || !module::is_there(DRIVER) {
        return Ok(());
    }
    module::load(DRIVER, "")?;
    sysfs::wait_for("PCI functions", COME_UP, || (!Function::all().is_empty()).then_some(()))
}

/// Waits until the drivers, which start beside the first process, have their
/// functions.
pub fn wait_for_drivers() {
    let all_bound = || Function::all().iter().all(|f| f.driver().is_some()).then_some(());
    // A function without a driver is for the tests to judge.
    let _ = sysfs::wait_for("drivers", Duration::from_secs(5), all_bound);
}

/// Switches the machine off; never returns.
pub fn power_off() -> ! {
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Only without the privilege to: then there is nothing left to do.
    loop {
        std::thread::park();
    }
}
