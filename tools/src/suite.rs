// SPDX-License-Identifier: GPL-2.0
//! `make test`: every check, with a summary. What cannot be run has failed.

mod machine;
mod module;
mod peer;
pub mod torture;

use crate::{
    deps,
    guest::Machine,
    kernel::{self, Flavour, Kernel},
    ktap::Outcome,
    lint, mutants, passthrough,
    project::{variable, Project},
    qemu::Boot,
    readme, series,
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{fs, path::Path, time::Duration};

/// A boot with all suites takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(900);
/// The boots of `make test`. Memory decides how large the windows are: those of
/// a machine with 32 GiB are known to the last digit.
const BOOTS: [Variant; 9] = [
    Variant {
        name: "lazy",
        words: "",
        memory: 2,
    },
    Variant {
        name: "strict",
        words: "iommu.strict=1",
        memory: 2,
    },
    Variant {
        name: "parameters",
        words: "iommu.passthrough=1 s390_iommu=strict s390_iommu_aperture=2 \
            guest.suite=boot,nvme,nic,counters",
        memory: 2,
    },
    Variant {
        name: "memory",
        words: "guest.suite=boot,nvme,nic,counters",
        memory: 32,
    },
    Variant {
        name: SMALL,
        words: "iommu.strict=1 s390_iommu_aperture=1 guest.suite=boot,nvme",
        memory: 2,
    },
    Variant {
        name: LARGER[0],
        words: "iommu.strict=1 s390_iommu_aperture=64 guest.suite=boot,nvme",
        memory: 2,
    },
    Variant {
        name: LARGER[1],
        words: "iommu.strict=1 s390_iommu_aperture=512 guest.suite=boot,nvme",
        memory: 2,
    },
    Variant {
        name: LARGER[2],
        words: "iommu.strict=1 s390_iommu_aperture=0 guest.suite=boot,nvme",
        memory: 2,
    },
    Variant {
        name: MORE_LATER,
        words: "iommu.strict=1 guest.suite=nvme",
        memory: 2,
    },
];
/// Windows as large as memory, larger, and as large as the machine grants: the way
/// to user space takes as long.
const SMALL: &str = "aperture-1";
const LARGER: [&str; 4] = ["aperture-64", "aperture-512", "aperture-0", MORE_LATER];
/// The machine may get more memory later: windows reach to its end.
const MORE_LATER: &str = "maxmem";
const MAXIMUM: [&str; 2] = ["-m", "maxmem=64G"];
/// How much longer the large window may take: a share, and seconds.
const LONGER: (f64, f64) = (0.2, 0.3);
/// How many random number generators the guest has: as many as a domain has room
/// for without further memory.
const GENERATORS: usize = 6;
/// The driver's KUnit suites run at boot; the guest's program reads their results.
const KUNIT: &str = "kunit.enable=1 kunit.autorun=1 kunit.filter_glob=s390_iommu*";

/// No line of QEMU's begins so.
const NOTHING: &str = "\0";

/// A boot of `make test`.
struct Variant {
    name: &'static str,
    /// Words for the kernel's command line and for the guest's program.
    words: &'static str,
    /// In GiB.
    memory: u32,
}

/// A part of `make test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// the license in every file
    License,
    /// rustfmt
    Format,
    /// the pages of Documentation/, without a warning
    Docs,
    /// the patches for the kernel's lists: git am, checkpatch
    Series,
    /// clippy on the programs and on the driver
    Clippy,
    /// the unit tests of this program
    Tools,
    /// the driver's pure files on the host
    Host,
    /// the same under every interleaving of a few threads
    Model,
    /// operations on the tables that a fuzzer makes up, for a while
    Fuzz,
    /// changes by which the tests above have to fail
    Mutants,
    /// rustdoc on the driver, without a warning
    Rustdoc,
    /// the kernel's checkpatch
    Checkpatch,
    /// everything in the guest
    Guest,
    /// this driver and the one in C in the same suites
    Peer,
    /// the guest on the emulator of `make machine`
    Machine,
    /// the driver as a module
    Module,
    /// functions that come and go, hostile calls: two boots of `make torture`
    Torture,
    /// a guest inside the guest, on a function that is passed through
    Passthrough,
    /// `make run`, and that the README shows what is printed
    Readme,
}

const ALL: [Part; 19] = [
    Part::License,
    Part::Format,
    Part::Docs,
    Part::Tools,
    Part::Host,
    Part::Model,
    Part::Fuzz,
    Part::Mutants,
    Part::Series,
    Part::Clippy,
    Part::Rustdoc,
    Part::Checkpatch,
    Part::Guest,
    Part::Peer,
    Part::Machine,
    Part::Torture,
    Part::Module,
    Part::Passthrough,
    // Looks at the results of all others.
    Part::Readme,
];

/// Results of a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Count {
    fn of((good, all): (usize, usize)) -> Self {
        Self {
            passed: good,
            failed: all - good,
            skipped: 0,
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn one(good: bool) -> Self {
        Self::of((usize::from(good), 1))
    }
}

/// `make test`; `PART=a,b` names some of its parts.
pub fn run(project: &Project, flavour: &Flavour) -> Result<()> {
    match variable("PART") {
        Some(names) => only(project, flavour, &parts(&names.to_string_lossy())?),
        // What takes long on two processors: by name only.
        None => {
            let long = [Part::Passthrough, Part::Torture];
            let default: Vec<_> = ALL.into_iter().filter(|p| !long.contains(p)).collect();
            only(project, flavour, &default)
        }
    }
}

/// The parts of these names.
fn parts(names: &str) -> Result<Vec<Part>> {
    let find = |name: &str| {
        let is = |part: &&Part| format!("{part:?}").eq_ignore_ascii_case(name);
        ALL.iter().find(is).copied().with_context(|| {
            let known = ALL.map(|part| format!("{part:?}").to_lowercase());
            format!("PART={names}: there is no {name}, but {}", known.join(" "))
        })
    };
    names.split([',', ' ']).map(find).collect()
}

/// Some parts of it.
pub fn only(project: &Project, flavour: &Flavour, parts: &[Part]) -> Result<()> {
    deps::ensure(project)?;
    let mut suite = Suite {
        project,
        flavour,
        kernel: None,
        summary: Vec::new(),
    };
    for part in parts {
        suite.part(*part);
    }
    suite.finish()
}

struct Suite<'a> {
    project: &'a Project,
    flavour: &'a Flavour,
    /// Built by the first part that needs one; the error is told once.
    kernel: Option<Option<Kernel>>,
    summary: Vec<(String, Count)>,
}

impl Suite<'_> {
    fn part(&mut self, part: Part) {
        match part {
            Part::License => self.step(
                "license",
                "looking for the license in every file",
                |project, step| lint::check_licenses(project, step).map(Count::of),
            ),
            Part::Format => self.step("format", "checking the formatting", |project, step| {
                lint::check_format(project, step).map(Count::of)
            }),
            Part::Tools => self.step("tools", "testing the tools", |project, step| {
                cargo_test(project, step, "tools", "")
            }),
            Part::Host => self.step(
                "host",
                "testing the pure files on this machine",
                |project, step| cargo_test(project, step, "tests/host", ""),
            ),
            Part::Model => self.step("model", "checking every interleaving", |project, step| {
                cargo_test(project, step, "tests/host", "--cfg loom")
            }),
            Part::Fuzz => self.step("fuzz", "fuzzing the tables", fuzz),
            Part::Mutants => {
                self.step(
                    "mutants",
                    "applying the changes that tests must notice",
                    |project, step| mutants::check(project, step).map(Count::of),
                );
            }
            Part::Series => {
                // It reads the cache, which a kernel that was built holds.
                self.kernel = None;
                self.step(
                    "series",
                    "making the patches, checkpatch",
                    |project, step| series::check(project, step).map(Count::of),
                );
            }
            Part::Clippy => {
                self.step("clippy", "clippy on the programs", |project, step| {
                    lint::clippy_programs(project, step).map(Count::of)
                });
                self.with_kernel(
                    "clippy-driver",
                    "clippy on the driver and on modules",
                    |project, kernel, step| {
                        lint::clippy_driver(project, kernel, step).map(Count::of)
                    },
                );
            }
            Part::Rustdoc => self.with_kernel(
                "rustdoc",
                "writing the driver's pages",
                |project, kernel, step| lint::write_rustdoc(project, kernel, step).map(Count::one),
            ),
            Part::Checkpatch => {
                self.with_kernel(
                    "checkpatch",
                    "checkpatch on all C",
                    |project, kernel, step| {
                        lint::checkpatch(project, &kernel.source.tree, step).map(Count::of)
                    },
                );
            }
            Part::Docs => self.step("htmldocs", "writing the pages", |project, step| {
                lint::write_pages(project, step).map(Count::one)
            }),
            Part::Guest => self.guest(),
            Part::Peer => self.peer(),
            Part::Machine => self.machine(),
            Part::Module => self.module(),
            Part::Torture => self.torture(),
            Part::Passthrough => {
                // Its two kernels want the cache, one after the other.
                self.kernel = None;
                let counts = passthrough::short(self.project, self.flavour);
                let count = counts.map(|(passed, failed, skipped)| Count {
                    passed,
                    failed,
                    skipped,
                });
                self.keep("passthrough", count);
            }
            Part::Readme => self.readme(),
        }
    }

    /// Runs a part and keeps its result; an error is a failure.
    fn step(
        &mut self,
        name: &str,
        doing: &str,
        work: impl FnOnce(&Project, &Step) -> Result<Count>,
    ) {
        let count = Step::start(self.project, name, doing).and_then(|step| {
            let count = work(self.project, &step)?;
            if count.failed > 0 {
                println!("    | the whole log: {}", step.log().display());
            }
            step.done(&format!("{} passed, {} failed", count.passed, count.failed));
            Ok(count)
        });
        self.keep(name, count);
    }

    fn keep(&mut self, name: &str, count: Result<Count>) {
        let count = match count {
            // A part that did nothing has not passed.
            Ok(count) if count == Count::default() => {
                println!("error: {name}: nothing was run");
                Count::one(false)
            }
            Ok(count) => count,
            Err(error) => {
                println!("error: {error:#}");
                Count::one(false)
            }
        };
        self.summary.push((name.to_owned(), count));
    }

    fn with_kernel(
        &mut self,
        name: &str,
        doing: &str,
        work: impl FnOnce(&Project, &Kernel, &Step) -> Result<Count>,
    ) {
        let project = self.project;
        let Some(kernel) = self.kernel() else {
            return self.keep(name, Err(anyhow::anyhow!("{name}: there is no kernel")));
        };
        self.step(name, doing, |_, step| work(project, &kernel, step));
        self.kernel = Some(Some(kernel));
    }

    /// Takes the kernel out, building it the first time.
    fn kernel(&mut self) -> Option<Kernel> {
        match self.kernel.take() {
            Some(kernel) => {
                if kernel.is_none() {
                    self.kernel = Some(None);
                }
                kernel
            }
            None => match kernel::build(self.project, self.flavour) {
                Ok(kernel) => {
                    self.keep("kernel", Ok(Count::one(true)));
                    Some(kernel)
                }
                Err(error) => {
                    self.keep("kernel", Err(error));
                    self.kernel = Some(None);
                    None
                }
            },
        }
    }

    fn guest(&mut self) {
        let Some(kernel) = self.kernel() else {
            let error = anyhow::anyhow!("guest: there is no kernel to boot");
            return self.keep("guest", Err(error));
        };
        match Machine::of_kernel(self.project, kernel) {
            Ok(machine) => {
                for variant in &BOOTS {
                    self.boot(&machine, variant);
                }
                self.step("guest-apertures", "comparing the boots", |project, step| {
                    compare_boots(project, step).map(Count::one)
                });
            }
            Err(error) => self.keep("guest", Err(error)),
        }
    }

    fn boot(&mut self, machine: &Machine, variant: &Variant) {
        let name = format!("guest-{}", variant.name);
        let boot = Self::boot_of(machine, &name, variant);
        self.run_boot(&name, &boot, NOTHING);
    }

    fn boot_of<'b>(machine: &'b Machine, name: &'b str, variant: &Variant) -> Boot<'b> {
        let append = format!("guest.mode=test {KUNIT} {}", variant.words);
        let mut boot = machine.boot(name, append, LIMIT);
        boot.plugged = &["nvme", "igb", "e1000e", "nvme1"];
        boot.generators = GENERATORS;
        boot.memory = variant.memory;
        if variant.name == MORE_LATER {
            boot.arguments = &MAXIMUM;
        }
        // Races want more than two.
        boot.processors = 4;
        boot
    }

    /// Boots and counts what the guest's program reports. A line of QEMU's with
    /// this word is a failure.
    fn run_boot(&mut self, name: &str, boot: &Boot, wrong: &str) {
        self.step(name, "running the guest's suites", |project, step| {
            let mut found = 0;
            let report = boot.run(project, |line| {
                found += usize::from(line.starts_with(wrong));
                if line.starts_with("not ok ") {
                    println!("    | {line}");
                }
            })?;
            let mut count = Count {
                passed: report.count(&Outcome::Passed),
                failed: report.count(&Outcome::Failed),
                skipped: report.count(&Outcome::Skipped),
            };
            for fault in report.faults(true) {
                println!("    | {fault}");
                count.failed += 1;
            }
            if found > 0 {
                println!("    | {found} lines begin with {wrong}");
                count.failed += 1;
            }
            let console = project.logs.join(format!("{name}.console.log"));
            fs::copy(&console, step.log())
                .with_context(|| format!("cannot copy {}", console.display()))?;
            Ok(count)
        });
    }

    /// Runs `make run`, and compares what it printed, and the summary so far, with
    /// the README.
    fn readme(&mut self) {
        let mut lines = self.summary_lines();
        lines.push(last_line(&self.sum()));
        let summary = lines.join("\n").replace("FAIL", "ok  ");
        let is_default = *self.flavour == ["rust"];
        // That process wants the cache for itself.
        self.kernel = None;
        self.step(
            "run",
            "make run, as the README shows it",
            |project, step| {
                let printed = readme::output_of("run", step.log())?;
                // The README shows the driver that is built in.
                if !is_default {
                    return Ok(Count::one(true));
                }
                readme::check(project, "make run", &printed)?;
                readme::check(project, "make test", &summary)?;
                Ok(Count::of((2, 2)))
            },
        );
    }

    fn sum(&self) -> Count {
        let mut sum = Count::default();
        for (_, count) in &self.summary {
            sum.add(*count);
        }
        sum
    }

    /// A line for each part.
    fn summary_lines(&self) -> Vec<String> {
        let line = |(name, count): &(String, Count)| {
            let word = if count.failed == 0 { "ok  " } else { "FAIL" };
            format!(
                "{word} {name:<16} {:>4} passed {:>4} failed {:>4} skipped",
                count.passed, count.failed, count.skipped
            )
        };
        self.summary.iter().map(line).collect()
    }

    /// The summary; its last line is one that any reader of test results takes.
    fn finish(self) -> Result<()> {
        println!();
        for line in self.summary_lines() {
            println!("{line}");
        }
        let sum = self.sum();
        println!("{}", last_line(&sum));
        if sum.failed > 0 || sum.passed == 0 {
            // The line above says it all.
            std::process::exit(1);
        }
        Ok(())
    }
}

/// Whether large windows cost no time at boot.
fn compare_boots(project: &Project, step: &Step) -> Result<bool> {
    let time = |name| {
        let path = project.logs.join(format!("guest-{name}.console.log"));
        user_space(&read(&path)?)
            .with_context(|| format!("{}: no sign of user space", path.display()))
    };
    let small = time(SMALL)?;
    let mut text = format!("user space after {small:.2} s");
    let mut fast = true;
    for name in LARGER {
        let large = time(name)?;
        text += &format!(", {name} {large:.2} s");
        fast &= large <= small * (1.0 + LONGER.0) + LONGER.1;
    }
    println!("    | {text}");
    fs::write(step.log(), &text)?;
    Ok(fast)
}

/// When the kernel started the guest's program, in seconds.
fn user_space(console: &str) -> Option<f64> {
    let line = console.lines().find(|l| l.contains("Run /init"))?;
    let (time, _) = line.split_once('[')?.1.split_once(']')?;
    time.trim().parse().ok()
}

fn last_line(sum: &Count) -> String {
    let mut line = format!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.skipped > 0 {
        line += &format!(", {} skipped", sum.skipped);
    }
    line
}

/// The tests of a program of the checkout, with flags for the compiler.
fn cargo_test(project: &Project, step: &Step, folder: &str, flags: &str) -> Result<Count> {
    let folder = project.root.join(folder);
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        bail!("{} is not there", manifest.display());
    }
    let target = lint::target_folder(project, &folder);
    let mut command = project.command(&project.cargo);
    command
        .args(["test", "--release", "--locked", "--no-fail-fast"])
        .arg("--manifest-path")
        .arg(manifest);
    if flags.is_empty() {
        command.env("CARGO_TARGET_DIR", target);
    } else {
        // Other flags, other objects.
        command.env("CARGO_TARGET_DIR", target.with_extension("flags"));
        command.env("RUSTFLAGS", flags);
    }
    let good = step.check(&mut command)?;
    let mut count = count_results(&read(step.log())?);
    if !good && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// What coverage-guided fuzzing needs of the compiler; a stable one does.
const FUZZ_FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// A bounded run of the fuzz target, from its corpus. What it finds anew stays
/// out of the checkout.
fn fuzz(project: &Project, step: &Step) -> Result<Count> {
    let folder = project.root.join("tests/host/fuzz");
    let scratch = project.build.join("fuzz");
    fs::create_dir_all(&scratch)?;
    let mut command = project.command(&project.cargo);
    command
        .args(["run", "--release", "--locked"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .args(["--", "-runs=20000", "-max_len=1024", "-seed=1"])
        .arg(&scratch)
        .arg(folder.join("corpus/operations"))
        .current_dir(&scratch)
        .env("CARGO_TARGET_DIR", lint::target_folder(project, &folder))
        .env("RUSTFLAGS", FUZZ_FLAGS);
    let good = step.status(&mut command)?;
    let ran = read(step.log())?.contains("Done 20000 runs");
    Ok(Count::one(good && ran))
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Adds up cargo's `test result: ok. 3 passed; 0 failed; 1 ignored; ...` lines.
fn count_results(log: &str) -> Count {
    let mut sum = Count::default();
    for line in log.lines().filter_map(|l| l.strip_prefix("test result: ")) {
        let number = |word: &str| -> usize {
            line.split([';', '.'])
                .filter_map(|part| part.trim().split_once(' '))
                .find(|(_, name)| *name == word)
                .and_then(|(number, _)| number.parse().ok())
                .unwrap_or(0)
        };
        sum.add(Count {
            passed: number("passed"),
            failed: number("failed"),
            skipped: number("ignored"),
        });
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_are_added() {
        let log = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
            test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let want = Count {
            passed: 5,
            failed: 1,
            skipped: 1,
        };
        assert_eq!(count_results(log), want);
        assert_eq!(count_results("error: could not compile"), Count::default());
    }

    #[test]
    fn parts_are_found_by_name() {
        assert_eq!(parts("tools,module").unwrap(), [Part::Tools, Part::Module]);
        assert!(parts("tools,none").is_err());
    }

    #[test]
    fn the_way_to_user_space() {
        let console = "[    0.1] Linux\n[    1.579874] Run /init as init process\n";
        assert_eq!(user_space(console), Some(1.579874));
        assert_eq!(user_space("[    0.1] Linux"), None);
    }

    #[test]
    fn the_last_line() {
        let mut sum = Count::of((5, 6));
        assert_eq!(last_line(&sum), "5 passed, 1 failed");
        sum.skipped = 2;
        assert_eq!(last_line(&sum), "5 passed, 1 failed, 2 skipped");
    }
}
