// SPDX-License-Identifier: GPL-2.0
//! `make torture`: the guest's suites on a kernel that finds mistakes, and what may
//! happen to a machine many times. A short form of it is a part of `make test`, on
//! the kernel of the other parts.

use super::{Suite, GENERATORS, KUNIT, NOTHING};
use crate::{
    deps,
    guest::Machine,
    kernel::{self, flavour, Flavour},
    project::{variable, Project},
    qemu::{Boot, EVERYTHING},
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
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

/// Which devices a boot has from the start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Devices {
    /// As `make test` has them.
    Usual,
    /// One of each kind that comes and goes.
    Storm,
    /// The same, on a kernel that is fast enough for many rounds.
    FastStorm,
    /// As for a storm, and one comes and goes while the kernel starts.
    BootStorm,
    /// None; the kernel has the driver as a module.
    None,
    /// The drives and cards, and kernels in files of the first drive.
    Kernels,
    /// The same, on the kernel of most boots, and memory for one that waits.
    Crash,
    /// As for a storm, on a kernel that finds data races.
    Races,
}

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

/// A boot of the campaign.
struct Campaign {
    name: &'static str,
    words: &'static str,
    devices: Devices,
    /// Whether `make test` has it.
    is_short: bool,
}

const BOOTS: [Campaign; 10] = [
    Campaign {
        name: "suites",
        words: "iommu.strict=1",
        devices: Devices::Usual,
        is_short: false,
    },
    Campaign {
        name: "storms",
        words: "guest.suite=storms,killed,processors guest.rounds=6",
        devices: Devices::Storm,
        is_short: false,
    },
    Campaign {
        name: "oracle",
        words: "guest.suite=oracle,hostile",
        devices: Devices::Storm,
        is_short: true,
    },
    Campaign {
        name: "allocations",
        words: "guest.suite=failing,allocations",
        devices: Devices::Storm,
        is_short: false,
    },
    Campaign {
        name: "start",
        words: "driver_async_probe=* guest.suite=boot,nvme,nic",
        devices: Devices::BootStorm,
        is_short: false,
    },
    Campaign {
        name: "reloads",
        words: "guest.suite=reloads guest.driver=later slab_debug=U,kmalloc-*",
        devices: Devices::None,
        is_short: false,
    },
    Campaign {
        name: "fast",
        words: "guest.suite=storms,killed,processors",
        devices: Devices::FastStorm,
        is_short: true,
    },
    Campaign {
        name: "kexec",
        words: "guest.suite=kexec",
        devices: Devices::Kernels,
        is_short: false,
    },
    Campaign {
        name: "races",
        words: "guest.suite=oracle,stress,nvme,nic",
        devices: Devices::Races,
        is_short: false,
    },
    Campaign {
        name: "crash",
        words: "guest.suite=crash crashkernel=768M",
        devices: Devices::Crash,
        is_short: false,
    },
];

/// `make torture`; `ONLY=` names one of its boots.
pub fn run(project: &Project, flavour: &Flavour) -> Result<()> {
    let only = variable("ONLY").map(|name| name.to_string_lossy().into_owned());
    let chosen: Vec<_> = BOOTS
        .iter()
        .filter(|boot| only.as_ref().is_none_or(|only| only == boot.name))
        .collect();
    if chosen.is_empty() {
        let names = BOOTS.iter().map(|boot| boot.name).collect::<Vec<_>>();
        bail!(
            "ONLY={}: it is one of {}",
            only.unwrap_or_default(),
            names.join(" ")
        );
    }
    deps::ensure(project)?;
    let debug: Flavour = flavour
        .iter()
        .cloned()
        .chain(DEBUG.map(str::to_owned))
        .collect();
    let mut suite = Suite {
        project,
        flavour: &debug,
        kernel: None,
        summary: Vec::new(),
    };
    suite.boots(&chosen, WORDS)?;
    suite.finish()
}

/// What is done at random begins with it.
fn seed() -> Result<u64> {
    match variable("SEED") {
        Some(text) => {
            let text = text.to_string_lossy();
            text.parse()
                .with_context(|| format!("SEED={text} is no number"))
        }
        None => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
    }
}

impl Suite<'_> {
    /// The part of `make test`.
    pub(super) fn torture(&mut self) {
        let short: Vec<_> = BOOTS.iter().filter(|boot| boot.is_short).collect();
        if let Err(error) = self.boots(&short, SHORT) {
            self.keep("torture", Err(error));
        }
    }

    fn boots(&mut self, boots: &[&Campaign], words: &str) -> Result<()> {
        let seed = seed()?;
        println!("           torture: SEED={seed} does the same at random");
        // As long as a kernel is the same, so is what it is booted with.
        let mut machine: Option<(Needs, Machine)> = None;
        for campaign in boots {
            let needs = self.needs(campaign.devices);
            let machine = match machine.take() {
                Some(same) if same.0 == needs => machine.insert(same),
                _ => machine.insert((needs, self.torture_machine(needs)?)),
            };
            let name = format!("torture-{}", campaign.name);
            let kernels = match campaign.devices {
                Devices::Kernels | Devices::Crash => Some(self.kernels(&machine.1)?),
                _ => None,
            };
            let mut boot = boot_of(&machine.1, &name, campaign);
            boot.append += &format!(" {words} guest.seed={seed}");
            if let Some(words) = variable("APPEND") {
                boot.append += &format!(" {}", words.to_string_lossy());
            }
            boot.root = kernels.as_deref();
            self.run_boot(&name, &boot, NOTHING);
        }
        Ok(())
    }

    fn needs(&self, devices: Devices) -> Needs {
        let finds_mistakes = self.flavour.iter().any(|name| name == DEBUG[0]);
        match devices {
            Devices::None => Needs::Module,
            Devices::Races => Needs::Races,
            Devices::FastStorm | Devices::Kernels if finds_mistakes => Needs::Fast,
            _ => Needs::This,
        }
    }

    fn torture_machine(&mut self, needs: Needs) -> Result<Machine> {
        if needs == Needs::This {
            let kernel = self
                .kernel()
                .context("torture: there is no kernel to boot")?;
            return Machine::of_kernel(self.project, kernel)?.corrected(self.project);
        }
        // The cache is needed for another kernel.
        self.kernel = None;
        let fragments = match needs {
            Needs::Module => "module",
            Needs::Races => "rust,kcsan",
            _ => "rust",
        };
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
        for (name, from) in [
            ("rust", &machine.image),
            ("c", &other.image),
            ("initrd", &machine.initrd),
        ] {
            fs::copy(from, tree.join(name))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let image = tree.with_extension("ext2");
        let _ = fs::remove_file(&image);
        let mut command = self.project.command("mke2fs");
        command
            .args(["-q", "-t", "ext2", "-d"])
            .arg(&tree)
            .arg(&image)
            .arg("192M");
        step.run(&mut command, "check that there is space")?;
        step.done("made");
        Ok(image)
    }
}

fn boot_of<'a>(machine: &'a Machine, name: &'a str, campaign: &Campaign) -> Boot<'a> {
    let append = format!("guest.mode=test {} ", campaign.words);
    let mut boot = machine.boot(name, append, LIMIT);
    boot.processors = 4;
    match campaign.devices {
        Devices::Usual => {
            boot.append += KUNIT;
            boot.plugged = EVERYTHING;
            boot.generators = GENERATORS;
        }
        Devices::Storm | Devices::FastStorm | Devices::Races => {
            boot.plugged = &["nvme", "igb", "e1000e", "virtio", "nvme1"]
        }
        Devices::BootStorm => {
            boot.plugged = EVERYTHING;
            boot.storm = Some("virtio");
        }
        Devices::None => boot.plugged = &[],
        Devices::Kernels | Devices::Crash => {
            boot.plugged = EVERYTHING;
            boot.memory = 3;
        }
    }
    boot
}
