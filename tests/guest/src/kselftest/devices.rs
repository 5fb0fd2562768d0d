// SPDX-License-Identifier: GPL-2.0
//! The functions that the selftests run on.

use anyhow::{Context, Result};

use crate::block::{MIB, Transfer};
use crate::function::Function;

const DRIVER: &str = "vfio-pci";

/// The kinds of devices, and their PCI vendor and device IDs
const KINDS: [(&str, &str); 5] = [
    ("nvme", "1b36:0010"),
    ("igb", "8086:10c9"),
    ("e1000e", "8086:10d3"),
    ("virtio-rng", "1af4:1044"),
    ("xhci", "1b36:000d"),
];

/// One more, for tests that need two.
const SPARE: (&str, &str) = ("second igb", "8086:10c9");

/// A function that is bound to vfio-pci.
pub struct Device {
    pub kind: &'static str,
    pub function: Function,
}

impl Device {
    /// Takes the first function of this kind and binds it to vfio-pci.
    fn take(kind: &'static str, ids: &str, functions: &mut Vec<Function>) -> Result<Self> {
        let is_it = |f: &Function| f.ids().is_ok_and(|found| found == ids);
        let index = functions.iter().position(is_it);
        let index = index.with_context(|| format!("the machine has no {kind}"))?;
        let function = functions.remove(index);
        function.set_override(DRIVER)?;
        function.unbind()?;
        function.probe()?;
        Ok(Self { kind, function })
    }
}

/// All devices of the machine, for as long as the tests need them.
pub struct Devices {
    kinds: Vec<Device>,
    spare: Option<Device>,
}

impl Devices {
    /// Takes one function of each kind, and the spare one.
    pub fn take() -> Result<Self> {
        let mut all = Function::all();
        let kinds: Result<Vec<Device>> =
            KINDS.iter().map(|(kind, ids)| Device::take(kind, ids, &mut all)).collect();
        Ok(Self { kinds: kinds?, spare: Some(Device::take(SPARE.0, SPARE.1, &mut all)?) })
    }

    /// No devices, for tests that do not use any.
    pub fn none() -> Self {
        Self { kinds: Vec::new(), spare: None }
    }

    /// One device of each kind.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.kinds.iter()
    }

    pub fn get(&self, kind: &str) -> Result<&Device> {
        let mut devices = self.kinds.iter().chain(&self.spare);
        devices.find(|device| device.kind == kind).with_context(|| format!("there is no {kind}"))
    }

    /// Returns the NVMe function to its native driver and verifies the disk.
    pub fn give_back(self) -> Result<()> {
        let nvme = self.get("nvme")?;
        nvme.function.set_override("")?;
        nvme.function.unbind()?;
        nvme.function.probe()?;
        let transfer = Transfer { seed: 700, start: 0, bytes: 2 * MIB, request: MIB, offset: 0 };
        transfer.verify(&nvme.function.disk()?).map(drop)
    }
}
