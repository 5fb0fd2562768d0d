// SPDX-License-Identifier: GPL-2.0
//! Tasks of the init process: mounts, loading the driver, power-off.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use crate::function::{COME_UP, Function};
use crate::{module, sysfs};

/// File systems, their mount points, and whether they are mandatory
const MOUNTS: [(&str, &str, bool); 8] = [
    ("proc", "/proc", true),
    ("sysfs", "/sys", true),
    ("devtmpfs", "/dev", true),
    ("debugfs", "/sys/kernel/debug", true),
    ("tracefs", "/sys/kernel/tracing", false),
    ("tmpfs", "/tmp", true),
    ("devpts", "/dev/pts", false),
    ("cgroup2", "/sys/fs/cgroup", false),
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
    // The directory may exist already, or the parent file system provides it.
    let _ = std::fs::create_dir_all(path);
    match mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>) {
        // The kernel may be configured to mount devtmpfs itself.
        Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Loads the driver if it is a module; without it there are no functions.
pub fn load_driver() -> Result<()> {
    const DRIVER: &str = "s390_iommu";
    if Path::new("/sys/module").join(DRIVER).exists() || !module::is_there(DRIVER) {
        return Ok(());
    }
    module::load(DRIVER, "")?;
    sysfs::wait_for("PCI functions", COME_UP, || (!Function::all().is_empty()).then_some(()))
}

/// Waits until all functions have drivers, which are probed asynchronously.
pub fn wait_for_drivers() {
    let all_bound = || Function::all().iter().all(|f| f.driver().is_some()).then_some(());
    // Ignore a timeout: the tests check whether functions have drivers.
    let _ = sysfs::wait_for("drivers", Duration::from_secs(5), all_bound);
}

/// Powers the machine off; never returns.
pub fn power_off() -> ! {
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Reached only without CAP_SYS_BOOT.
    loop {
        std::thread::park();
    }
}
