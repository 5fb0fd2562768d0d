// SPDX-License-Identifier: GPL-2.0
//! The suites of the campaign (`make torture`): events that can happen to a machine, many
//! times, at random moments, during I/O.
//!
//! The seed of the random numbers is `guest.seed=`. It is printed, so that a run can be
//! repeated. `guest.rounds=` is the number of rounds of suites that have them.

pub mod allocations;
pub mod hostile;
mod ioctl;
pub mod kexec;
pub mod killed;
pub mod leaks;
pub mod processors;
pub mod refusals;
pub mod reloads;
pub mod storms;
mod work;

use anyhow::Result;
use fastrand::Rng;

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::ktap::Suite;
use crate::suites::modules;

/// The parameters of a suite.
pub struct Campaign {
    pub rng: Rng,
    pub rounds: u64,
}

impl Campaign {
    /// Reads the command line; `rounds` is the default number of rounds.
    pub fn new(cmdline: &Cmdline, name: &str, rounds: u64) -> Result<Self> {
        let seed = seed(cmdline)?;
        let rounds = cmdline.number_or("guest.rounds", rounds)?;
        say!("# {name}: seed {seed}, {rounds} rounds");
        Ok(Self { rng: Rng::with_seed(seed), rounds })
    }
}

fn seed(cmdline: &Cmdline) -> Result<u64> {
    cmdline.number_or("guest.seed", 1)
}

/// Kernel threads that compare lookups with their own record of what is mapped.
pub fn oracle(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let seed = seed(cmdline)?;
    say!("# oracle: seed {seed}");
    let seconds = cmdline.number_or("guest.seconds", 20)?;
    modules::run_with(suite, cmdline, "oracle", &format!("seed={seed} seconds={seconds}"))
}

/// Allocation failures in single calls of the IOMMU API.
pub fn failing(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    allocations::let_any_fail()?;
    modules::run(suite, cmdline, "failing")
}
