// SPDX-License-Identifier: GPL-2.0
//! `make bench`: what map, unmap and a full flush cost, beside the C driver and
//! beside the bounds that this project has set itself.

mod chart;
mod functions;
mod judge;
mod scale;
mod table;

use crate::{guest::Machine, kernel::Flavour, project::Project, qemu::Boot, steps::Step};
use anyhow::{bail, Context, Result};
use fs_err as fs;
use functions::Functions;
use scale::Scale;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A boot takes a tenth of this.
const LIMIT: Duration = Duration::from_secs(300);
/// Every boot that counts instructions is done so often.
const RUNS: usize = 2;
/// A window of 64 GiB, on a machine with 2 GiB.
const WIDE: &str = "guest.mode=bench guest.bench=flush s390_iommu_aperture=32";

/// What the guest's clock counts.
#[derive(Clone, Copy)]
enum Clock {
    /// Instructions, on one processor.
    Instructions,
    /// Time, on so many.
    Time(u8),
}

/// A kernel and what to measure on it.
struct Plan {
    flavour: &'static str,
    /// The boots that count instructions: a name, and words for the kernel.
    guests: &'static [(&'static str, &'static str)],
}

const PLANS: [Plan; 2] = [
    Plan {
        flavour: "rust",
        guests: &[
            (OFF, "s390_iommu.large_pages=0"),
            (ON, "s390_iommu.large_pages=1"),
        ],
    },
    Plan {
        flavour: "c",
        guests: &[(C, "")],
    },
];

/// This driver without large pages of 1 MiB.
const OFF: &str = "large off";
/// This driver with them.
const ON: &str = "large on";
/// The C driver.
const C: &str = "C driver";

/// What is mapped and unmapped: its name in the guest's lines, its title, and
/// how many pages it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Case {
    name: &'static str,
    title: &'static str,
    pages: u64,
}

const fn case(name: &'static str, title: &'static str, pages: u64) -> Case {
    Case { name, title, pages }
}

const CASES: [Case; 6] = [
    case("4K", "4 KiB", 1),
    case("64K", "64 KiB", 16),
    case("1M", "1 MiB, pages", 256),
    case("64M", "64 MiB, pages", 16_384),
    case("1G", "1 GiB, largest", 262_144),
    case("singles", "256 single pages", 256),
];

/// Instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Cost {
    map: u64,
    unmap: u64,
}

/// All figures of one boot, by what was measured (`driver`, `x86-64`, `floor`,
/// `floor2`), a blank, and the name of the case.
type Figures = BTreeMap<String, Cost>;

/// Full flushes: batches of unmaps in one corner of a wide window.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
struct Flush {
    /// Bytes of the window.
    window: u64,
    /// Pages that stay mapped.
    live: u64,
    /// Pages of a batch.
    pages: u64,
    batches: u64,
    /// Where the pages of a batch start.
    corner: u64,
    /// Nanoseconds of a batch, the best and the median.
    best: u64,
    median: u64,
    /// RPCIT of all batches, and the bytes that they name.
    ranges: u64,
    bytes: u64,
    /// The first of them.
    first_start: u64,
    first_size: u64,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Bench {
    kernel: String,
    /// Boots of each guest, whose figures must be the same.
    runs: usize,
    /// Figures that were not.
    differences: Vec<String>,
    guests: BTreeMap<&'static str, Figures>,
    /// By flavour.
    flush: BTreeMap<&'static str, Flush>,
    /// By flavour.
    scale: BTreeMap<&'static str, Scale>,
    /// By flavour: a machine with few functions, and one with many.
    functions: BTreeMap<&'static str, Vec<Functions>>,
}

/// `make bench`.
pub fn run(project: &Project) -> Result<()> {
    if project.kout.is_some() {
        bail!("bench: two kernels do not fit into one KOUT=; leave it out");
    }
    let mut bench = Bench {
        kernel: String::new(),
        runs: RUNS,
        differences: Vec::new(),
        guests: BTreeMap::new(),
        flush: BTreeMap::new(),
        scale: BTreeMap::new(),
        functions: BTreeMap::new(),
    };
    for plan in &PLANS {
        bench.measure(project, plan)?;
    }
    let verdict = bench.judge()?;
    print!("{}", table::of(&bench, &verdict)?);
    let folder = project.build.join("bench");
    fs::create_dir_all(&folder)?;
    let (json, svg) = (folder.join("bench.json"), folder.join("bench.svg"));
    let text = serde_json::to_string_pretty(&table::record(&bench, &verdict)?)?;
    fs::write(&json, text + "\n").with_context(|| format!("cannot write {}", json.display()))?;
    chart::draw(&bench, &svg).with_context(|| format!("cannot write {}", svg.display()))?;
    println!("written: {} and {}", json.display(), svg.display());
    let faults = verdict.faults(&bench);
    if !faults.is_empty() {
        bail!("bench: {}", faults.join("; "));
    }
    Ok(())
}

impl Bench {
    /// Builds a kernel and measures all that is to be measured on it.
    fn measure(&mut self, project: &Project, plan: &Plan) -> Result<()> {
        let flavour: Flavour = vec![plan.flavour.to_owned()];
        let machine = Machine::prepare(project, &flavour)?;
        self.kernel = machine.version.to_string();
        for (name, words) in plan.guests {
            let append = format!("guest.mode=bench guest.bench=map {words}");
            let mut first: Option<Figures> = None;
            for run in 1..=RUNS {
                let log = format!("bench-{}-{run}", name.replace(' ', "-").to_lowercase());
                let lines = boot(
                    project,
                    &machine,
                    &log,
                    append.clone(),
                    Clock::Instructions,
                    &[],
                )?;
                let figures = figures(&lines)?;
                match &first {
                    None => first = Some(figures),
                    Some(first) => self.differences.extend(differences(name, first, &figures)),
                }
            }
            self.guests.insert(name, first.unwrap_or_default());
        }
        let log = format!("bench-flush-{}", plan.flavour);
        let lines = boot(
            project,
            &machine,
            &log,
            WIDE.to_owned(),
            Clock::Time(2),
            &[],
        )?;
        self.flush.insert(plan.flavour, flush(&lines)?);
        let log = format!("bench-scale-{}", plan.flavour);
        let append = "guest.mode=bench guest.bench=scale".to_owned();
        let clock = Clock::Time(scale::CPUS[scale::CPUS.len() - 1]);
        let lines = boot(project, &machine, &log, append, clock, &[])?;
        self.scale.insert(plan.flavour, Scale::read(&lines)?);
        for count in functions::MACHINES {
            let log = format!("bench-functions-{count}-{}", plan.flavour);
            let append = "guest.mode=bench guest.bench=functions".to_owned();
            let devices = functions::devices(count);
            let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
            let lines = boot(project, &machine, &log, append, Clock::Time(2), &devices)?;
            let figures = Functions::read(&lines)?;
            self.functions
                .entry(plan.flavour)
                .or_default()
                .push(figures);
        }
        Ok(())
    }

    fn cost(&self, guest: &str, subject: &str, case: &Case) -> Result<Cost> {
        let name = format!("{subject} {}", case.name);
        let cost = self.guests.get(guest).and_then(|all| all.get(&name));
        cost.copied()
            .with_context(|| format!("bench: {guest}: the guest printed no figure of {name}"))
    }
}

/// Boots and returns what the guest measured, a line each.
fn boot(
    project: &Project,
    machine: &Machine,
    name: &str,
    append: String,
    clock: Clock,
    devices: &[&str],
) -> Result<Vec<String>> {
    let step = Step::start(project, name, "measuring in the guest")?;
    let boot = Boot {
        counts_instructions: matches!(clock, Clock::Instructions),
        processors: match clock {
            Clock::Instructions => 1,
            Clock::Time(processors) => processors,
        },
        devices,
        ..machine.boot(name, append, LIMIT)
    };
    let mut lines = Vec::new();
    let report = boot.run(project, |line| {
        lines.extend(line.strip_prefix("bench: ").map(str::to_owned));
    })?;
    let faults = report.faults(false);
    if !faults.is_empty() {
        bail!(
            "{name}: {}; its console is {}",
            faults.join("; "),
            project.logs.join(format!("{name}.console.log")).display()
        );
    }
    step.done(&format!("{} lines", lines.len()));
    Ok(lines)
}

/// Reads `figure SUBJECT CASE MAP UNMAP`.
fn figures(lines: &[String]) -> Result<Figures> {
    let mut all = Figures::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["figure", subject, case, map, unmap] = words[..] {
            let cost = Cost {
                map: map.parse()?,
                unmap: unmap.parse()?,
            };
            all.insert(format!("{subject} {case}"), cost);
        }
    }
    Ok(all)
}

/// What differs between two boots of the same guest.
fn differences(guest: &str, first: &Figures, second: &Figures) -> Vec<String> {
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let texts = names.into_iter().filter_map(|name| {
        let (before, after) = (first.get(name), second.get(name));
        let text = || format!("{guest}: {name}: {before:?}, then {after:?}");
        (before != after).then(text)
    });
    texts.collect()
}

/// Reads lines of words and values: `window V live N`, `batch pages N ...`.
fn flush(lines: &[String]) -> Result<Flush> {
    let value = |line: &str, word: &str| -> Result<u64> {
        let line = lines.iter().find(|text| text.starts_with(line));
        let mut words = line.map(|text| text.split_whitespace()).into_iter();
        let text = words.find_map(|mut words| {
            words.find(|found| *found == word)?;
            words.next()
        });
        let text = text.with_context(|| format!("bench: the guest printed no {word}"))?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.with_context(|| format!("bench: {word} {text}"))
    };
    Ok(Flush {
        window: value("window ", "window")?,
        live: value("window ", "live")?,
        pages: value("batch ", "pages")?,
        batches: value("batch ", "batches")?,
        corner: value("batch ", "start")?,
        best: value("time ", "best")?,
        median: value("time ", "median")?,
        ranges: value("refreshed ", "ranges")?,
        bytes: value("refreshed ", "bytes")?,
        first_start: value("refreshed ", "first")?,
        first_size: value("refreshed ", "size")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{scale::tests::scale, *};

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    /// What a guest prints; every figure is `base`, the floor's 0.
    pub(super) fn bench(base: u64) -> Bench {
        let mut text = String::new();
        for case in &CASES {
            for (subject, cost) in [("driver", base), ("x86-64", 1), ("floor", 0), ("floor2", 0)] {
                text += &format!("figure {subject} {} {cost} {cost}\n", case.name);
            }
        }
        let figures = figures(&lines(&text)).unwrap();
        Bench {
            kernel: String::new(),
            runs: RUNS,
            differences: Vec::new(),
            guests: [OFF, ON, C].map(|guest| (guest, figures.clone())).into(),
            flush: ["rust", "c"].map(|name| (name, Flush::default())).into(),
            scale: ["rust", "c"].map(|name| (name, scale(100))).into(),
            functions: BTreeMap::new(),
        }
    }

    #[test]
    fn a_flush_is_read() {
        let text = "window 0x1000 live 32\nbatch pages 256 batches 101 start 0xf00\n\
                    time best 7 median 9\nrefreshed ranges 101 bytes 512 first 0x10 size 0x20\n";
        let read = flush(&lines(text)).unwrap();
        assert_eq!((read.window, read.live, read.median), (0x1000, 32, 9));
        assert_eq!((read.ranges, read.bytes, read.first_size), (101, 512, 0x20));
        assert!(flush(&lines("window 0x1000")).is_err());
    }

    #[test]
    fn what_differs_is_named() {
        let read = |text| figures(&lines(text)).unwrap();
        let (a, b) = (read("figure driver 4K 1 2"), read("figure driver 4K 1 3"));
        assert!(differences("x", &a, &a).is_empty());
        assert_eq!(differences("x", &a, &b).len(), 1);
        assert_eq!(differences("x", &a, &Figures::new()).len(), 1);
    }

    #[test]
    fn a_figure_over_its_bound_is_a_fault() {
        let good = bench(168);
        assert!(good.judge().unwrap().faults(&good).is_empty());
        let bad = bench(169);
        let faults = bad.judge().unwrap().faults(&bad);
        assert_eq!(faults, ["4K unmap, large off: 169 is over 168"]);
    }

    #[test]
    fn large_pages_must_not_cost_a_share() {
        let mut bench = bench(100);
        let on = bench.guests.get_mut(ON).unwrap();
        on.get_mut("driver 64K").unwrap().map += 1;
        let faults = bench.judge().unwrap().faults(&bench);
        assert_eq!(faults, ["64K map, share with large: 101 is over 100"]);
    }

    #[test]
    fn a_missing_figure_or_one_that_changes_is_a_fault() {
        let mut bench = bench(1);
        bench.differences.push("x".into());
        assert_eq!(bench.judge().unwrap().faults(&bench).len(), 1);
        bench.guests.get_mut(ON).unwrap().remove("driver 1G");
        assert!(bench.judge().is_err());
    }
}
