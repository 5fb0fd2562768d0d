// SPDX-License-Identifier: GPL-2.0
//! The campaign's suites (`make torture`): what may happen to a machine, many times,
//! at random moments, while data moves.
//!
//! What is done at random begins with a number, `guest.seed=`, which is printed, so
//! that it can be done again; `guest.rounds=` is how often, for a suite that repeats.

pub mod allocations;
pub mod hostile;
mod ioctl;
pub mod kexec;
pub mod killed;
pub mod leaks;
pub mod processors;
pub mod reloads;
pub mod storms;
mod work;

use anyhow::Result;
use fastrand::Rng;

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::ktap::Suite;
use crate::suites::modules;

/// What a suite of the campaign is given.
pub struct Campaign {
    pub rng: Rng,
    pub rounds: u64,
}

impl Campaign {
    /// Reads the command line; `rounds` is how often if it does not say so.
    pub fn new(cmdline: &Cmdline, name: &str, rounds: u64) -> Self {
        let seed = seed(cmdline);
        let rounds = cmdline.number("guest.rounds").unwrap_or(rounds);
        say!("# {name}: seed {seed}, {rounds} rounds");
        Self { rng: Rng::with_seed(seed), rounds }
    }
}

fn seed(cmdline: &Cmdline) -> u64 {
    cmdline.number("guest.seed").unwrap_or(1)
}

/// Threads in the kernel that know what is mapped.
pub fn oracle(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let seed = seed(cmdline);
    say!("# oracle: seed {seed}");
    let seconds = cmdline.number("guest.seconds").unwrap_or(20);
    modules::run_with(suite, cmdline, "oracle", &format!("seed={seed} seconds={seconds}"))
}

/// Allocations that fail inside of single calls.
pub fn failing(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    allocations::let_any_fail()?;
    modules::run(suite, cmdline, "failing")
}
