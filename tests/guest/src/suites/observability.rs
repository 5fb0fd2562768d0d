// SPDX-License-Identifier: GPL-2.0
//! The driver's debugfs files, trace events and log messages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};

use super::modules;
use crate::block::{KIB, MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::{self, Function};
use crate::kmsg;
use crate::ktap::{Suite, skip};
use crate::module::Module;
use crate::shown::{self, Domain, Dump, Range, value};
use crate::tracing::{Event, Recording};

const MAPS: &[&str] = &["iommu/map", "iommu/unmap"];
const OURS: &[&str] = &["s390_iommu"];
/// The most ranges that a dump shows
const LIMIT: usize = 16384;
const REFUSED: &str = "attach refused, it stays where it was";

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    if !shown::is_there() {
        suite.test("debugfs has a folder of the driver", || skip!("the driver has no files"));
        return Ok(());
    }
    let nvme = Function::first_of("nvme")?;
    suite.test("the start is one line in the log", start_line);
    suite.test("a function shows what is registered", || function_file(&nvme, cmdline));
    suite.test("every function and no other is shown", function_files);
    suite.test("a domain shows its table, functions and counters", || domain_info(&nvme));
    suite.test("dumps during I/O show what was mapped", || dumps_beside_io(&nvme));
    suite.test("a dump shows what maps what, merged", || held_domain(0, exact_dump));
    suite.test("a dump is bounded, and says so", || held_domain(LIMIT + 5, bounded_dump));
    suite.test("a dump goes back when asked to", || held_domain(200, read_again));
    suite.test("dumps beside unmaps that give tables back", dumps_beside_reclaim);
    suite.test("an open file outlives its domain", open_file);
    attaches(suite, cmdline, &nvme)
}

fn start_line() -> Result<()> {
    let messages = kmsg::messages()?;
    let starts: Vec<_> = messages.iter().filter(|m| m.contains("IOMMU driver for zPCI")).collect();
    ensure!(starts.len() == 1, "{} lines: {starts:?}", starts.len());
    for part in ["version ", "tables of 3 to 5 levels", "pages of 4 KiB"] {
        ensure!(starts[0].contains(part), "no {part:?} in {:?}", starts[0]);
    }
    Ok(())
}

/// The machine and the driver agree on the table, and the rest matches sysfs and the
/// command line.
fn function_file(nvme: &Function, cmdline: &Cmdline) -> Result<()> {
    let text = shown::function(nvme)?;
    let machine = value(&text, "registered, machine")?;
    ensure!(machine.starts_with("table at 0x"), "{text}");
    ensure!(machine.ends_with("region third"), "{text}");
    ensure!(machine == value(&text, "registered, driver")?, "{text}");
    let levels = &["region third", "region second", "region first"];
    let taken = levels[..cmdline.levels() as usize - 2].join(", ");
    ensure!(value(&text, "table types")? == taken, "not {taken}: {text}");
    ensure!(value(&text, "last MPCIFC")?.ends_with("condition code 0, status 0"), "{text}");
    let regions = nvme.reserved()?;
    let window = format!("{:#018x}-{:#018x}", regions[0].last + 1, regions[1].first - 1);
    ensure!(value(&text, "window")? == window, "not {window}: {text}");
    Ok(())
}

fn function_files() -> Result<()> {
    if function::is_restricted() {
        skip!("the machine has functions that the tests must not use");
    }
    let mut expected = BTreeSet::new();
    for function in Function::all() {
        expected.insert(format!("{:08x}", function.fid()?));
    }
    let shown = shown::functions();
    ensure!(shown == expected, "{shown:?}, expected {expected:?}");
    Ok(())
}

fn domain_info(nvme: &Function) -> Result<()> {
    let domain = Domain::of(nvme)?;
    let info = domain.info()?;
    let number = |key| -> Result<u64> {
        let text = value(&info, key)?.trim_end_matches(" bytes");
        text.parse().with_context(|| format!("{key}: {text}"))
    };
    ensure!(value(&info, "table")? == "region third, 3 levels", "{info}");
    ensure!(value(&info, "aperture")? == "0x0-0x3ffffffffff", "{info}");
    ensure!(value(&info, "page sizes")?.starts_with("4 KiB"), "{info}");
    ensure!(value(&info, "functions")? == format!("{:08x}", nvme.fid()?), "{info}");
    // There is at least the top table.
    ensure!(number("table memory")? >= 16384, "{info}");
    let (mapped, unmapped) = (number("pages mapped")?, number("pages unmapped")?);
    let live: usize = domain.dump()?.ranges.iter().map(|range| range.pages().count()).sum();
    ensure!(mapped - unmapped == live as u64, "{live} pages are live: {info}");
    Ok(())
}

/// The maps and unmaps that the core traced, replayed.
#[derive(Default)]
struct Replay {
    /// Every page that was ever mapped: IOVA and physical address.
    ever: BTreeSet<(u64, u64)>,
    /// The pages that are still mapped.
    live: BTreeMap<u64, u64>,
}

impl Replay {
    fn of(events: &[Event]) -> Result<Self> {
        let mut replay = Self::default();
        for event in events {
            let (start, size) = (event.number("iova")?, event.number("size")?);
            for offset in (0..size).step_by(4096) {
                if event.name == "map" {
                    let phys = event.number("paddr")? + offset;
                    replay.ever.insert((start + offset, phys));
                    replay.live.insert(start + offset, phys);
                } else {
                    replay.live.remove(&(start + offset));
                }
            }
        }
        Ok(replay)
    }
}

/// Traces the maps of a function that comes up, transfers data and becomes idle. Dumps
/// during the transfers must show only pages that were mapped, and the last dump must
/// match the trace.
fn dumps_beside_io(nvme: &Function) -> Result<()> {
    nvme.unbind()?;
    let recording = Recording::start(MAPS)?;
    nvme.probe()?;
    let disk = nvme.disk()?;
    let domain = Domain::of(nvme)?;
    let moving = AtomicBool::new(true);
    let (during, moved) = std::thread::scope(|scope| {
        let moved = scope.spawn(|| {
            let moved = move_data(&disk);
            moving.store(false, Ordering::Release);
            moved
        });
        let mut dumps = Vec::new();
        while moving.load(Ordering::Acquire) {
            dumps.push(domain.dump());
        }
        (dumps, moved.join())
    });
    moved.map_err(|_| anyhow!("the disk's thread died"))??;
    let after = domain.dump()?;
    let others = others_than(&domain)?;
    let replay = Replay::of(&recording.stop()?)?;
    ensure!(during.len() >= 10, "only {} dumps were read during the I/O", during.len());
    let mut changed = BTreeSet::new();
    for dump in during {
        let dump = dump?;
        for page in dump.ranges.iter().flat_map(Range::pages) {
            ensure!(replay.ever.contains(&page), "{page:x?} is shown, but was never mapped");
        }
        changed.insert(dump.ranges.len());
    }
    ensure!(changed.len() > 1, "all dumps are the same: no transfers?");
    agree(&after, &others, &replay)
}

fn move_data(disk: &Path) -> Result<()> {
    for seed in 0..4 {
        let transfer = Transfer { request: 64 * KIB, ..Transfer::new(600 + seed, 8 * MIB) };
        transfer.verify(disk)?;
    }
    Ok(())
}

/// The pages of other domains, because the core's trace events do not name the function.
fn others_than(domain: &Domain) -> Result<BTreeSet<(u64, u64)>> {
    let mut pages = BTreeSet::new();
    for other in Domain::all().into_iter().filter(|other| other != domain) {
        pages.extend(other.dump()?.ranges.iter().flat_map(Range::pages));
    }
    Ok(pages)
}

fn agree(dump: &Dump, others: &BTreeSet<(u64, u64)>, replay: &Replay) -> Result<()> {
    ensure!(dump.more_from.is_none(), "the dump is truncated");
    let shown: BTreeMap<u64, u64> = dump.ranges.iter().flat_map(Range::pages).collect();
    ensure!(!shown.is_empty(), "the dump of a function in use is empty");
    for (iova, phys) in &shown {
        let traced = replay.live.get(iova);
        ensure!(traced == Some(phys), "{iova:#x}: the dump has {phys:#x}, the trace {traced:x?}");
    }
    for (iova, phys) in &replay.live {
        let found = shown.get(iova) == Some(phys) || others.contains(&(*iova, *phys));
        ensure!(found, "{iova:#x} to {phys:#x} is still mapped, but not shown");
    }
    Ok(())
}

/// Runs a test on the domain of the module "mappings", which maps `many` pages in addition to
/// its usual ranges. After the module is unloaded the domain must be gone from debugfs.
fn held_domain(many: usize, test: impl FnOnce(&Domain, usize) -> Result<()>) -> Result<()> {
    let held = Held::new(&format!("many={many}"))?;
    test(&held.domain, many)?;
    held.release().map(drop)
}

struct Held {
    module: Module,
    domain: Domain,
}

impl Held {
    fn new(args: &str) -> Result<Self> {
        let before = Domain::all();
        let module = Module::load("mappings", args)?;
        let new: Vec<_> = Domain::all().into_iter().filter(|d| !before.contains(d)).collect();
        let [domain] = &new[..] else {
            return Err(anyhow!("{} new domains are shown, expected 1", new.len()));
        };
        Ok(Self { domain: domain.clone(), module })
    }

    fn release(self) -> Result<()> {
        ensure!(self.domain.is_there());
        self.module.unload()?;
        ensure!(!self.domain.is_there(), "a freed domain is still shown");
        Ok(())
    }
}

/// The ranges that `tests/modules/mappings.c` always maps.
fn expected(large: bool) -> [Range; 4] {
    let page = |first, last, phys| Range { first, last, phys, large: false, writable: true };
    [
        page(0x1_0000_0000, 0x1_0000_2fff, 0x100_1234_0000),
        Range { writable: false, ..page(0x1_0000_3000, 0x1_0000_3fff, 0x100_1234_3000) },
        Range { large, ..page(0x1_7fe0_0000, 0x1_7fff_ffff, 0x100_4000_0000) },
        page(0x3ff_ffff_f000, 0x3ff_ffff_ffff, 0x100_1234_0000),
    ]
}

fn exact_dump(domain: &Domain, _: usize) -> Result<()> {
    let info = domain.info()?;
    ensure!(value(&info, "functions")?.is_empty(), "functions are attached: {info}");
    let large = value(&info, "page sizes")?.contains("1 MiB");
    let dump = domain.dump()?;
    ensure!(dump.ranges == expected(large), "{dump:x?}");
    ensure!(dump.more_from.is_none(), "{dump:x?}");
    Ok(())
}

/// The limit counts ranges: three of the usual ones, then single pages.
fn bounded_dump(domain: &Domain, _: usize) -> Result<()> {
    let dump = domain.dump()?;
    ensure!(dump.ranges.len() == LIMIT, "{} ranges", dump.ranges.len());
    let first_hidden = 0x2_0000_0000 + (LIMIT as u64 - 3) * 4096;
    ensure!(dump.more_from == Some(first_hidden), "{:x?}", dump.more_from);
    Ok(())
}

/// Reads the dump to its end, then again from several offsets.
fn read_again(domain: &Domain, _: usize) -> Result<()> {
    use std::os::unix::fs::FileExt;

    let mut file = domain.open()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text.lines().count() == 1 + 4 + 200, "{} lines", text.lines().count());
    let mut again = vec![0; text.len()];
    for start in [0, 5000, 70, 9000] {
        let part = &mut again[start..];
        file.read_exact_at(part, start as u64)?;
        ensure!(*part == text.as_bytes()[start..], "the dump differs when read again from {start}");
    }
    Ok(())
}

/// A thread of the module maps and unmaps 4 MiB, which allocates and frees page tables.
/// Dumps may show any part of this, but nothing that was never mapped.
fn dumps_beside_reclaim() -> Result<()> {
    const CHURN: u64 = 0x3_0000_0000;
    const CHURN_TO: u64 = 0x100_6666_1000;
    let held = Held::new("churn=1")?;
    let large = value(&held.domain.info()?, "page sizes")?.contains("1 MiB");
    let expected = expected(large);
    let (mut some, mut none) = (0, 0);
    for _ in 0..300 {
        let dump = held.domain.dump()?;
        let (churn, rest): (Vec<Range>, Vec<Range>) =
            dump.ranges.iter().partition(|r| (CHURN..CHURN + 0x40_0000).contains(&r.first));
        ensure!(rest == expected, "{rest:x?}");
        for range in &churn {
            let good = range.phys == CHURN_TO + (range.first - CHURN)
                && range.last < CHURN + 0x40_0000
                && !range.writable;
            ensure!(good, "{range:x?}");
        }
        some += usize::from(!churn.is_empty());
        none += usize::from(churn.is_empty());
    }
    ensure!(some > 0 && none > 0, "mapped in {some} dumps, unmapped in {none}: no change");
    held.release()
}

/// If a domain is freed while its file is open, reads fail, and the file can be closed.
fn open_file() -> Result<()> {
    let held = Held::new("many=1000")?;
    let mut file = held.domain.open()?;
    let mut part = [0; 64];
    ensure!(file.read(&mut part)? > 0, "an empty dump");
    held.release()?;
    let late = file.read(&mut part);
    ensure!(late.is_err(), "reading the dump of a freed domain returned {late:?}");
    Ok(())
}

/// Checks the trace events and messages of the attaches that the module makes.
fn attaches(suite: &mut Suite, cmdline: &Cmdline, nvme: &Function) -> Result<()> {
    let before = refusals()?;
    if !before.is_empty() {
        std::thread::sleep(LIMITED);
    }
    let recording = Recording::start(OURS)?;
    modules::run(suite, cmdline, "observability")?;
    let events = recording.stop()?;
    let said = refusals()?;
    suite.test("an attach is traced: from, to, result", || traced_attaches(&events, nvme));
    suite.test("refreshes are traced", || traced_refreshes(&events, nvme));
    suite.test("tables are traced, made and freed", || traced_tables(&events, nvme));
    suite.test("a refused attach is one line in the log", || {
        let lines = &said[before.len()..];
        ensure!(lines.len() == 1, "{} lines: {lines:?}", lines.len());
        let who = format!("function {:08x}: ", nvme.fid()?);
        ensure!(lines[0].contains(&who), "no {who:?}: {}", lines[0]);
        ensure!(lines[0].contains("not enough resources"), "no reason: {}", lines[0]);
        Ok(())
    });
    modules::run_with(suite, cmdline, "observability", "many=1")?;
    let all = refusals()?;
    suite.test("many refused attaches are a few lines", || {
        let lines = all.len() - said.len();
        ensure!((1..15).contains(&lines), "30 attaches were refused: {lines} lines");
        Ok(())
    });
    Ok(())
}

fn refusals() -> Result<Vec<String>> {
    let mut messages = kmsg::messages()?;
    messages.retain(|message| message.contains(REFUSED));
    Ok(messages)
}

/// Longer than the interval of rate limits (`DEFAULT_RATELIMIT_INTERVAL`)
const LIMITED: std::time::Duration = std::time::Duration::from_secs(6);

/// A traced attach: from, to, result.
type Attach<'e> = (&'e str, &'e str, &'e str);

fn attaches_of<'e>(events: &'e [Event], function: &Function) -> Result<Vec<Attach<'e>>> {
    let fid = format!("{:08x}", function.fid()?);
    let ours = events.iter().filter(|event| event.name == "s390_iommu_attach");
    let ours = ours.filter(|event| event.value("fid") == Some(&fid));
    ours.map(|event| {
        let value = |key| event.value(key).with_context(|| format!("no {key}: {event:?}"));
        Ok((value("from")?, value("to")?, value("result")?))
    })
    .collect()
}

/// The numbers of the module's two domains.
fn module_domains<'e>(attaches: &[Attach<'e>]) -> Result<[&'e str; 2]> {
    let refused = attaches.iter().position(|(_, _, result)| *result != "0");
    let refused = refused.context("no refused attach was traced")?;
    let (second, first, _) = attaches[refused];
    Ok([first, second])
}

fn traced_attaches(events: &[Event], nvme: &Function) -> Result<()> {
    let attaches = attaches_of(events, nvme)?;
    let [first, second] = module_domains(&attaches)?;
    let expected = [
        ("blocked", first, "0"),
        (first, second, "0"),
        (second, first, "-5"),
        (second, "blocked", "0"),
    ];
    let found = attaches.windows(4).any(|four| four == expected);
    ensure!(found, "{expected:?} not found in {attaches:?}");
    Ok(())
}

/// There are at least as many refreshes as successful attaches, and all succeed.
fn traced_refreshes(events: &[Event], nvme: &Function) -> Result<()> {
    let fid = format!("{:08x}", nvme.fid()?);
    let ours = events.iter().filter(|event| event.name == "s390_iommu_refresh");
    let ours: Vec<_> = ours.filter(|event| event.value("fid") == Some(&fid)).collect();
    ensure!(ours.len() >= 3, "only {} refreshes", ours.len());
    for event in ours {
        let good = event.value("cc") == Some("0") && event.value("retries") == Some("0");
        ensure!(good, "{event:?}");
    }
    Ok(())
}

/// All tables that were allocated for the module's domains were freed.
fn traced_tables(events: &[Event], nvme: &Function) -> Result<()> {
    for domain in module_domains(&attaches_of(events, nvme)?)? {
        let of = |name: &str| -> BTreeSet<&str> {
            let ours = events.iter().filter(|event| event.name == name);
            let ours = ours.filter(|event| event.value("domain") == Some(domain));
            ours.filter_map(|event| event.value("table")).collect()
        };
        let (made, freed) = (of("s390_iommu_table_alloc"), of("s390_iommu_table_free"));
        ensure!(!made.is_empty(), "no table was allocated for domain {domain}");
        ensure!(made == freed, "domain {domain}: allocated {made:?}, freed {freed:?}");
    }
    Ok(())
}
