// SPDX-License-Identifier: GPL-2.0
//! `make torture`: the guest's suites on a kernel that finds mistakes, and what may
//! happen to a machine many times. A short form of it is a part of `make test`, on
//! the kernel of the other parts.

use super::{module::make_ext2, Suite};
use crate::{boots::TORTURE, prelude::*};
use std::time::{SystemTime, UNIX_EPOCH};

/// No boot takes this long, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(3600);
/// The kernel that finds mistakes; `CONFIG=c` takes the place of `rust`.
const DEBUG: &str = "debug,torture";
/// Its command line: all messages are kept, and freed pages are not mapped. Packets take
/// long there.
const ARGUMENTS: &str =
    "iommu.debug_pagealloc=1 page_owner=on log_buf_len=2M guest.leaks=1 guest.transfer=1";
/// The boots of `make test`, with few rounds.
const SHORT: [&str; 3] = ["oracle", "fast", "processors"];
const FEW_ROUNDS: &str = "guest.rounds=6 guest.seconds=3";

/// `make torture`; `ONLY=` names one of its boots.
pub fn run(project: &Project) -> Result<()> {
    let names = TORTURE.map(|boot| boot.name);
    let only = text("ONLY");
    if let Some(only) = only.as_ref().filter(|only| !names.contains(&only.as_str())) {
        bail!("ONLY={only}: it is one of {}", names.join(" "));
    }
    deps::ensure(project)?;
    let project = &Project {
        flavour: format!("{},{DEBUG}", project.flavour),
        ..project.clone()
    };
    let mut suite = Suite::new(project);
    let is_wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    suite.torture_boots(is_wanted, ARGUMENTS)?;
    suite.finish()
}

impl Suite<'_> {
    /// The part of `make test`.
    pub(super) fn torture(&mut self) -> Result<()> {
        self.torture_boots(|name| SHORT.contains(&name), FEW_ROUNDS)
    }

    /// `SEED=` is the seed of all that is done at random.
    fn torture_boots(&mut self, is_wanted: impl Fn(&str) -> bool, more: &str) -> Result<()> {
        let seed: u64 = match text("SEED") {
            Some(text) => text
                .parse()
                .with_context(|| format!("SEED={text} is no number"))?,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        println!("           torture: SEED={seed} does the same at random");
        let boots = TORTURE.iter().filter(|boot| is_wanted(boot.name));
        let more = format!("{more} guest.seed={seed} {}", more_arguments());
        self.boots("torture", boots, LIMIT, &more)
    }

    /// A file system with kernels of both drivers, and the guest's root.
    pub(super) fn kernels(&mut self, machine: &Machine) -> Result<PathBuf> {
        // The cache is needed for it.
        self.kernel = None;
        let other = kernel::build(self.project, "c")?;
        let step = Step::start(self.project, "kernels", "making a file system of kernels")?;
        let tree = self.project.build.join("kernels");
        fs::create_dir_all(&tree)?;
        fs::copy(&machine.image, tree.join("rust"))?;
        fs::copy(&other.image, tree.join("c"))?;
        fs::copy(&machine.initrd, tree.join("initrd"))?;
        make_ext2(step, &tree, "192M")
    }
}
