// SPDX-License-Identifier: GPL-2.0
//! PCI functions in sysfs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::sysfs;

const DEVICES: &str = "/sys/bus/pci/devices";

/// How long a device and its driver may take to come up on an emulated machine
pub const COME_UP: Duration = Duration::from_secs(30);

/// The functions that this program may use, if not all.
static ONLY: OnceLock<Vec<String>> = OnceLock::new();

/// From now on, [`Function::all`] finds only these functions.
pub fn restrict_to(addresses: Vec<String>) {
    ONLY.get_or_init(|| addresses);
}

/// Whether the machine may have functions that this program must not use.
pub fn is_restricted() -> bool {
    ONLY.get().is_some()
}

/// One PCI function.
#[derive(Clone, PartialEq, Eq)]
pub struct Function {
    pub address: String,
}

/// A line of `reserved_regions`; both ends are inclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    pub first: u64,
    pub last: u64,
}

impl Function {
    /// All functions that this program may use, ordered by address.
    pub fn all() -> Vec<Self> {
        let paths = sysfs::list(DEVICES);
        let address = |path: &PathBuf| sysfs::name(path);
        let addresses = paths.iter().map(address);
        let is_ours = |address: &String| ONLY.get().is_none_or(|only| only.contains(address));
        addresses.filter(is_ours).map(|address| Self { address }).collect()
    }

    /// The functions that are bound to a driver.
    pub fn of_driver(driver: &str) -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|f| f.driver().as_deref() == Some(driver));
        all
    }

    /// The first function that is bound to a driver.
    pub fn first_of(driver: &str) -> Result<Self> {
        let first = Self::of_driver(driver).into_iter().next();
        first.ok_or_else(|| anyhow!("no PCI function is bound to the driver {driver}"))
    }

    /// The function's directory in sysfs.
    pub fn path(&self) -> PathBuf {
        Path::new(DEVICES).join(&self.address)
    }

    pub fn driver(&self) -> Option<String> {
        sysfs::link_name(self.path().join("driver"))
    }

    pub fn group(&self) -> Option<String> {
        sysfs::link_name(self.path().join("iommu_group"))
    }

    /// The type of the group's default domain: `DMA`, `DMA-FQ`, `identity`, `blocked`.
    pub fn group_type(&self) -> Result<String> {
        sysfs::read(self.path().join("iommu_group/type"))
    }

    /// Sets it; without a driver the function gets a new domain.
    pub fn set_group_type(&self, kind: &str) -> Result<()> {
        sysfs::write(self.path().join("iommu_group/type"), kind)
    }

    /// `vendor:device`, four hexadecimal digits each.
    pub fn ids(&self) -> Result<String> {
        let id = |file| -> Result<String> {
            let text = sysfs::read(self.path().join(file))?;
            Ok(text.trim_start_matches("0x").to_owned())
        };
        Ok(format!("{}:{}", id("vendor")?, id("device")?))
    }

    /// The size of config space in bytes.
    pub fn config_size(&self) -> Result<u64> {
        let path = self.path().join("config");
        let data = std::fs::metadata(&path).with_context(|| format!("{}", path.display()))?;
        Ok(data.len())
    }

    /// Whether config space lists the capability with this ID.
    pub fn has_capability(&self, id: u8) -> Result<bool> {
        const FIRST: usize = 0x34;
        let path = self.path().join("config");
        let config = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let byte = |at: usize| config.get(at).copied().context("a capability outside config space");
        let mut at = usize::from(byte(FIRST)?);
        // More iterations than capabilities fit mean that the list has a loop.
        for _ in 0..config.len() / 4 {
            if at == 0 {
                return Ok(false);
            }
            if byte(at)? == id {
                return Ok(true);
            }
            at = usize::from(byte(at + 1)?);
        }
        bail!("{}: the capability list has a loop", self.address)
    }

    /// The zPCI function identifier.
    pub fn fid(&self) -> Result<u32> {
        let text = sysfs::read(self.path().join("function_id"))?;
        let digits = text.trim_start_matches("0x");
        u32::from_str_radix(digits, 16).with_context(|| format!("function_id {text}"))
    }

    /// The unparsed lines of `reserved_regions`.
    pub fn reserved_lines(&self) -> Result<Vec<String>> {
        let text = sysfs::read(self.path().join("iommu_group/reserved_regions"))?;
        Ok(text.lines().map(String::from).collect())
    }

    /// The reserved regions. All of them must have the type "reserved".
    pub fn reserved(&self) -> Result<Vec<Region>> {
        self.reserved_lines()?.iter().map(|line| Region::parse(line)).collect()
    }

    /// Unbinds the function from its driver, if it has one.
    pub fn unbind(&self) -> Result<()> {
        if self.driver().is_some() {
            sysfs::write(self.path().join("driver/unbind"), &self.address)?;
        }
        Ok(())
    }

    /// Sets the only driver that may bind to the function; "" means any.
    pub fn set_override(&self, driver: &str) -> Result<()> {
        sysfs::write(self.path().join("driver_override"), &format!("{driver}\n"))
    }

    /// Rebinds the function to this driver, or to its native driver for "".
    pub fn hand_to(&self, driver: &str) -> Result<()> {
        self.unbind()?;
        self.set_override(driver)?;
        self.probe()
    }

    /// Sets how the function is reset: "flr" is a function-level reset, "bus" a reset by
    /// the platform, after which the kernel has to register the table again.
    pub fn set_reset_method(&self, method: &str) -> Result<()> {
        sysfs::write(self.path().join("reset_method"), method)
    }

    /// Resets the function once by this method.
    pub fn reset_by(&self, method: &str) -> Result<()> {
        self.set_reset_method(method)?;
        let reset = sysfs::write(self.path().join("reset"), "1");
        self.set_reset_method("default")?;
        reset
    }

    /// Triggers a probe and waits until a driver is bound.
    pub fn probe(&self) -> Result<()> {
        sysfs::write("/sys/bus/pci/drivers_probe", &self.address)?;
        let what = format!("driver of {}", self.address);
        sysfs::wait_for(&what, COME_UP, || self.driver())?;
        Ok(())
    }

    /// The block device of an NVMe function, as a path in `/dev`; waits for it.
    pub fn disk(&self) -> Result<PathBuf> {
        let what = format!("disk of {}", self.address);
        let disk = sysfs::wait_for(&what, COME_UP, || self.find_disk())?;
        let path = Path::new("/dev").join(disk);
        // Kernel threads create the disk and its node. Shortly after a removal the node
        // of the previous disk may still exist.
        sysfs::wait_for(&what, COME_UP, || File::open(&path).ok())?;
        Ok(path)
    }

    /// The name of the block device, if it exists already.
    pub fn find_disk(&self) -> Option<String> {
        let controllers = sysfs::list(self.path().join("nvme"));
        let spaces = controllers.iter().flat_map(sysfs::list);
        // A namespace is called nvme0n1 or, with multipath, nvme0c0n1.
        let mut names = spaces.map(|path| sysfs::name(&path));
        names.find(|name| name.starts_with("nvme") && Path::new("/sys/block").join(name).exists())
    }

    /// The network interface of a NIC; waits for it.
    pub fn interface(&self) -> Result<String> {
        let what = format!("network interface of {}", self.address);
        sysfs::wait_for(&what, COME_UP, || self.find_interface())
    }

    /// The network interface, if it exists already.
    pub fn find_interface(&self) -> Option<String> {
        sysfs::list(self.path().join("net")).first().map(|path| sysfs::name(path))
    }

    /// The `power` file of the hotplug slot.
    pub fn slot(&self) -> Result<PathBuf> {
        let path = PathBuf::from(format!("/sys/bus/pci/slots/{:08x}/power", self.fid()?));
        ensure!(path.exists(), "{}: no such slot", path.display());
        Ok(path)
    }
}

impl Region {
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [first, last, kind] = fields[..] else {
            bail!("reserved_regions: cannot parse {line:?}");
        };
        ensure!(kind == "reserved", "reserved_regions: the type of {line:?} is not \"reserved\"");
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
        Ok(Self { first: number(first)?, last: number(last)? })
    }
}
