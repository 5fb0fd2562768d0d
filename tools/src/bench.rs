// SPDX-License-Identifier: GPL-2.0
//! `make bench`: what map, unmap and a full flush cost, beside the C driver and
//! beside the bounds that this project has set itself.

mod chart;
mod functions;
mod judge;
mod scale;
mod table;
mod throughput;

use crate::{prelude::*, qemu::COUNTING};
use functions::Functions;
use scale::Scale;
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;

/// A boot takes a tenth of this.
const LIMIT: Duration = Duration::from_secs(300);
/// How often each boot that counts instructions is done.
const RUNS: usize = 2;
/// A window of 64 GiB, on a machine with 2 GiB.
const WIDE: &str = "flush s390_iommu_aperture=32";

/// The kernels, and for each the boots that count instructions: a name, and what the
/// kernel's command line gets.
type Guests = &'static [(&'static str, &'static str)];
const PLANS: [(&str, Guests); 2] = [
    (
        "rust",
        &[
            (OFF, "s390_iommu.large_pages=0"),
            (ON, "s390_iommu.large_pages=1"),
        ],
    ),
    ("c", &[(C, "")]),
];

/// This driver without large pages of 1 MiB.
const OFF: &str = "large off";
const ON: &str = "large on";
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

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Cost {
    map: u64,
    unmap: u64,
}

/// All figures of one boot, by what was measured (`driver`, `x86-64`, `floor`,
/// `floor2`), a blank, and the name of the case.
type Figures = BTreeMap<String, Cost>;

/// Full flushes: batches of unmaps in one corner of a wide window.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Flush {
    window: u64,
    /// Pages that stay mapped.
    live: u64,
    /// Pages of a batch, and where they start.
    pages: u64,
    batches: u64,
    #[serde(rename(deserialize = "start"))]
    corner: u64,
    /// Nanoseconds of a batch, the best and the median.
    best: u64,
    median: u64,
    /// RPCIT of all batches, the bytes that they name, and the first of them.
    ranges: u64,
    bytes: u64,
    #[serde(rename(deserialize = "first"))]
    first_start: u64,
    #[serde(rename(deserialize = "size"))]
    first_size: u64,
}

#[derive(Default, Serialize)]
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
    functions: BTreeMap<&'static str, [Functions; 2]>,
}

pub fn run(project: &Project) -> Result<()> {
    project.ensure_no_kout("bench")?;
    match text("ONLY").as_deref() {
        Some("throughput") => return throughput::run(project),
        Some(only) => bail!("bench: ONLY={only}: it is throughput or nothing"),
        None => (),
    }
    let mut bench = Bench {
        runs: RUNS,
        ..Bench::default()
    };
    for (flavour, guests) in PLANS {
        bench.measure(project, flavour, guests)?;
    }
    let bounds = bench.judge()?;
    print!("{}", table::of(&bench, &bounds)?);
    let panels = chart::of_calls(&bench)?;
    write(project, "bench", &table::record(&bench, &bounds)?, &panels)?;
    let faults = judge::faults(&bench, &bounds);
    ensure!(faults.is_empty(), "bench: {}", faults.join("; "));
    Ok(())
}

/// Writes figures for programs, and a chart.
fn write(
    project: &Project,
    name: &str,
    record: &impl Serialize,
    panels: &[chart::Panel; 2],
) -> Result<()> {
    let folder = project.build.join("bench");
    fs::create_dir_all(&folder)?;
    let at = |kind: &str| folder.join(format!("{name}.{kind}"));
    let (json, svg) = (at("json"), at("svg"));
    let text = serde_json::to_string_pretty(record)?;
    fs::write(&json, text + "\n")?;
    chart::draw(panels, &svg)?;
    println!("written: {json} and {svg}");
    Ok(())
}

impl Bench {
    /// Builds a kernel and measures all that is to be measured on it.
    fn measure(&mut self, project: &Project, name: &'static str, guests: Guests) -> Result<()> {
        let machine = Machine::prepare(project, name)?;
        self.kernel = machine.version.to_string();
        for (guest, append) in guests {
            for run in 1..=RUNS {
                let log = format!("bench-{}-{run}", guest.replace(' ', "-").to_lowercase());
                let lines = measure(project, &machine, &log, &format!("map {append}"), |boot| {
                    boot.clock = COUNTING;
                    boot.processors = 1;
                })?;
                let figures = figures(&lines)?;
                let first = self.guests.entry(guest).or_insert_with(|| figures.clone());
                self.differences.extend(differences(guest, first, &figures));
            }
        }
        let log = format!("bench-flush-{name}");
        self.flush.insert(
            name,
            flush(&measure(project, &machine, &log, WIDE, |_| {})?)?,
        );

        let log = format!("bench-scale-{name}");
        let lines = measure(project, &machine, &log, "scale", |boot| {
            boot.processors = scale::CPUS[scale::CPUS.len() - 1];
        })?;
        self.scale.insert(name, Scale::read(&lines)?);

        let functions = functions::MACHINES.map(|count| {
            let log = format!("bench-functions-{count}-{name}");
            let devices = functions::devices(count);
            let lines = measure(project, &machine, &log, "functions", |boot| {
                boot.devices = &devices;
            })?;
            Functions::read(&lines)
        });
        let [few, many] = functions;
        self.functions.insert(name, [few?, many?]);
        Ok(())
    }

    fn cost(&self, guest: &str, subject: &str, case: &Case) -> Result<Cost> {
        let figures = get(&self.guests, guest)?;
        get(figures, &format!("{subject} {}", case.name)).copied()
    }
}

/// What was measured of a name.
fn get<'a, K: Borrow<str> + Ord, T>(all: &'a BTreeMap<K, T>, name: &str) -> Result<&'a T> {
    let figures = all.get(name);
    figures.with_context(|| format!("bench: the guest printed no figure of {name}"))
}

/// What was measured with this driver, and with the one in C.
fn pair<'a, T>(all: &'a BTreeMap<&str, T>) -> Result<(&'a T, &'a T)> {
    Ok((get(all, "rust")?, get(all, "c")?))
}

/// Boots and returns what the guest measured, a line each.
fn measure<'a>(
    project: &Project,
    machine: &'a Machine,
    name: &'a str,
    what: &str,
    change: impl FnOnce(&mut Boot<'a>),
) -> Result<Vec<String>> {
    let append = format!("guest.mode=bench guest.bench={what}");
    let mut boot = machine.boot(name, append, LIMIT);
    change(&mut boot);
    let step = Step::start(project, name, "measuring in the guest")?;
    let mut lines = Vec::new();
    let report = boot.run(project, |line| {
        lines.extend(line.strip_prefix("bench: ").map(str::to_owned));
    })?;
    let faults = report.faults(false);
    ensure!(
        faults.is_empty(),
        "{name}: {}; its console is {}",
        faults.join("; "),
        project.console(name)
    );
    step.done(&format!("{} lines", lines.len()));
    Ok(lines)
}

/// The lines of a kind: their names, and their numbers. A negative figure counts as 0.
fn rows<'a, const NAMES: usize, const NUMBERS: usize>(
    lines: &'a [String],
    kind: &str,
) -> Result<Vec<([&'a str; NAMES], [u64; NUMBERS])>> {
    let mut rows = Vec::new();
    for line in lines {
        let mut fields = line.split_whitespace();
        if fields.next() != Some(kind) {
            continue;
        }
        let (mut names, mut numbers) = (Vec::new(), Vec::new());
        for field in fields {
            match field.parse::<i64>() {
                Ok(number) => numbers.push(number.max(0) as u64),
                Err(_) => names.push(field),
            }
        }
        match (names.try_into(), numbers.try_into()) {
            (Ok(names), Ok(numbers)) => rows.push((names, numbers)),
            _ => bail!("bench: {line:?} is not understood"),
        }
    }
    Ok(rows)
}

/// Reads `figure SUBJECT CASE MAP UNMAP`.
fn figures(lines: &[String]) -> Result<Figures> {
    let rows = rows(lines, "figure")?.into_iter();
    let figures = rows
        .map(|([subject, case], [map, unmap])| (format!("{subject} {case}"), Cost { map, unmap }));
    Ok(figures.collect())
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

/// Reads lines of names and values: `window V live N`, `batch pages N ...`.
fn flush(lines: &[String]) -> Result<Flush> {
    let mut values = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split_whitespace().collect();
        for pair in fields.windows(2) {
            let number = match pair[1].strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => pair[1].parse(),
            };
            values.extend(number.map(|number| (pair[0], number)));
        }
    }
    let values = serde_json::to_value(values)?;
    serde_json::from_value(values).context("bench: the guest did not print all of a flush")
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
            for (subject, cost) in [
                ("lookup", 1),
                ("driver", base),
                ("attached", 1),
                ("x86-64", 1),
                ("floor", 0),
                ("floor2", 0),
            ] {
                text += &format!("figure {subject} {} {cost} {cost}\n", case.name);
            }
        }
        let figures = figures(&lines(&text)).unwrap();
        Bench {
            guests: [OFF, ON, C].map(|guest| (guest, figures.clone())).into(),
            flush: ["rust", "c"].map(|name| (name, Flush::default())).into(),
            scale: ["rust", "c"].map(|name| (name, scale(100))).into(),
            ..Bench::default()
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

    fn faults(bench: &Bench) -> Vec<String> {
        judge::faults(bench, &bench.judge().unwrap())
    }

    #[test]
    fn a_figure_over_its_bound_is_a_fault() {
        assert!(faults(&bench(168)).is_empty());
        let over = "4K unmap, large off: 169 is over 168";
        assert_eq!(faults(&bench(169)), [over]);
    }

    #[test]
    fn refreshes_must_not_cost_more_than_in_c() {
        let mut bench = bench(100);
        let on = bench.guests.get_mut(ON).unwrap();
        on.get_mut("attached 4K").unwrap().unmap += 1;
        let over = "attached unmap, 4K: 2 is over 1";
        assert_eq!(faults(&bench), [over]);
    }

    #[test]
    fn large_pages_must_not_cost_a_share() {
        let mut bench = bench(100);
        let on = bench.guests.get_mut(ON).unwrap();
        on.get_mut("driver 64K").unwrap().map += 1;
        let over = "64K map, share with large: 101 is over 100";
        assert_eq!(faults(&bench), [over]);
    }

    #[test]
    fn a_missing_figure_or_one_that_changes_is_a_fault() {
        let mut bench = bench(1);
        bench.differences.push("x".into());
        assert_eq!(faults(&bench).len(), 1);
        bench.guests.get_mut(ON).unwrap().remove("driver 1G");
        assert!(bench.judge().is_err());
    }
}
