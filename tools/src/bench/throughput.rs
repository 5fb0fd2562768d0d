// SPDX-License-Identifier: GPL-2.0
//! What devices move in a second with each driver: by fio and iperf3, in boots that take
//! turns, so that the host's other load affects both. In further boots, the guest's
//! instructions for a load of a fixed size, which depend less on the host.

use super::{
    chart::{Panel, Series, OURS, THEIRS},
    get,
    judge::Bound,
    measure, rows,
    scale::spread,
    table::{ratio, Table},
    write,
};
use crate::{
    inner,
    prelude::*,
    qemu::{COUNTING_WORK, EVERYTHING},
};
use serde::Serialize;

/// Boots of each driver in each mode: were both the same, all of one would be slower than
/// all of the other once in 252 times.
const ROUNDS: usize = 5;
/// No boot that counts instructions takes this long.
const COUNTED_LIMIT: Duration = Duration::from_secs(1200);
/// The DMA API's modes: a name, and what the kernel's command line gets.
const MODES: [(&str, &str); 2] = [("lazy", "iommu.strict=0"), ("strict", "iommu.strict=1")];
/// The drivers, and so the kernels.
const DRIVERS: [&str; 2] = ["rust", "c"];

/// What was measured of one load.
#[derive(Default, Serialize)]
struct Figures {
    /// KiB a second, in order; one figure a boot.
    rates: Vec<u64>,
    /// Requests of a drive or maps and unmaps of cards, and refreshes, in all boots.
    requests: u64,
    refreshes: u64,
    /// Where instructions are counted: instructions and requests.
    instructions: u64,
    counted: u64,
}

impl Figures {
    fn median(&self) -> u64 {
        self.rates[self.rates.len() / 2]
    }

    /// The lowest rate, the median, and the highest.
    fn bar(&self) -> [u64; 3] {
        [
            self.rates[0],
            self.median(),
            self.rates[self.rates.len() - 1],
        ]
    }

    fn instructions_a_request(&self) -> u64 {
        self.instructions / self.counted.max(1)
    }

    /// Refreshes of a thousand requests.
    fn refreshes_a_thousand(&self) -> u64 {
        self.refreshes * 1000 / self.requests.max(1)
    }
}

/// By load, mode and driver: `randread-4k-1 lazy rust`.
type Throughput = BTreeMap<String, Figures>;

/// Adds what a boot printed: `throughput LOAD RATE REQUESTS REFRESHES NANOSECONDS`.
fn add(
    all: &mut Throughput,
    (mode, driver): (&str, &str),
    counted: bool,
    lines: &[String],
) -> Result<()> {
    for ([load], [rate, requests, refreshes, nanoseconds]) in rows(lines, "throughput")? {
        let figures = all.entry(format!("{load} {mode} {driver}")).or_default();
        if counted {
            figures.instructions += nanoseconds;
            figures.counted += requests;
        } else {
            figures.rates.push(rate);
            figures.rates.sort();
        }
        figures.requests += requests;
        figures.refreshes += refreshes;
    }
    Ok(())
}

/// `make bench ONLY=throughput`.
pub fn run(project: &Project) -> Result<()> {
    let all = measure_all(project)?;
    print!("{}", table(&all)?);
    write(project, "throughput", &all, &panels(&all)?)?;
    let bounds = judge(&all)?;
    let missed: Vec<_> = bounds.iter().filter(|bound| !bound.met).collect();
    for bound in &missed {
        println!("{}: {}, {}", bound.what, bound.figure, bound.limit);
    }
    ensure!(
        missed.is_empty(),
        "bench: {} bounds are missed",
        missed.len()
    );
    Ok(())
}

/// Boots both kernels in turns.
fn measure_all(project: &Project) -> Result<Throughput> {
    let load = inner::LOAD.archive(project, None)?;
    let mut machines = Vec::new();
    for driver in DRIVERS {
        let fragments = format!("{driver},throughput");
        let machine = Machine::prepare(project, &fragments)?.corrected(project)?;
        let name = format!("throughput-{driver}");
        machines.push((
            driver,
            machine.with_archives(project, &name, [load.clone()])?,
        ));
    }
    let mut all = Throughput::new();
    // In round 0, instructions are counted.
    for round in 0..=ROUNDS {
        let counted = round == 0;
        // Which of them is first must not make a difference.
        machines.reverse();
        for (mode, append) in MODES {
            for (driver, machine) in &machines {
                let log = format!("bench-throughput-{mode}-{driver}-{round}");
                let counts = if counted { "guest.counted=1" } else { "" };
                let what = format!("throughput {append} {counts}");
                let lines = measure(project, machine, &log, &what, |boot| {
                    boot.plugged = EVERYTHING;
                    if counted {
                        boot.clock = COUNTING_WORK;
                        boot.processors = 1;
                        boot.limit = COUNTED_LIMIT;
                    }
                })?;
                add(&mut all, (mode, driver), counted, &lines)?;
            }
        }
    }
    Ok(all)
}

/// The loads that both drivers had: their names, ours, and the C driver's.
fn loads(all: &Throughput) -> Result<Vec<(String, &Figures, &Figures)>> {
    let ours = all.iter().filter_map(|(name, figures)| {
        let load = name.strip_suffix(" rust")?;
        Some((load.to_owned(), figures))
    });
    ours.map(|(load, ours)| {
        let theirs = get(all, &format!("{load} c"))?;
        Ok((load, ours, theirs))
    })
    .collect()
}

/// No load takes more refreshes than with the C driver, or is slower in all boots; and all
/// of a mode do not take more instructions. A single load differs between two boots with the
/// same driver, by up to 2 %, a received stream by 7 %.
fn judge(all: &Throughput) -> Result<Vec<Bound>> {
    let mut bounds = Vec::new();
    for (load, ours, theirs) in loads(all)? {
        let ([.., best], [worst, ..]) = (ours.bar(), theirs.bar());
        let mut bound = |what: &str, figure, limit| {
            let what = format!("{load}: {what}");
            bounds.push(Bound::new("throughput", "both", what, figure, limit));
        };
        bound("C driver's slowest boot, and our fastest", worst, best);
        let (ours, theirs) = (ours.refreshes_a_thousand(), theirs.refreshes_a_thousand());
        bound(
            "refreshes of a thousand requests, and the C driver's",
            ours,
            theirs,
        );
    }
    for (mode, _) in MODES {
        let ratios = loads(all)?
            .into_iter()
            .filter(|(load, ..)| load.ends_with(mode));
        let ratios: Vec<f64> = ratios
            .map(|(_, ours, theirs)| instructions(ours, theirs))
            .collect();
        if ratios.is_empty() {
            continue;
        }
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
        let thousandths = (mean.exp() * 1000.0).round() as u64;
        let what = format!("{mode}: instructions of all loads, thousandths of the C driver's");
        bounds.push(Bound::new("throughput", "both", what, thousandths, 1000));
    }
    Ok(bounds)
}

/// Instructions of a request over those with the C driver.
fn instructions(ours: &Figures, theirs: &Figures) -> f64 {
    ratio(
        ours.instructions_a_request(),
        theirs.instructions_a_request(),
    )
}

fn table(all: &Throughput) -> Result<String> {
    let mut table = Table::new(
        "KiB a second by fio (order, size, depth) and iperf3, median (lowest to highest)",
        &[26, 34, 34, 9, 14, 13, 13],
    );
    let head = [
        "this driver",
        "C driver",
        "ours/C",
        "instructions",
        "RPCIT/1000",
        "C driver",
    ];
    table.line("", head);
    for (load, ours, theirs) in loads(all)? {
        table.line(
            &load,
            [
                spread(&ours.rates),
                spread(&theirs.rates),
                format!("{:.2}", ratio(ours.median(), theirs.median())),
                format!("{:.3}", instructions(ours, theirs)),
                ours.refreshes_a_thousand().to_string(),
                theirs.refreshes_a_thousand().to_string(),
            ],
        );
    }
    Ok(table.text)
}

/// The rates, a panel for each mode.
fn panels(all: &Throughput) -> Result<[Panel; 2]> {
    let loads = loads(all)?;
    Ok(MODES.map(|(mode, _)| {
        let mut places = Vec::new();
        let mut series = [("this driver", OURS), ("C driver", THEIRS)].map(|(title, colour)| {
            let bars = Vec::new();
            Series {
                title,
                colour,
                bars,
            }
        });
        for (load, ours, theirs) in &loads {
            if let Some(load) = load.strip_suffix(mode) {
                places.push(load.trim_end().to_owned());
                series[0].bars.push(ours.bar());
                series[1].bars.push(theirs.bar());
            }
        }
        Panel {
            caption: format!("{mode}: KiB a second, median, lowest and highest"),
            places,
            scale: (10.0, 10e6),
            series: series.into(),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::{super::chart, *};

    #[test]
    fn the_chart_has_each_load() {
        let mut all = Throughput::new();
        for (mode, driver) in [
            ("lazy", "rust"),
            ("lazy", "c"),
            ("strict", "rust"),
            ("strict", "c"),
        ] {
            for rate in [50, 30, 40] {
                let line = format!("throughput read-{mode} {rate} 1000 3 1");
                add(&mut all, (mode, driver), false, &[line]).unwrap();
            }
        }
        let panels = panels(&all).unwrap();
        for (panel, (mode, _)) in panels.iter().zip(MODES) {
            assert_eq!(panel.places, [format!("read-{mode}")]);
            assert!(panel.series.iter().all(|s| s.bars == [[30, 40, 50]]));
        }
        let folder = camino_tempfile::tempdir().unwrap();
        let path = folder.path().join("chart.svg");
        chart::draw(&panels, &path).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("read-lazy") && text.contains("read-strict"));
    }

    #[test]
    fn boots_are_added_and_judged() {
        let mut all = Throughput::new();
        let line = |rate, refreshes, instructions| {
            let line = format!("throughput read-128k-1 {rate} 1000 {refreshes} {instructions}");
            [line]
        };
        for (rate, counted) in [(7, false), (1, true), (5, false)] {
            add(&mut all, ("lazy", "rust"), counted, &line(rate, 3, 50_000)).unwrap();
            add(&mut all, ("lazy", "c"), counted, &line(6, 3, 50_000)).unwrap();
        }
        assert_eq!(all["read-128k-1 lazy rust"].rates, [5, 7]);
        assert_eq!(all["read-128k-1 lazy rust"].instructions_a_request(), 50);
        assert!(judge(&all).unwrap().iter().all(|b| b.met));
        // Slower in all boots, more refreshes in one of them, and more instructions
        for (ours, refreshes, counted) in [(7, 3, false), (1, 3, true), (5, 30, false)] {
            add(
                &mut all,
                ("strict", "rust"),
                counted,
                &line(ours, refreshes, 51_000),
            )
            .unwrap();
            add(&mut all, ("strict", "c"), counted, &line(8, 3, 50_000)).unwrap();
        }
        all.retain(|load, _| load.contains("strict"));
        assert!(judge(&all).unwrap().iter().all(|b| !b.met));
    }
}
