// SPDX-License-Identifier: GPL-2.0
//! The driver's debugfs files.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::function::Function;
use crate::sysfs;

const ROOT: &str = "/sys/kernel/debug/s390_iommu";

/// Whether the driver has debugfs files; the C driver has none.
pub fn is_there() -> bool {
    Path::new(ROOT).exists()
}

/// A range of a dump; both ends are inclusive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub first: u64,
    pub last: u64,
    pub phys: u64,
    pub large: bool,
    pub writable: bool,
}

/// A dump of a domain's translations.
#[derive(Debug)]
pub struct Dump {
    pub ranges: Vec<Range>,
    /// The IOVA at which a truncated dump continues.
    pub more_from: Option<u64>,
}

/// A domain's directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Domain(PathBuf);

/// The value of the line `key: value`.
pub fn value<'t>(text: &'t str, key: &str) -> Result<&'t str> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    values.next().map(str::trim).with_context(|| format!("no line \"{key}:\""))
}

/// The names of the functions' files.
pub fn functions() -> BTreeSet<String> {
    let files = sysfs::list(format!("{ROOT}/functions"));
    files.iter().map(|path| sysfs::name(path)).collect()
}

/// The content of a function's file.
pub fn function(function: &Function) -> Result<String> {
    sysfs::read(format!("{ROOT}/functions/{:08x}", function.fid()?))
}

/// Whether the machine needs a refresh after maps, not only after unmaps.
pub fn maps_need_refresh(function: &Function) -> Result<bool> {
    let text = self::function(function)?;
    Ok(value(&text, "refreshed after")? == "maps and unmaps")
}

impl Domain {
    /// All domains.
    pub fn all() -> Vec<Self> {
        sysfs::list(format!("{ROOT}/domains")).into_iter().map(Self).collect()
    }

    /// The domain that a function is attached to.
    pub fn of(function: &Function) -> Result<Self> {
        let text = self::function(function)?;
        let attached = value(&text, "attached")?;
        let number = attached.strip_prefix("domain ");
        let number = number.with_context(|| format!("{}: {attached}", function.address))?;
        Ok(Self(Path::new(ROOT).join("domains").join(number)))
    }

    pub fn is_there(&self) -> bool {
        self.0.exists()
    }

    pub fn info(&self) -> Result<String> {
        sysfs::read(self.0.join("info"))
    }

    pub fn open(&self) -> Result<File> {
        let path = self.0.join("translations");
        File::open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// Reads the dump in several reads, each of which continues where the previous one
    /// ended.
    pub fn dump(&self) -> Result<Dump> {
        let mut file = self.open()?;
        let (mut text, mut part) = (String::new(), [0; 4096]);
        loop {
            match file.read(&mut part).context("read a dump")? {
                0 => return Dump::parse(&text),
                length => text += std::str::from_utf8(&part[..length])?,
            }
        }
    }
}

impl Dump {
    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        ensure!(lines.next().is_some_and(|head| head.starts_with("# IOVA")), "no head: {text:.80}");
        let mut dump = Self { ranges: Vec::new(), more_from: None };
        for line in lines {
            ensure!(dump.more_from.is_none(), "{line:?} after the end");
            match line.strip_prefix("# more from ") {
                Some(rest) => dump.more_from = Some(number(rest.split(' ').next())?),
                None => dump.ranges.push(Range::parse(line)?),
            }
        }
        for pair in dump.ranges.windows(2) {
            ensure!(pair[0].last < pair[1].first, "out of order: {pair:x?}");
        }
        Ok(dump)
    }
}

impl Range {
    /// Parses "first-last phys 4 KiB rw".
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<_> = line.split(' ').collect();
        let [iova, phys, size, unit, access] = fields[..] else {
            bail!("cannot parse {line:?}");
        };
        let mut ends = iova.split('-');
        let range = Self {
            first: number(ends.next())?,
            last: number(ends.next())?,
            phys: number(Some(phys))?,
            large: match (size, unit) {
                ("4", "KiB") => false,
                ("1", "MiB") => true,
                _ => bail!("unknown page size: {line:?}"),
            },
            writable: match access {
                "rw" => true,
                "r" => false,
                _ => bail!("unknown access: {line:?}"),
            },
        };
        ensure!(range.first < range.last, "empty range: {line:?}");
        Ok(range)
    }

    /// The 4 KiB pages of the range, as pairs of IOVA and physical address.
    pub fn pages(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (first, phys) = (self.first, self.phys);
        (first..self.last).step_by(4096).map(move |iova| (iova, phys + (iova - first)))
    }
}

fn number(text: Option<&str>) -> Result<u64> {
    let text = text.unwrap_or_default();
    let digits = text.strip_prefix("0x").with_context(|| format!("{text:?} is not a number"))?;
    u64::from_str_radix(digits, 16).with_context(|| text.to_owned())
}
