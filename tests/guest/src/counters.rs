// SPDX-License-Identifier: GPL-2.0
//! The IOMMU counters of the s390 PCI core in debugfs.

use std::fmt;
use std::ops::Sub;

use anyhow::{Context, Result};

use crate::function::Function;
use crate::sysfs;

/// The five counters of the domain that a function is attached to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counters {
    pub mapped: u64,
    pub unmapped: u64,
    pub global: u64,
    pub sync_map: u64,
    pub sync: u64,
}

impl Counters {
    /// Reads the counters of a function; enables its statistics if needed.
    pub fn read(function: &Function) -> Result<Self> {
        let path = format!("/sys/kernel/debug/pci/{}/statistics", function.address);
        let mut text = sysfs::read(&path)?;
        if text.contains("statistics disabled") {
            sysfs::write(&path, "1")?;
            text = sysfs::read(&path)?;
        }
        Self::parse(&text).with_context(|| format!("in {path}"))
    }

    fn parse(text: &str) -> Result<Self> {
        let value = |label: &str| -> Result<u64> {
            let mut lines = text.lines().rev().filter_map(|line| line.split_once(':'));
            let (_, value) = lines
                .find(|(key, _)| key.trim() == label)
                .with_context(|| format!("no line \"{label}\""))?;
            value.trim().parse().with_context(|| format!("\"{label}\" is {value:?}"))
        };
        Ok(Self {
            mapped: value("Mapped pages")?,
            unmapped: value("Unmapped pages")?,
            global: value("Global RPCITs")?,
            sync_map: value("Sync Map RPCITs")?,
            sync: value("Sync RPCITs")?,
        })
    }
}

impl Sub for Counters {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            mapped: self.mapped - before.mapped,
            unmapped: self.unmapped - before.unmapped,
            global: self.global - before.global,
            sync_map: self.sync_map - before.sync_map,
            sync: self.sync - before.sync,
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "mapped {} unmapped {} RPCIT global {} sync-map {} sync {}",
            self.mapped, self.unmapped, self.global, self.sync_map, self.sync
        )
    }
}
