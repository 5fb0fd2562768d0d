// SPDX-License-Identifier: GPL-2.0
//! `make torture`: the guest's suites on a kernel that finds mistakes, and what may
//! happen to a machine many times. A short form of it is a part of `make test`, on
//! the kernel of the other parts.

use super::{module::make_ext2, Suite, GENERATORS, KUNIT, NOTHING};
use crate::{
    deps,
    guest::Machine,
    kernel::{self, flavour, Flavour},
    project::{more_words, text, Project},
    qemu::{Boot, EVERYTHING},
    steps::Step,
};
use anyhow::{bail, Context, Result};
use fs_err as fs;
use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// No boot takes as long, on a machine that has other work as well.
const LIMIT: Duration = Duration::from_secs(3600);
/// The kernel that finds mistakes; `CONFIG=c` is put in for `rust`.
const DEBUG: [&str; 2] = ["debug", "torture"];
/// What it is booted with: all messages are kept, pages that are given back must not
/// be mapped.
const WORDS: &str = "iommu.debug_pagealloc=1 page_owner=on log_buf_len=16M guest.leaks=1";
/// In `make test`: few rounds.
const SHORT: &str = "guest.rounds=6 guest.seconds=3";

/// A kernel that a boot needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// That of all boots.
    This,
    /// One that is as fast as it can be, without what finds mistakes.
    Fast,
    /// One with the driver as a module.
    Module,
    /// One that finds data races.
    Races,
}
use Needs::{Fast, Module, Races, This};

/// A boot of the campaign: its name, its kernel, its devices, and words for the kernel.
type Campaign = (&'static str, Needs, fn(&mut Boot), &'static str);
const BOOTS: [Campaign; 10] = [
    ("suites", This, usual, "iommu.strict=1"),
    (
        "storms",
        This,
        storm,
        "guest.suite=storms,killed,processors guest.rounds=6",
    ),
    ("oracle", This, storm, "guest.suite=oracle,hostile"),
    (
        "allocations",
        This,
        storm,
        "guest.suite=failing,allocations",
    ),
    (
        "start",
        This,
        storm_at_boot,
        "driver_async_probe=* guest.suite=boot,nvme,nic",
    ),
    (
        "reloads",
        Module,
        nothing,
        "guest.suite=reloads guest.driver=later slab_debug=U,kmalloc-*",
    ),
    ("fast", Fast, storm, "guest.suite=storms,killed,processors"),
    ("kexec", Fast, two_kernels, "guest.suite=kexec"),
    ("races", Races, storm, "guest.suite=oracle,stress,nvme,nic"),
    (
        "crash",
        This,
        two_kernels,
        "guest.suite=crash crashkernel=768M",
    ),
];
/// Those that `make test` has.
const SHORT_BOOTS: [&str; 2] = ["oracle", "fast"];
/// Those that find kernels in files of the first drive.
const WITH_KERNELS: [&str; 2] = ["kexec", "crash"];

/// The devices of `make test`.
fn usual(boot: &mut Boot) {
    boot.append += &format!(" {KUNIT}");
    boot.plugged = EVERYTHING;
    boot.generators = GENERATORS;
}

/// One of each kind that comes and goes.
fn storm(boot: &mut Boot) {
    boot.plugged = &["nvme", "igb", "e1000e", "virtio", "nvme1"];
}

/// One comes and goes while the kernel starts.
fn storm_at_boot(boot: &mut Boot) {
    boot.plugged = EVERYTHING;
    boot.storm = Some("virtio");
}

fn nothing(boot: &mut Boot) {
    boot.plugged = &[];
}

/// The drives and cards, and memory for a kernel that waits.
fn two_kernels(boot: &mut Boot) {
    boot.plugged = EVERYTHING;
    boot.memory = 3;
}

/// `make torture`; `ONLY=` names one of its boots.
pub fn run(project: &Project, flavour: &Flavour) -> Result<()> {
    let names = BOOTS.map(|boot| boot.0);
    let only = text("ONLY");
    if let Some(only) = only.as_ref().filter(|only| !names.contains(&only.as_str())) {
        bail!("ONLY={only}: it is one of {}", names.join(" "));
    }
    deps::ensure(project)?;
    let debug = DEBUG.iter().map(|name| name.to_string());
    let debug: Flavour = flavour.iter().cloned().chain(debug).collect();
    let mut suite = Suite::new(project, &debug);
    let is_wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    suite.boots(is_wanted, WORDS)?;
    suite.finish()
}

/// What is done at random begins with it.
fn seed() -> Result<u64> {
    match text("SEED") {
        Some(text) => text
            .parse()
            .with_context(|| format!("SEED={text} is no number")),
        None => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
    }
}

impl Suite<'_> {
    /// The part of `make test`.
    pub(super) fn torture(&mut self) -> Result<()> {
        self.boots(|name| SHORT_BOOTS.contains(&name), SHORT)
    }

    fn boots(&mut self, is_wanted: impl Fn(&str) -> bool, words: &str) -> Result<()> {
        let seed = seed()?;
        println!("           torture: SEED={seed} does the same at random");
        let finds_mistakes = self.flavour.iter().any(|name| name == DEBUG[0]);
        // As long as a kernel is the same, so is what it is booted with.
        let mut machine: Option<(Needs, Machine)> = None;
        for (name, needs, change, more) in BOOTS.into_iter().filter(|boot| is_wanted(boot.0)) {
            let needs = if needs == Fast && !finds_mistakes {
                This
            } else {
                needs
            };
            let (_, machine) = match machine.take() {
                Some(same) if same.0 == needs => machine.insert(same),
                _ => machine.insert((needs, self.torture_machine(needs)?)),
            };
            let with_kernels = WITH_KERNELS.contains(&name);
            let kernels = with_kernels.then(|| self.kernels(machine)).transpose()?;
            let name = format!("torture-{name}");
            let append = format!("guest.mode=test {more}");
            let mut boot = machine.boot(&name, append, LIMIT);
            boot.processors = 4;
            boot.root = kernels.as_deref();
            change(&mut boot);
            boot.append += &format!(" {words} guest.seed={seed} {}", more_words());
            self.run_boot(&name, &boot, NOTHING);
        }
        Ok(())
    }

    fn torture_machine(&mut self, needs: Needs) -> Result<Machine> {
        let fragments = match needs {
            This => {
                let kernel = self.kernel_for("torture")?;
                return Machine::of_kernel(self.project, kernel)?.corrected(self.project);
            }
            Fast => "rust",
            Module => "module",
            Races => "rust,kcsan",
        };
        // The cache is needed for another kernel.
        self.kernel = None;
        Machine::prepare(self.project, &flavour(fragments))?.corrected(self.project)
    }

    /// A file system with kernels of both drivers, and the guest's root.
    fn kernels(&mut self, machine: &Machine) -> Result<PathBuf> {
        // The cache is needed for it.
        self.kernel = None;
        let other = kernel::build(self.project, &flavour("c"))?;
        let step = Step::start(self.project, "kernels", "making a file system of kernels")?;
        let tree = self.project.build.join("kernels");
        fs::create_dir_all(&tree)?;
        fs::copy(&machine.image, tree.join("rust"))?;
        fs::copy(&other.image, tree.join("c"))?;
        fs::copy(&machine.initrd, tree.join("initrd"))?;
        make_ext2(step, &tree, "192M")
    }
}
