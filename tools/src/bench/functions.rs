// SPDX-License-Identifier: GPL-2.0
//! What many functions cost: on a machine, and on one domain.

use super::{
    pair, rows,
    table::{digits, ratio, Table},
    Bench,
};
use crate::prelude::*;
use serde::Serialize;

/// How many random number generators the machines of a comparison have.
pub const MACHINES: [usize; 2] = [0, 128];
/// How many fit behind a bridge.
const BEHIND: usize = 30;

#[derive(Serialize)]
pub struct Functions {
    count: u64,
    /// When user space began, in milliseconds.
    booted: u64,
    /// KiB of slabs and per-CPU memory, and of tables, by then.
    kernel: u64,
    tables: u64,
    /// On one domain: functions, nanoseconds of all attaches, and of a full flush.
    shared: Vec<(u64, u64, u64)>,
    /// How many were unplugged; microseconds of all, and of the median.
    unplugged: Option<(u64, u64, u64)>,
}

impl Functions {
    /// Reads `booted`, `shared` and `unplugged`.
    pub fn read(lines: &[String]) -> Result<Self> {
        let booted = rows(lines, "booted")?.pop();
        let ([], [count, booted, kernel, tables]) = booted.context("bench: no boot's figures")?;
        let shared = rows(lines, "shared")?.into_iter();
        Ok(Functions {
            count,
            booted,
            kernel,
            tables,
            shared: shared.map(|([_, _], all)| all.into()).collect(),
            unplugged: rows(lines, "unplugged")?.pop().map(|([], all)| all.into()),
        })
    }
}

/// `count` generators behind bridges, as arguments of QEMU.
pub fn devices(count: usize) -> String {
    let generator = |index| {
        let bridge = index / BEHIND;
        let new = match index % BEHIND {
            0 => format!("-device pci-bridge,id=b{bridge},chassis_nr={} ", bridge + 1),
            _ => String::new(),
        };
        // The emulator knows functions by these; a name of its own lacks the bridge.
        format!("{new}-device virtio-rng-pci,disable-legacy=on,id=r{index},bus=b{bridge} ")
    };
    (0..count).map(generator).collect()
}

impl Bench {
    pub fn functions_table(&self) -> Result<String> {
        let ([few, ours], [c_few, theirs]) = pair(&self.functions)?;
        let mut table = Table::new("Many functions", &[48, 14, 14, 9]);
        table.line("", ["this driver", "C driver", "C/ours"]);
        let mut line = |what: &str, a: u64, b: u64| {
            table.line(what, [digits(a), digits(b), format!("{:.2}", ratio(b, a))]);
        };
        let more = |few: &Functions, many: &Functions, pick: fn(&Functions) -> u64| {
            let count = many.count.saturating_sub(few.count).max(1);
            pick(many).saturating_sub(pick(few)) * 1024 / count
        };
        for (few, c_few) in [(few, c_few), (ours, theirs)] {
            let what = format!("{} functions: ms to user space", few.count);
            line(&what, few.booted, c_few.booted);
        }
        let both = |pick| (more(few, ours, pick), more(c_few, theirs, pick));
        let (a, b) = both(|boot| boot.kernel);
        line("bytes of slabs and per-CPU memory a function", a, b);
        let (a, b) = both(|boot| boot.tables);
        line("bytes of tables a function", a, b);
        for (a, b) in ours.shared.iter().zip(&theirs.shared) {
            let domain = format!("{} on a domain", a.0);
            line(&format!("{domain}: ns an attach"), a.1 / a.0, b.1 / b.0);
            line(&format!("{domain}: ns a full flush"), a.2, b.2);
        }
        if let (Some(a), Some(b)) = (ours.unplugged, theirs.unplugged) {
            line(&format!("{} unplugged: microseconds, all", a.0), a.1, b.1);
            line("microseconds, the median", a.2, b.2);
        }
        Ok(table.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generator_is_behind_a_bridge() {
        let devices = devices(2 * BEHIND);
        let devices: Vec<&str> = devices.split(' ').collect();
        assert_eq!(devices.len(), 2 * (2 * BEHIND + 2) + 1);
        assert!(devices[2 * BEHIND + 5].ends_with("bus=b1"));
    }
}
