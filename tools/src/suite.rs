// SPDX-License-Identifier: GPL-2.0
//! `make test`: every check, with a summary. A check that cannot run has failed.

mod module;
mod peer;
pub mod torture;

use crate::{
    boots::{self, Variant},
    lint, mutants, passthrough,
    prelude::*,
    readme, selftests, series,
};

/// The parts of `make test`. [`LONG`] runs only when named.
const PARTS: &str = "license format docs tools host model fuzz mutants series clippy rustdoc \
    checkpatch sparse guest peer machine torture module passthrough readme";
const LONG: &str = "passthrough";

/// A boot with all suites takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(900);
/// Windows as large as memory, larger, and as large as the machine grants. Each boot
/// must reach user space about as fast.
const SMALL: &str = "aperture-1";
const LARGER: [&str; 4] = ["aperture-64", "aperture-512", "aperture-0", "maxmem"];
/// How much longer the large window may take: a share, and seconds.
const LONGER: (f64, f64) = (0.2, 0.3);
/// A hit in a function's cache that the tables no longer confirm. In strict mode a
/// device does not access memory after its unmap.
const STALE: &str = "s390_pci_iotlb_stale";

/// `make test`; `PART=a,b` names some of its parts.
pub fn run(project: &Project) -> Result<()> {
    let Some(names) = text("PART") else {
        let names = PARTS.split(' ').filter(|name| *name != LONG);
        return only(project, &Vec::from_iter(names));
    };
    let names = names.to_ascii_lowercase();
    only(project, &Vec::from_iter(names.split([',', ' '])))
}

/// Some parts of it.
pub fn only(project: &Project, names: &[&str]) -> Result<()> {
    let is_unknown = |name: &&&str| !PARTS.split(' ').any(|part| part == **name);
    if let Some(name) = names.iter().find(is_unknown) {
        let names = names.join(",");
        bail!("PART={names}: there is no {name}, but {PARTS}");
    }
    deps::ensure(project)?;
    let mut suite = Suite::new(project);
    for name in names {
        if let Err(error) = suite.part(name) {
            suite.keep(name, Err(error));
        }
    }
    suite.finish()
}

struct Suite<'a> {
    project: &'a Project,
    /// Built by the first part that needs one; an error is printed once.
    kernel: Option<Option<Kernel>>,
    summary: Vec<(String, Count)>,
}

impl<'a> Suite<'a> {
    fn new(project: &'a Project) -> Self {
        Self {
            project,
            kernel: None,
            summary: Vec::new(),
        }
    }

    fn part(&mut self, name: &str) -> Result<()> {
        match name {
            "license" => {
                let doing = "looking for the license in every file";
                self.step(name, doing, lint::check_licenses);
            }
            "format" => self.step(name, "checking the formatting", lint::check_format),
            "docs" => {
                let pages = self.project.root.join(lint::PAGES);
                self.step("htmldocs", "writing the pages", |step| {
                    lint::write_pages(step, &pages, "htmldocs").map(Count::one)
                });
            }
            "tools" => self.cargo_test(name, "testing the tools", "tools", ""),
            "host" => {
                let doing = "testing the pure files on this machine";
                self.cargo_test(name, doing, "tests/host", "");
            }
            // The same under every interleaving of a few threads.
            "model" => {
                let doing = "checking every interleaving";
                self.cargo_test(name, doing, "tests/host", "--cfg loom");
            }
            // Operations on the tables that a fuzzer makes up, for a while.
            "fuzz" => self.step(name, "fuzzing the tables", fuzz),
            "mutants" => {
                let doing = "applying the changes that tests must notice";
                self.step(name, doing, mutants::check);
            }
            // The patches for the kernel's lists: git am, checkpatch.
            "series" => {
                // It reads the cache, which the kernel would lock.
                self.kernel = None;
                self.step(name, "making the patches, checkpatch", series::check);
            }
            "clippy" => {
                self.step(name, "clippy on the programs", lint::clippy_programs);
                let doing = "clippy on the driver and on modules";
                self.with_kernel("clippy-driver", doing, lint::clippy_driver);
            }
            "rustdoc" => self.with_kernel(name, "writing the driver's pages", lint::check_rustdoc),
            "checkpatch" => self.with_kernel(name, "checkpatch on all C", lint::checkpatch),
            "sparse" => self.with_kernel(name, "sparse on the C that is built in", lint::sparse),
            "guest" => self.guest()?,
            "peer" => self.peer(),
            "machine" => self.machine()?,
            // The short form of `make torture`.
            "torture" => self.torture()?,
            "module" => self.module()?,
            "passthrough" => {
                // Its two kernels need the cache, one after the other.
                self.kernel = None;
                let count = passthrough::short(self.project);
                self.keep(name, count);
            }
            "readme" => self.readme(),
            _ => bail!("there is no part {name}"),
        }
        Ok(())
    }

    fn cargo_test(&mut self, name: &str, doing: &str, folder: &str, flags: &str) {
        self.step(name, doing, |step| cargo_test(step, folder, flags));
    }

    /// Runs a part and keeps its result; an error is a failure.
    fn step(&mut self, name: &str, doing: &str, work: impl FnOnce(&Step) -> Result<Count>) {
        let count = Step::start(self.project, name, doing).and_then(|step| {
            let count = work(&step)?;
            if count.failed > 0 {
                println!("    | the whole log: {}", step.log());
            }
            step.done(&format!("{} passed, {} failed", count.passed, count.failed));
            Ok(count)
        });
        self.keep(name, count);
    }

    fn keep(&mut self, name: &str, count: Result<Count>) {
        let count = match count {
            // A part that did nothing has not passed.
            Ok(count) if count == Count::default() => Err(anyhow!("{name}: nothing was run")),
            other => other,
        };
        let count = count.unwrap_or_else(|error| {
            println!("error: {error:#}");
            Count::one(false)
        });
        self.summary.push((name.to_owned(), count));
    }

    fn with_kernel(
        &mut self,
        name: &str,
        doing: &str,
        work: impl FnOnce(&Kernel, &Step) -> Result<Count>,
    ) {
        match self.kernel_for(name) {
            Ok(kernel) => {
                self.step(name, doing, |step| work(&kernel, step));
                self.kernel = Some(Some(kernel));
            }
            Err(error) => self.keep(name, Err(error)),
        }
    }

    /// Takes the kernel out for a part, building it the first time.
    fn kernel_for(&mut self, name: &str) -> Result<Kernel> {
        let kernel = self.kernel.take().unwrap_or_else(|| {
            let built = kernel::build(self.project, &self.project.flavour);
            let (kernel, count) = match built {
                Ok(kernel) => (Some(kernel), Ok(Count::one(true))),
                Err(error) => (None, Err(error)),
            };
            self.keep("kernel", count);
            kernel
        });
        if kernel.is_none() {
            self.kernel = Some(None);
        }
        kernel.with_context(|| format!("{name}: there is no kernel"))
    }

    fn guest(&mut self) -> Result<()> {
        self.boots("guest", &boots::GUEST, LIMIT, "")?;
        self.step("guest-apertures", "comparing the boots", compare_boots);
        Ok(())
    }

    /// The boots on the emulator of `make machine`, or the one of `BOOT=`.
    fn machine(&mut self) -> Result<()> {
        let named = text("BOOT");
        let is_wanted = |boot: &&Variant| named.as_ref().is_none_or(|name| name == boot.name);
        let boots = boots::MACHINE.iter().filter(is_wanted);
        self.boots("machine", boots, LIMIT, &more_arguments())
    }

    /// Some boots, with more arguments for the kernel.
    fn boots<'b>(
        &mut self,
        table: &str,
        boots: impl IntoIterator<Item = &'b Variant>,
        limit: Duration,
        more: &str,
    ) -> Result<()> {
        // Boots with the same kernel share a machine.
        let mut last = None;
        for variant in boots {
            let wanted = (self.fragments(variant), variant.selftests);
            let (_, machine) = match last.take() {
                Some((same, machine)) if same == wanted => last.insert((same, machine)),
                _ => last.insert((wanted, self.machine_of(table, wanted)?)),
            };
            let kernels = variant.kernels.then(|| self.kernels(machine)).transpose()?;
            let name = format!("{table}-{}", variant.name);
            let mut boot = variant.boot(machine, &name, limit);
            boot.append += &format!(" {more}");
            boot.root = kernels.as_deref();
            self.run_boot(&name, &boot);
        }
        Ok(())
    }

    /// The fragments of a boot's kernel; none for the kernel of the other parts.
    fn fragments(&self, variant: &Variant) -> &'static str {
        match variant.kernel {
            // The kernel of the other parts is as fast.
            boots::FAST if !self.project.flavour.contains("debug") => "",
            fragments => fragments,
        }
    }

    fn machine_of(&mut self, part: &str, (fragments, selftests): (&str, bool)) -> Result<Machine> {
        let kernel = if fragments.is_empty() {
            self.kernel_for(part)?
        } else {
            // The cache is needed for another kernel.
            self.kernel = None;
            kernel::build(self.project, fragments)?
        };
        let programs = selftests.then(|| selftests::build(self.project, &kernel));
        let programs = programs.transpose()?.unwrap_or_default();
        Machine::with_files(self.project, &kernel, &programs)?.corrected(self.project)
    }

    /// Boots and counts what the guest's program reports.
    fn run_boot(&mut self, name: &str, boot: &Boot) {
        self.step(name, "running the guest's suites", |step| {
            let mut stale = 0;
            let report = boot.run(step, |line| {
                stale += usize::from(line.starts_with(STALE));
                if line.starts_with("not ok ") {
                    println!("    | {line}");
                }
            })?;
            let stale = (stale > 0).then(|| format!("{stale} lines begin with {STALE}"));
            let count = report.judge(step, stale);
            fs::copy(step.console(name), step.log())?;
            Ok(count)
        });
    }

    /// Runs `make run`, and compares what it printed, and the summary so far, with
    /// the README.
    fn readme(&mut self) {
        let mut lines = self.summary_lines();
        lines.push(self.sum().to_string());
        let summary = lines.join("\n").replace("FAIL", "ok  ");
        let is_default = self.project.flavour == "rust";
        // That process needs the cache for itself.
        self.kernel = None;
        self.step("run", "make run, as the README shows it", |step| {
            // The environment is the caller's: CONFIG= and the like count here as well.
            let mut command = Command::new(std::env::current_exe()?);
            let printed = step.output(command.arg("run"), "make run says why")?;
            // The README shows the driver that is built in.
            if !is_default {
                return Ok(Count::one(true));
            }
            readme::check(step.project, "make run", &printed)?;
            readme::check(step.project, "make test", &summary)?;
            Ok([true; 2].into_iter().collect())
        });
    }

    fn sum(&self) -> Count {
        let mut sum = Count::default();
        self.summary.iter().for_each(|(_, count)| sum += *count);
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

    fn finish(self) -> Result<()> {
        println!("\n{}", self.summary_lines().join("\n"));
        self.sum().finish();
        Ok(())
    }
}

/// Whether large windows cost no time at boot.
fn compare_boots(step: &Step) -> Result<Count> {
    let time = |name| {
        let path = step.project.console(&format!("guest-{name}"));
        user_space(&read_lossy(&path)?).with_context(|| format!("{path}: no sign of user space"))
    };
    let small = time(SMALL)?;
    let mut text = format!("user space after {small:.2} s");
    let mut fast = true;
    for name in LARGER {
        let large = time(name)?;
        text += &format!(", {name} {large:.2} s");
        fast &= large <= small * (1.0 + LONGER.0) + LONGER.1;
    }
    step.show(&text);
    fs::write(step.log(), &text)?;
    Ok(Count::one(fast))
}

/// When the kernel started the guest's program, in seconds.
fn user_space(console: &str) -> Option<f64> {
    let line = console.lines().find(|l| l.contains("Run /init"))?;
    let (time, _) = line.split_once('[')?.1.split_once(']')?;
    time.trim().parse().ok()
}

/// The tests of a program of the checkout, with flags for the compiler.
fn cargo_test(step: &Step, folder: &str, flags: &str) -> Result<Count> {
    let (cargo, folder) = (&step.cargo, step.root.join(folder));
    let target = lint::target_folder(step, &folder);
    let mut command = command!(
        step,
        "{cargo} test --release --locked --no-fail-fast --manifest-path {folder}/Cargo.toml"
    );
    if flags.is_empty() {
        command.env("CARGO_TARGET_DIR", target);
    } else {
        // Other flags, other objects.
        command.env("CARGO_TARGET_DIR", target.with_extension("flags"));
        command.env("RUSTFLAGS", flags);
    }
    let (good, output) = step.attempt(&mut command)?;
    let mut count = count_results(&output);
    if !good {
        step.show_end(&output);
        count.failed = count.failed.max(1);
    }
    Ok(count)
}

/// The compiler's flags for coverage-guided fuzzing; a stable compiler has them.
const FUZZ_FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// A bounded run of the fuzz target, from its corpus. New inputs stay out of the
/// checkout.
fn fuzz(step: &Step) -> Result<Count> {
    let (cargo, folder) = (&step.cargo, step.root.join("tests/host/fuzz"));
    let scratch = step.build.join("fuzz");
    fs::create_dir_all(&scratch)?;
    let (good, output) = step.attempt(
        command!(
            step,
            "{cargo} run --release --locked --target x86_64-unknown-linux-gnu
                --manifest-path {folder}/Cargo.toml
                -- -runs=20000 -max_len=1024 -seed=1 {scratch} {folder}/corpus/operations"
        )
        .current_dir(&scratch)
        .env("CARGO_TARGET_DIR", lint::target_folder(step, &folder))
        .env("RUSTFLAGS", FUZZ_FLAGS),
    )?;
    Ok(Count::one(good && output.contains("Done 20000 runs")))
}

/// Adds up cargo's `test result: ok. 3 passed; 0 failed; 1 ignored; ...` lines.
fn count_results(log: &str) -> Count {
    let mut sum = Count::default();
    for line in log.lines().filter_map(|l| l.strip_prefix("test result: ")) {
        let parts: Vec<&str> = line.split([' ', ';']).collect();
        let number = |word| {
            let pair = parts.windows(2).find(|pair| pair[1] == word);
            pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
        };
        sum += Count {
            passed: number("passed"),
            failed: number("failed"),
            skipped: number("ignored"),
        };
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
        let want = "5 passed, 1 failed, 1 skipped";
        assert_eq!(count_results(log).to_string(), want);
        assert_eq!(count_results("error: could not compile"), Count::default());
    }

    #[test]
    fn the_way_to_user_space() {
        let console = "[    0.1] Linux\n[    1.579874] Run /init as init process\n";
        assert_eq!(user_space(console), Some(1.579874));
        assert_eq!(user_space("[    0.1] Linux"), None);
    }
}
