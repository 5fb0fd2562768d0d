// SPDX-License-Identifier: GPL-2.0
//! `make test`: every check, with a summary. What cannot be run has failed.

mod module;
mod peer;
pub mod torture;

use crate::{
    boots::{Boots, Variant},
    lint, mutants, passthrough,
    prelude::*,
    readme, selftests, series,
};

/// A part of `make test`: its name, and what it does.
type Part = (&'static str, fn(&mut Suite));

/// All parts. What takes long on two processors is run by name only.
const PARTS: [Part; 19] = [
    ("license", |suite| {
        let doing = "looking for the license in every file";
        suite.step("license", doing, lint::check_licenses);
    }),
    ("format", |suite| {
        suite.step("format", "checking the formatting", lint::check_format);
    }),
    ("docs", |suite| {
        suite.step("htmldocs", "writing the pages", lint::check_pages);
    }),
    ("tools", |suite| {
        let work = |step: &Step| cargo_test(step, "tools", "");
        suite.step("tools", "testing the tools", work);
    }),
    ("host", |suite| {
        let work = |step: &Step| cargo_test(step, "tests/host", "");
        suite.step("host", "testing the pure files on this machine", work);
    }),
    // the same under every interleaving of a few threads
    ("model", |suite| {
        let work = |step: &Step| cargo_test(step, "tests/host", "--cfg loom");
        suite.step("model", "checking every interleaving", work);
    }),
    // operations on the tables that a fuzzer makes up, for a while
    ("fuzz", |suite| {
        suite.step("fuzz", "fuzzing the tables", fuzz);
    }),
    // changes by which the tests above have to fail
    ("mutants", |suite| {
        let doing = "applying the changes that tests must notice";
        suite.step("mutants", doing, mutants::check);
    }),
    // the patches for the kernel's lists: git am, checkpatch
    ("series", |suite| {
        // It reads the cache, which a kernel that was built holds.
        suite.kernel = None;
        suite.step("series", "making the patches, checkpatch", series::check);
    }),
    ("clippy", |suite| {
        suite.step("clippy", "clippy on the programs", lint::clippy_programs);
        let doing = "clippy on the driver and on modules";
        suite.with_kernel("clippy-driver", doing, lint::clippy_driver);
    }),
    ("rustdoc", |suite| {
        suite.with_kernel("rustdoc", "writing the driver's pages", lint::check_rustdoc);
    }),
    ("checkpatch", |suite| {
        suite.with_kernel("checkpatch", "checkpatch on all C", lint::checkpatch);
    }),
    // everything in the guest
    ("guest", |suite| suite.attempt("guest", Suite::guest)),
    // this driver and the one in C in the same suites
    ("peer", |suite| suite.attempt("peer", Suite::peer)),
    // the guest on the emulator of `make machine`
    ("machine", |suite| suite.attempt("machine", Suite::machine)),
    // functions that come and go, hostile calls: two boots of `make torture`
    ("torture", |suite| suite.attempt("torture", Suite::torture)),
    // the driver as a module
    ("module", |suite| suite.attempt("module", Suite::module)),
    // a guest inside the guest, on a function that is passed through
    ("passthrough", |suite| {
        // Its two kernels want the cache, one after the other.
        suite.kernel = None;
        let count = passthrough::short(suite.project);
        suite.keep("passthrough", count);
    }),
    // `make run`, and that the README shows what it and all other parts print
    ("readme", |suite| suite.readme()),
];
const LONG: [&str; 2] = ["passthrough", "torture"];

/// A boot with all suites takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(900);
/// Windows as large as memory, larger, and as large as the machine grants: the way
/// to user space takes as long.
const SMALL: &str = "aperture-1";
const LARGER: [&str; 4] = ["aperture-64", "aperture-512", "aperture-0", "maxmem"];
/// How much longer the large window may take: a share, and seconds.
const LONGER: (f64, f64) = (0.2, 0.3);
/// The driver's KUnit suites run at boot; the guest's program reads their results.
pub const KUNIT: &str = "kunit.enable=1 kunit.autorun=1 kunit.filter_glob=s390_iommu*";
/// A hit in a function's cache that the tables do not bear out any more. In strict
/// mode no access of a device comes after its unmap.
const STALE: &str = "s390_pci_iotlb_stale";

/// `make test`; `PART=a,b` names some of its parts.
pub fn run(project: &Project) -> Result<()> {
    let names = match text("PART") {
        Some(names) => names,
        None => PARTS.map(|(name, _)| name).join(","),
    };
    let is_wanted = |name: &&str| text("PART").is_some() || !LONG.contains(name);
    let names: Vec<&str> = names.split([',', ' ']).filter(is_wanted).collect();
    only(project, &names)
}

/// Some parts of it.
pub fn only(project: &Project, names: &[&str]) -> Result<()> {
    let find = |name: &&str| {
        let part = PARTS.iter().find(|part| part.0.eq_ignore_ascii_case(name));
        part.with_context(|| {
            let known = PARTS.map(|part| part.0).join(" ");
            format!("PART={}: there is no {name}, but {known}", names.join(","))
        })
    };
    let parts = names.iter().map(find).collect::<Result<Vec<_>>>()?;
    deps::ensure(project)?;
    let mut suite = Suite::new(project);
    for (_, work) in parts {
        work(&mut suite);
    }
    suite.finish()
}

struct Suite<'a> {
    project: &'a Project,
    /// Built by the first part that needs one; the error is told once.
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

    /// Runs a part that has steps of its own.
    fn attempt(&mut self, name: &str, part: fn(&mut Self) -> Result<()>) {
        if let Err(error) = part(self).with_context(|| name.to_owned()) {
            self.keep(name, Err(error));
        }
    }

    fn with_kernel(
        &mut self,
        name: &str,
        doing: &str,
        work: impl FnOnce(&Kernel, &Step) -> Result<Count>,
    ) {
        match self.kernel() {
            Ok(kernel) => {
                self.step(name, doing, |step| work(&kernel, step));
                self.kernel = Some(Some(kernel));
            }
            Err(error) => self.keep(name, Err(error.context(name.to_owned()))),
        }
    }

    /// Takes the kernel out, building it the first time.
    fn kernel(&mut self) -> Result<Kernel> {
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
        kernel.context("there is no kernel")
    }

    fn guest(&mut self) -> Result<()> {
        let boots = Boots::read()?.guest;
        self.boots("guest", boots.iter(), LIMIT, KUNIT)?;
        self.step("guest-apertures", "comparing the boots", compare_boots);
        Ok(())
    }

    /// Those whose functions are as real machines have them, or the one of `BOOT=`.
    fn machine(&mut self) -> Result<()> {
        let (boots, named) = (Boots::read()?.machine, text("BOOT"));
        let is_wanted = |boot: &&Variant| named.as_ref().is_none_or(|name| *name == boot.name);
        let words = format!("{KUNIT} {}", more_words());
        self.boots("machine", boots.iter().filter(is_wanted), LIMIT, &words)
    }

    /// The boots of a table, with more words.
    fn boots<'b>(
        &mut self,
        table: &str,
        boots: impl Iterator<Item = &'b Variant>,
        limit: Duration,
        words: &str,
    ) -> Result<()> {
        // As long as a kernel is the same, so is what it is booted with.
        let mut last = None;
        for variant in boots {
            let wanted = (self.kernel_of(variant), variant.selftests);
            let (_, machine) = match last.take() {
                Some((same, machine)) if same == wanted => last.insert((same, machine)),
                _ => last.insert((wanted, self.machine_of(wanted)?)),
            };
            let kernels = variant.kernels.then(|| self.kernels(machine)).transpose()?;
            let name = format!("{table}-{}", variant.name);
            let mut boot = variant.boot(machine, &name, limit);
            boot.append += &format!(" {words}");
            boot.root = kernels.as_deref();
            self.run_boot(&name, &boot);
        }
        Ok(())
    }

    /// The fragments of a boot's kernel, or none for that of all parts.
    fn kernel_of<'b>(&self, variant: &'b Variant) -> &'b str {
        let finds_mistakes = self.project.flavour.contains("debug");
        match &*variant.kernel {
            // That of all parts is as fast as this.
            "rust" if !finds_mistakes => "",
            names => names,
        }
    }

    fn machine_of(&mut self, (fragments, selftests): (&str, bool)) -> Result<Machine> {
        let kernel = if fragments.is_empty() {
            self.kernel()?
        } else {
            // The cache is needed for another kernel.
            self.kernel = None;
            kernel::build(self.project, fragments)?
        };
        let programs = match selftests {
            true => selftests::build(self.project, &kernel)?,
            false => Vec::new(),
        };
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
        // That process wants the cache for itself.
        self.kernel = None;
        self.step("run", "make run, as the README shows it", |step| {
            let printed = readme::output_of("run", step.log())?;
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

/// What coverage-guided fuzzing needs of the compiler; a stable one does.
const FUZZ_FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// A bounded run of the fuzz target, from its corpus. What it finds anew stays
/// out of the checkout.
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
        let words: Vec<&str> = line.split([' ', ';']).collect();
        let number = |word| {
            let pair = words.windows(2).find(|pair| pair[1] == word);
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
