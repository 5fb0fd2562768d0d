// SPDX-License-Identifier: GPL-2.0
//! How maps and unmaps scale with the CPUs that do them, and what tables take.

use super::{
    get,
    judge::Bound,
    pair, rows,
    table::{digits, ratio, Table},
    Bench,
};
use crate::prelude::*;
use serde::Serialize;
use std::thread;

/// The numbers of CPUs: a guest has as many as the last one.
pub const CPUS: [u8; 4] = [1, 2, 4, 8];
/// Where the CPUs' pages are: the name in the guest's lines, and a title.
const LAYOUTS: [(&str, &str); 2] = [("apart", "ranges apart"), ("leaf", "one page table")];
/// How a GiB is mapped and unmapped.
const PATTERNS: [(&str, &str); 4] = [
    ("dense", "at once"),
    ("pieces", "in pieces of 1 MiB"),
    ("pages", "in pieces of 64 KiB"),
    ("scattered", "4 KiB of each MiB"),
];
/// The driver, and the generic page table that was measured in the same boot.
const DRIVER: &str = "driver";
const GENERIC: &str = "x86-64";
/// What the page tables of a dense GiB take at most: a page for each MiB, and a few
/// upper tables.
const DENSE: u64 = (1024 + 16) * 4096;

/// How far the figures of slabs may be off, in bytes.
const SLABS: u64 = 32 * 4096;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Memory {
    mapped: u64,
    /// Bytes of tables meanwhile, and after all was unmapped.
    tables: u64,
    left: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Scale {
    /// Pairs of a map and an unmap a second, by subject, layout and CPUs: one figure a
    /// round.
    rates: BTreeMap<String, Vec<u64>>,
    /// By subject and pattern.
    memory: BTreeMap<String, Memory>,
}

impl Scale {
    /// Reads `scale SUBJECT LAYOUT CPUS RATE` and `memory SUBJECT PATTERN MAPPED TABLES
    /// LEFT`.
    pub fn read(lines: &[String]) -> Result<Self> {
        let mut scale = Scale::default();
        for ([subject, layout], [cpus, rate]) in rows(lines, "scale")? {
            let name = format!("{subject} {layout} {cpus}");
            scale.rates.entry(name).or_default().push(rate);
        }
        for ([subject, pattern], [mapped, tables, left]) in rows(lines, "memory")? {
            let memory = Memory {
                mapped,
                tables,
                left,
            };
            scale.memory.insert(format!("{subject} {pattern}"), memory);
        }
        scale.rates.values_mut().for_each(|rates| rates.sort());
        Ok(scale)
    }

    /// Pairs a second, from the lowest to the highest.
    fn rates(&self, subject: &str, layout: &str, cpus: u8) -> Result<&[u64]> {
        Ok(get(&self.rates, &format!("{subject} {layout} {cpus}"))?)
    }

    /// The driver's pairs over those of the generic page table, in percent: those of the
    /// best rounds, which others on this machine disturbed least.
    fn percent(&self, layout: &str, cpus: u8) -> Result<u64> {
        let [ours, generic] = [DRIVER, GENERIC].map(|subject| {
            let rates = self.rates(subject, layout, cpus)?;
            anyhow::Ok(rates[rates.len() - 1])
        });
        Ok(ours? * 100 / generic?.max(1))
    }

    fn memory(&self, subject: &str, pattern: &str) -> Result<Memory> {
        get(&self.memory, &format!("{subject} {pattern}")).copied()
    }
}

/// How many CPUs of a guest run at the same time on this machine.
fn cores() -> u8 {
    thread::available_parallelism().map_or(1, |cores| cores.get().min(u8::MAX.into()) as u8)
}

impl Bench {
    /// Bounds of rates, for as many CPUs as run at the same time, and of memory.
    pub fn judge_scale(&self) -> Result<Vec<Bound>> {
        let (ours, theirs) = pair(&self.scale)?;
        let mut bounds = Vec::new();
        for (layout, _) in LAYOUTS {
            for cpus in CPUS.into_iter().filter(|cpus| *cpus <= cores()) {
                let (limit, figure) = (ours.percent(layout, cpus)?, theirs.percent(layout, cpus)?);
                let what = "C driver's pairs over generic_pt's, and ours, in %";
                bounds.push(Bound::new("scale", "both", what, figure, limit));
            }
        }
        let dense = ours.memory(DRIVER, "dense")?.tables;
        bounds.push(Bound::new("memory", "map", "tables of a GiB", dense, DENSE));
        for (pattern, _) in PATTERNS {
            let (ours, theirs) = (
                ours.memory(DRIVER, pattern)?,
                theirs.memory(DRIVER, pattern)?,
            );
            // A table takes a page here, and half of one there; slabs may not be full.
            let limit = 2 * theirs.left + SLABS;
            let what = "tables left, and twice the C driver's";
            bounds.push(Bound::new("memory", "unmap", what, ours.left, limit));
        }
        Ok(bounds)
    }

    pub fn scale_table(&self) -> Result<String> {
        let (ours, theirs) = pair(&self.scale)?;
        let head = format!(
            "Pairs of a map and an unmap of 4 KiB a second, median (lowest to highest); judged \
             up to {} CPUs",
            cores()
        );
        let mut rates = Table::new(&head, &[16, 5, 36, 36, 10, 10, 9]);
        let columns = "CPUs|this driver|C driver|/generic|/generic|ours/C";
        rates.line("", columns.split('|'));
        for (layout, title) in LAYOUTS {
            for cpus in CPUS {
                let (a, b) = (ours.percent(layout, cpus)?, theirs.percent(layout, cpus)?);
                let ratios = [a as f64 / 100.0, b as f64 / 100.0, ratio(a, b)];
                let spreads = [
                    cpus.to_string(),
                    spread(ours.rates(DRIVER, layout, cpus)?),
                    spread(theirs.rates(DRIVER, layout, cpus)?),
                ];
                let ratios = ratios.map(|ratio| format!("{ratio:.2}"));
                rates.line(title, spreads.into_iter().chain(ratios));
            }
        }
        let head = "Bytes of tables for a GiB, and what is left when all was unmapped";
        let mut memory = Table::new(head, &[22, 14, 13, 11, 13, 11, 13, 11]);
        let columns = "mapped|this driver|left|C driver|left|generic_pt|left";
        memory.line("", columns.split('|'));
        for (pattern, title) in PATTERNS {
            let a = ours.memory(DRIVER, pattern)?;
            let b = theirs.memory(DRIVER, pattern)?;
            let c = ours.memory(GENERIC, pattern)?;
            let tables = [a, b, c]
                .into_iter()
                .flat_map(|memory| [memory.tables, memory.left]);
            memory.line(title, [a.mapped].into_iter().chain(tables).map(digits));
        }
        Ok(rates.text + &memory.text)
    }
}

pub fn spread(sorted: &[u64]) -> String {
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    let middle = digits(sorted[sorted.len() / 2]);
    format!("{middle} ({} to {})", digits(low), digits(high))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a guest prints: as many pairs a second as `rate` everywhere.
    pub fn scale(rate: u64) -> Scale {
        let mut lines = Vec::new();
        for subject in [DRIVER, GENERIC] {
            let rate = if subject == DRIVER { rate } else { 100 };
            for (layout, _) in LAYOUTS {
                let line = |cpus| format!("scale {subject} {layout} {cpus} {rate}");
                lines.extend(CPUS.map(line));
            }
            let line = |(pattern, _)| format!("memory {subject} {pattern} 1024 2048 -4096");
            lines.extend(PATTERNS.map(line));
        }
        Scale::read(&lines).unwrap()
    }

    #[test]
    fn rates_are_in_order_and_nothing_is_below_nothing() {
        let lines = ["scale driver leaf 1 7", "scale driver leaf 1 5"].map(str::to_owned);
        let read = Scale::read(&lines).unwrap();
        assert_eq!(read.rates(DRIVER, "leaf", 1).unwrap(), [5, 7]);
        assert!(read.rates(DRIVER, "leaf", 2).is_err());
        assert_eq!(scale(1).memory(DRIVER, "dense").unwrap().left, 0);
    }

    #[test]
    fn fewer_pairs_than_the_other_driver_are_a_fault() {
        let mut bench = super::super::tests::bench(1);
        bench.scale.insert("rust", scale(99));
        let missed = |bench: &Bench| {
            let bounds = bench.judge_scale().unwrap();
            bounds.iter().filter(|bound| !bound.met).count()
        };
        assert!(missed(&bench) >= LAYOUTS.len());
        bench.scale.insert("rust", scale(101));
        assert_eq!(missed(&bench), 0);
    }
}
