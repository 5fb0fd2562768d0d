// SPDX-License-Identifier: GPL-2.0
//! What the driver has in the kernel: what must be as before when it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::sysfs;

/// Folders in which the driver, or what it serves, has entries.
const FOLDERS: [&str; 10] = [
    "/sys/bus/pci/devices",
    "/sys/bus/pci/slots",
    "/sys/class/iommu",
    "/sys/kernel/debug",
    "/sys/kernel/debug/iommu",
    "/sys/kernel/debug/pci",
    "/sys/kernel/iommu_groups",
    "/sys/kernel/slab",
    "/sys/kernel/tracing/events",
    "/sys/module",
];

/// How long the kernel may take to free what it frees later.
const SETTLE: Duration = Duration::from_secs(10);

/// All of it; each entry and each figure is a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State(BTreeMap<String, String>);

impl State {
    pub fn take() -> Result<Self> {
        let mut lines = BTreeMap::new();
        for folder in FOLDERS {
            for path in sysfs::list(folder) {
                lines.insert(path.display().to_string(), "there".to_owned());
            }
        }
        for (name, value) in [
            ("nr_iommu_pages", table_pages()?),
            ("SecPageTables", meminfo("SecPageTables")?),
            ("bytes of modules", module_bytes()?),
        ] {
            lines.insert(name.to_owned(), value.to_string());
        }
        Ok(Self(lines))
    }

    /// Whether everything is as it was; the error names what is not. The kernel
    /// frees some of it, like a module's code for its start, a moment later.
    pub fn ensure_unchanged(&self) -> Result<()> {
        let end = Instant::now() + SETTLE;
        loop {
            let differences = self.differences(&Self::take()?);
            if differences.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{}", differences.join("; "));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn differences(&self, now: &Self) -> Vec<String> {
        let names: BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let value = |state: &Self, name: &String| match state.0.get(name) {
            Some(value) => value.clone(),
            None => "gone".to_owned(),
        };
        let compare = |name: &String| {
            let (before, after) = (value(self, name), value(now, name));
            (before != after).then(|| format!("{name}: {before}, then {after}"))
        };
        names.into_iter().filter_map(compare).collect()
    }
}

/// Pages of tables, of all processors.
pub fn table_pages() -> Result<u64> {
    sysfs::write("/proc/sys/vm/stat_refresh", "1")?;
    let text = sysfs::read("/proc/vmstat")?;
    let value = text.lines().find_map(|line| line.strip_prefix("nr_iommu_pages "));
    value.context("no nr_iommu_pages in /proc/vmstat")?.parse().context("nr_iommu_pages")
}

/// A line of `/proc/meminfo`, in KiB.
pub fn meminfo(name: &str) -> Result<u64> {
    let text = sysfs::read("/proc/meminfo")?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines
        .find(|(key, _)| *key == name)
        .with_context(|| format!("no {name} in /proc/meminfo"))?;
    value.trim().trim_end_matches(" kB").parse().with_context(|| name.to_owned())
}

/// What loaded modules take.
pub fn module_bytes() -> Result<u64> {
    let text = sysfs::read("/proc/vmallocinfo")?;
    let areas = text.lines().filter(|line| line.contains(" load_module+"));
    let sizes = areas.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(sizes.sum())
}

/// The objects that the driver has allocated, by their callers; takes a while.
/// The kernel notes callers by a boot parameter (`slab_debug=U`); a caller that has
/// no name any more is a module that is gone.
pub fn allocations() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for cache in sysfs::list("/sys/kernel/debug/slab") {
        let path = cache.join("alloc_traces");
        if path.exists() {
            all.extend(traces(&sysfs::read(&path)?));
        }
    }
    Ok(all)
}

/// A line that begins with the number of objects is followed by their callers,
/// the nearest first. The driver is the first behind the allocator, and the
/// kernel's Rust code that stands for it.
fn traces(text: &str) -> Vec<String> {
    const NEAREST: usize = 3;
    let is_driver =
        |line: &&str| line.contains("[s390_iommu]") || line.trim_start().starts_with("0x");
    let blocks = text.split("\n\n").map(|block| block.lines().take(1 + NEAREST));
    let found = blocks.filter(|lines| lines.clone().skip(1).any(|line| is_driver(&line)));
    found.map(|lines| lines.map(str::trim).collect::<Vec<_>>().join(", ")).collect()
}
