// SPDX-License-Identifier: GPL-2.0
//! `make torture`: the guest's suites on a kernel that finds mistakes, and what may
//! happen to a machine many times. A short form of it is a part of `make test`, on
//! the kernel of the other parts.

use super::{module::file_system, Suite};
use crate::{boots::Boots, prelude::*};
use std::time::{SystemTime, UNIX_EPOCH};

/// No boot takes as long, on a machine that has other work as well.
const LIMIT: Duration = Duration::from_secs(3600);
/// The kernel that finds mistakes; `CONFIG=c` is put in for `rust`.
const DEBUG: &str = "debug,torture";
/// What it is booted with: all messages are kept, pages that are given back must not
/// be mapped.
const WORDS: &str = "iommu.debug_pagealloc=1 page_owner=on log_buf_len=16M guest.leaks=1";
/// In `make test`: few rounds.
const SHORT: &str = "guest.rounds=6 guest.seconds=3";

/// `make torture`; `ONLY=` names one of its boots.
pub fn run(project: &Project) -> Result<()> {
    let mut boots = Boots::read()?.torture;
    if let Some(only) = text("ONLY") {
        let names: Vec<_> = boots.iter().map(|boot| boot.name.clone()).collect();
        boots.retain(|boot| boot.name == only);
        if boots.is_empty() {
            bail!("ONLY={only}: it is one of {}", names.join(" "));
        }
    }
    deps::ensure(project)?;
    let project = &Project {
        flavour: format!("{},{DEBUG}", project.flavour),
        ..project.clone()
    };
    let mut suite = Suite::new(project);
    suite.boots("torture", boots.iter(), LIMIT, &words(WORDS)?)?;
    suite.finish()
}

/// What every boot is told: what is done at random begins with `SEED=`.
fn words(words: &str) -> Result<String> {
    let seed: u64 = match text("SEED") {
        Some(text) => text
            .parse()
            .with_context(|| format!("SEED={text} is no number"))?,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("           torture: SEED={seed} does the same at random");
    Ok(format!("{words} guest.seed={seed} {}", more_words()))
}

impl Suite<'_> {
    /// The part of `make test`.
    pub(super) fn torture(&mut self) -> Result<()> {
        let boots = Boots::read()?.torture;
        let short = boots.iter().filter(|boot| boot.short);
        self.boots("torture", short, LIMIT, &words(SHORT)?)
    }

    /// A file system with kernels of both drivers, and the guest's root.
    pub(super) fn kernels(&mut self, machine: &Machine) -> Result<PathBuf> {
        // The cache is needed for it.
        self.kernel = None;
        let other = kernel::build(self.project, "c")?;
        let step = Step::start(self.project, "kernels", "making a file system of kernels")?;
        let tree = self.project.build.join("kernels");
        fs::create_dir_all(&tree)?;
        for (name, from) in [
            ("rust", &machine.image),
            ("c", &other.image),
            ("initrd", &machine.initrd),
        ] {
            fs::copy(from, tree.join(name))?;
        }
        file_system(step, &tree, "192M")
    }
}
