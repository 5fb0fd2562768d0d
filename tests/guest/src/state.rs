// SPDX-License-Identifier: GPL-2.0
//! The driver's traces in the kernel, which must be gone after it is unloaded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::sysfs;

/// Directories in which the driver and its functions have entries
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

/// How long the kernel may take for deferred frees
const SETTLE: Duration = Duration::from_secs(10);

/// A snapshot: directory entries and amounts of memory, by name.
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

    /// Checks that everything is as it was; the error lists the differences. Waits,
    /// because the kernel defers some frees, such as that of a module's init section.
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

/// Number of pages used for I/O translation tables, after all CPUs' counts were added.
pub fn table_pages() -> Result<u64> {
    sysfs::write("/proc/sys/vm/stat_refresh", "1")?;
    let text = sysfs::read("/proc/vmstat")?;
    let value = text.lines().find_map(|line| line.strip_prefix("nr_iommu_pages "));
    value.context("no nr_iommu_pages in /proc/vmstat")?.parse().context("nr_iommu_pages")
}

/// A value of `/proc/meminfo`, in KiB.
pub fn meminfo(name: &str) -> Result<u64> {
    let text = sysfs::read("/proc/meminfo")?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines
        .find(|(key, _)| *key == name)
        .with_context(|| format!("no {name} in /proc/meminfo"))?;
    value.trim().trim_end_matches(" kB").parse().with_context(|| name.to_owned())
}

/// The memory that loaded modules use, in bytes.
pub fn module_bytes() -> Result<u64> {
    let text = sysfs::read("/proc/vmallocinfo")?;
    let areas = text.lines().filter(|line| line.contains(" load_module+"));
    let sizes = areas.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(sizes.sum())
}

/// The objects that the driver has allocated, by caller. This takes a while. The kernel
/// records callers if booted with `slab_debug=U`. A caller without a symbol belongs to a
/// module that was unloaded.
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

/// Parses `alloc_traces`: a line with the number of objects is followed by their call
/// trace. The driver comes directly after the allocator and the kernel's Rust wrapper of
/// it.
fn traces(text: &str) -> Vec<String> {
    const NEAREST: usize = 3;
    let is_driver =
        |line: &&str| line.contains("[s390_iommu]") || line.trim_start().starts_with("0x");
    let blocks = text.split("\n\n").map(|block| block.lines().take(1 + NEAREST));
    let found = blocks.filter(|lines| lines.clone().skip(1).any(|line| is_driver(&line)));
    found.map(|lines| lines.map(str::trim).collect::<Vec<_>>().join(", ")).collect()
}
