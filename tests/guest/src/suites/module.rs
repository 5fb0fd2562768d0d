// SPDX-License-Identifier: GPL-2.0
//! The driver as a module that is loaded and unloaded.
//!
//! The machine starts without PCI functions and without the driver.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;

use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::function::{COME_UP, Function};
use crate::ktap::Suite;
use crate::module::{self, Module};
use crate::state::{self, State};
use crate::{host, kmsg, sysfs};

const DRIVER: &str = "s390_iommu";
/// The module built in the kernel tree, and the one built outside
const INSIDE: &str = "/lib/modules/s390_iommu.ko";
const OUTSIDE: &str = "/lib/modules/external/s390_iommu.ko";
const ROUNDS: u64 = 50;
/// Rounds after which caches have reached their usual size
const WARM: u64 = 5;
const DEVICES: [&str; 3] = ["nvme", "igb", "e1000e"];

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    ensure!(!is_loaded(), "the driver is loaded; boot with guest.driver=later");
    ensure!(Function::all().is_empty(), "the machine has functions");
    refusals(suite);
    failing_starts(suite)?;
    let start = State::take()?;
    suite.test("a function that waits for the driver is released", || {
        plug_unserved()?;
        host::unplug("nvme")
    });
    suite.test("a function is not there before the driver", unserved);
    suite.test("loading brings the function up", || load_and_use(1000));
    let version = cmdline.value("guest.version").map(str::to_owned);
    suite.test("modinfo, sysfs and the log have one version", || one_version(version.as_deref()));
    suite.test("loading it twice is refused", twice);
    suite.test("all functions come up", all_up);
    suite.test("each function holds the module", each_holds);
    suite.test("unloading is refused while data moves", unload_under_load);
    suite.test("unloading with a function left is refused", last_function);
    suite.test("unloading gives everything back", || {
        unload()?;
        nothing_left(&start)
    });
    suite.test("an unknown parameter is logged", || unknown_parameter(&start));
    let mut memory = Err(anyhow!("a round failed"));
    let name = format!("{ROUNDS} rounds of load, plug, data, unplug, unload");
    suite.test(&name, || {
        memory = rounds(&start)?;
        Ok(())
    });
    suite.result("memory is as before the rounds", memory);
    Ok(())
}

fn is_loaded() -> bool {
    Path::new("/sys/module").join(DRIVER).exists()
}

fn load(path: &str, parameters: &str) -> Result<()> {
    module::try_load(Path::new(path), parameters).with_context(|| format!("load {path}"))
}

/// Unloads the driver. Waits until it is unused, because the kernel releases a function
/// only after it has removed the slot.
fn unload() -> Result<()> {
    let unused = || (module::users(DRIVER).ok()? == 0).then_some(());
    sysfs::wait_for("end of references", COME_UP, unused)?;
    module::try_unload(DRIVER).context("unload the driver")
}

/// Checks that the unloaded driver has left nothing, not even an allocated object.
fn nothing_left(before: &State) -> Result<()> {
    before.ensure_unchanged()?;
    let objects = state::allocations()?;
    ensure!(objects.is_empty(), "the driver has leaked objects: {}", objects.join("; "));
    Ok(())
}

fn refusals(suite: &mut Suite) {
    for (parameters, error, text) in [
        ("large_pages=7", Errno::EINVAL, "s390_iommu: large_pages=7: 0, 1 or 2 expected"),
        ("large_pages=many", Errno::EINVAL, "`many' invalid for parameter `large_pages'"),
        ("large_pages=300", Errno::EINVAL, "`300' invalid for parameter `large_pages'"),
    ] {
        suite.test(&format!("refused: {parameters}"), || {
            module::refused(|| module::try_load(Path::new(INSIDE), parameters), error, text)
        });
    }
    suite.test("refused: made for another version", || {
        let image = edited("vermagic=", "vermagic=0")?;
        module::refused(|| module::load_image(&image), Errno::ENOEXEC, "version magic '0")
    });
    suite.test("refused: a kernel without the registration point", || {
        let image = edited("zpci_iommu_driver_register\0", "zpci_iommu_driver_registez\0")?;
        let text = "Unknown symbol zpci_iommu_driver_registez";
        module::refused(|| module::load_image(&image), Errno::ENOENT, text)
    });
    suite.test("refused: half a file", || {
        let mut image = std::fs::read(INSIDE)?;
        image.truncate(image.len() / 2);
        let before = State::take()?;
        ensure!(module::load_image(&image) == Err(Errno::ENOEXEC), "a truncated file was loaded");
        before.ensure_unchanged()
    });
}

/// The module image with all occurrences of a text overwritten by another one.
fn edited(old: &str, new: &str) -> Result<Vec<u8>> {
    let mut image = std::fs::read(INSIDE)?;
    let (old, new) = (old.as_bytes(), new.as_bytes());
    let places: Vec<usize> = image
        .windows(old.len())
        .enumerate()
        .filter_map(|(at, window)| (window == old).then_some(at))
        .collect();
    ensure!(!places.is_empty(), "{INSIDE} does not contain {:?}", String::from_utf8_lossy(old));
    for at in places {
        image[at..at + new.len()].copy_from_slice(new);
    }
    Ok(image)
}

/// Fails each call that can fail while the driver starts, one per start.
fn failing_starts(suite: &mut Suite) -> Result<()> {
    let fail = Module::load("init_fail", "")?;
    let empty = counted(|| Ok(()))?;
    for nth in 1..=empty {
        failing(suite, nth, || Ok(()));
    }
    host::plug("nvme")?;
    let all = counted(|| {
        use_disk(900)?;
        unplug("nvme")
    })?;
    suite.test("a start with a function takes more steps", || {
        ensure!(empty > 0 && all > empty, "{empty} steps without a function, {all} with one");
        Ok(())
    });
    for nth in empty + 1..=all {
        failing(suite, nth, plug_unserved);
    }
    suite.test("a slot switched off and on while its function comes up", slot_beside_start);
    fail.unload()
}

/// The number of steps of a successful start.
fn counted(with_driver: impl FnOnce() -> Result<()>) -> Result<u64> {
    fail_at(0)?;
    load(INSIDE, "")?;
    with_driver()?;
    unload()?;
    fail_parameter("calls")?.parse().context("calls")
}

fn fail_parameter(name: &str) -> Result<String> {
    sysfs::read(Path::new("/sys/module/init_fail/parameters").join(name))
}

fn set_fail_parameter(name: &str, value: u64) -> Result<()> {
    sysfs::write(Path::new("/sys/module/init_fail/parameters").join(name), &value.to_string())
}

fn fail_at(nth: u64) -> Result<()> {
    set_fail_parameter("nth", nth)
}

fn failing(suite: &mut Suite, nth: u64, prepare: impl FnOnce() -> Result<()>) {
    let mut failed = String::new();
    let result = start_with_failure(nth, prepare, &mut failed);
    suite.result(&format!("start fails: step {nth}, {failed}"), result);
}

/// Fails one step, then checks that everything is undone and that the next load works.
fn start_with_failure(
    nth: u64,
    prepare: impl FnOnce() -> Result<()>,
    failed: &mut String,
) -> Result<()> {
    let before = State::take()?;
    prepare()?;
    // A driver cannot use a function whose IOMMU failed to come up, so do not probe any.
    sysfs::write("/sys/bus/pci/drivers_autoprobe", "0")?;
    fail_at(nth)?;
    let loaded = module::try_load(Path::new(INSIDE), "");
    *failed = fail_parameter("failed")?;
    fail_at(0)?;
    sysfs::write("/sys/bus/pci/drivers_autoprobe", "1")?;
    ensure!(failed != "none", "no step failed");
    // The driver stays loaded if it fails only for one function.
    if loaded.is_ok() {
        if Function::all().is_empty() {
            unload()?;
        } else {
            unplug("nvme")?;
            unload()?;
            plug_unserved()?;
        }
    }
    nothing_left(&before)?;
    load(INSIDE, "")?;
    if !sysfs::list("/sys/bus/pci/slots").is_empty() {
        use_disk(900 + nth)?;
        unplug("nvme")?;
    }
    unload()?;
    nothing_left(&before)
}

/// Turns a slot off and on while its function comes up. The slot exists before the
/// function is enabled, and a probe slows that down.
fn slot_beside_start() -> Result<()> {
    plug_unserved()?;
    set_fail_parameter("enable_ms", 300)?;
    let (switched, log) = kmsg::during(|| {
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| load(INSIDE, ""));
            let slot = || Some(sysfs::list("/sys/bus/pci/slots").pop()?.join("power"));
            let power = || slot().filter(|power| power.exists());
            let power = sysfs::wait_for("slot", COME_UP, power)?;
            sysfs::write(&power, "0")?;
            sysfs::write(&power, "1")?;
            loader.join().map_err(|_| anyhow!("the loader died"))?
        })
    })?;
    set_fail_parameter("enable_ms", 0)?;
    let failed = log.iter().find(|line| line.contains("Enabling PCI function"));
    ensure!(failed.is_none(), "{}", failed.map_or("", String::as_str));
    switched?;
    use_disk(998)?;
    unplug("nvme")?;
    unload()
}

/// Plugs the drive without the driver, and waits until the kernel reports that the
/// function waits for it.
fn plug_unserved() -> Result<()> {
    kmsg::wait_for("waits for the driver", || host::plug("nvme"))
}

fn unserved() -> Result<()> {
    plug_unserved()?;
    ensure!(Function::all().is_empty(), "the function is there without the driver");
    ensure!(sysfs::list("/sys/class/iommu").is_empty(), "there is an IOMMU without the driver");
    Ok(())
}

fn load_and_use(seed: u64) -> Result<()> {
    load(INSIDE, "")?;
    use_disk(seed)
}

/// Waits for the NVMe function and returns its disk.
fn disk() -> Result<PathBuf> {
    let nvme = sysfs::wait_for("NVMe function", COME_UP, || Function::first_of("nvme").ok())?;
    nvme.disk()
}

fn use_disk(seed: u64) -> Result<()> {
    let transfer = Transfer { request: MIB / 4, ..Transfer::new(seed, MIB) };
    transfer.verify(&disk()?).map(drop)
}

/// Unplugs a device and waits until the kernel has released it.
fn unplug(device: &str) -> Result<()> {
    let slots = || sysfs::list("/sys/bus/pci/slots").len();
    let before = slots();
    ensure!(before > 0, "there is no function to unplug");
    host::unplug(device)?;
    let gone = || (slots() < before).then_some(());
    sysfs::wait_for(&format!("end of {device}"), COME_UP, gone)
}

fn one_version(modinfo: Option<&str>) -> Result<()> {
    let modinfo = modinfo.context("no guest.version= on the command line")?;
    let version = sysfs::read("/sys/module/s390_iommu/version")?;
    ensure!(version == modinfo, "sysfs has {version}, modinfo {modinfo}");
    let expected = format!("IOMMU driver for zPCI in Rust, version {version},");
    let messages = kmsg::messages()?;
    let log = kmsg::driver_lines(&messages);
    ensure!(log.iter().any(|line| line.contains(&expected)), "no message contains {expected:?}");
    Ok(())
}

fn twice() -> Result<()> {
    for path in [INSIDE, OUTSIDE] {
        let result = module::try_load(Path::new(path), "");
        ensure!(result == Err(Errno::EEXIST), "{path}: {result:?}");
    }
    use_disk(1001)
}

fn all_up() -> Result<()> {
    for device in &DEVICES[1..] {
        host::plug(device)?;
        let driver = || Function::first_of(device).ok();
        sysfs::wait_for(device, COME_UP, driver)?;
    }
    let functions = Function::all();
    ensure!(functions.len() == DEVICES.len(), "there are {} functions", functions.len());
    for function in functions {
        let kind = function.group_type()?;
        ensure!(kind == "DMA-FQ", "{}: {kind}", function.address);
    }
    Ok(())
}

/// Each function has two references to the module: one by the zPCI subsystem, also in
/// standby, and one by the IOMMU core.
fn each_holds() -> Result<()> {
    let users = module::users(DRIVER)?;
    let functions = Function::all().len();
    ensure!(users == 2 * functions, "{users} references for {functions} functions");
    let slot = Function::first_of("igb")?.slot()?;
    sysfs::write(&slot, "0")?;
    let standby = module::users(DRIVER)?;
    sysfs::write(&slot, "1")?;
    ensure!(standby == users - 1, "{standby} references with one function in standby");
    sysfs::wait_for("igb", COME_UP, || Function::first_of("igb").ok())?;
    Ok(())
}

fn refuse_unload() -> Result<()> {
    let result = module::try_unload(DRIVER);
    ensure!(result == Err(Errno::EWOULDBLOCK), "unloading returned {result:?}");
    Ok(())
}

fn unload_under_load() -> Result<()> {
    let disk = disk()?;
    let transfer = Transfer::new(1002, 32 * MIB);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| transfer.verify(&disk));
        let mut tries = 0;
        while !writer.is_finished() {
            refuse_unload()?;
            tries += 1;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        ensure!(tries > 1, "the transfer was too short for the test");
        writer.join().map_err(|_| anyhow!("the writer died"))?.map(drop)
    })
}

fn last_function() -> Result<()> {
    for device in DEVICES {
        refuse_unload()?;
        unplug(device)?;
    }
    let unused = || (module::users(DRIVER).ok()? == 0).then_some(());
    sysfs::wait_for("end of references", COME_UP, unused)
}

/// The kernel ignores an unknown parameter with a message, and the driver works as usual.
fn unknown_parameter(start: &State) -> Result<()> {
    let (result, log) = kmsg::during(|| module::try_load(Path::new(INSIDE), "nonsense=1"))?;
    ensure!(result.is_ok(), "loading returned {result:?}");
    let text = "s390_iommu: unknown parameter 'nonsense' ignored";
    ensure!(log.iter().any(|line| line.contains(text)), "no message contains {text:?}: {log:?}");
    host::plug("nvme")?;
    use_disk(1003)?;
    unplug("nvme")?;
    unload()?;
    start.ensure_unchanged()
}

/// Memory statistics that must not change with the rounds, in KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    available: u64,
    slab: u64,
}

impl Memory {
    fn read() -> Result<Self> {
        sysfs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(Self { available: state::meminfo("MemAvailable")?, slab: state::meminfo("Slab")? })
    }
}

/// Runs the rounds. Returns the error of a round, or the result of the memory check.
fn rounds(start: &State) -> Result<Result<()>> {
    let mut before = None;
    for round in 0..ROUNDS {
        if round == WARM {
            before = Some(Memory::read()?);
        }
        one_round(round, start).with_context(|| format!("round {round}"))?;
    }
    nothing_left(start)?;
    let Some(before) = before else { bail!("too few rounds") };
    let after = Memory::read()?;
    say!("# module: {} rounds: {before:?} KiB, then {after:?} KiB", ROUNDS - WARM);
    Ok(compare(before, after))
}

/// Compares memory statistics. Each round already checks the exact numbers; this finds
/// other losses. It is approximate because of caches and of the kernel's own leaks (a PCI
/// host bridge loses some KiB per round).
fn compare(before: Memory, after: Memory) -> Result<()> {
    const NOISE: u64 = 4096;
    let lost = before.available.saturating_sub(after.available);
    ensure!(lost < NOISE, "MemAvailable has shrunk by {lost} KiB");
    let grown = after.slab.saturating_sub(before.slab);
    ensure!(grown < NOISE, "Slab has grown by {grown} KiB");
    Ok(())
}

fn one_round(round: u64, start: &State) -> Result<()> {
    match round % 3 {
        0 => {
            unserved()?;
            load(INSIDE, "")?;
        }
        1 => {
            load(OUTSIDE, "large_pages=0")?;
            host::plug("nvme")?;
        }
        // The hotplug event and the scan race with each other.
        _ => {
            host::plug("nvme")?;
            load(INSIDE, "large_pages=1")?;
        }
    }
    use_disk(2000 + round)?;
    // Make sure that the later checks for leaks can find something.
    if round == 0 {
        ensure!(!state::allocations()?.is_empty(), "cannot find the driver's objects");
    }
    ensure!(state::table_pages()? > 0, "cannot find the driver's tables");
    ensure!(state::module_bytes()? > 0, "cannot find the module's memory");
    refuse_unload()?;
    unplug("nvme")?;
    unload()?;
    start.ensure_unchanged()
}
