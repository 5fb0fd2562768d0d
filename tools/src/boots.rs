// SPDX-License-Identifier: GPL-2.0
//! The boots of `make test` and `make torture`, as `tools/boots.toml` lists them.

use crate::{kselftest, prelude::*, qemu::EVERYTHING};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boots {
    pub guest: Vec<Variant>,
    pub machine: Vec<Variant>,
    pub torture: Vec<Variant>,
}

/// One of them. What is not said here is said of [`Boot`].
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    pub name: String,
    /// Words for the kernel's command line and for the guest's program.
    pub words: String,
    /// The fragments of the kernel; none stand for the kernel of the other parts.
    pub kernel: String,
    pub arguments: String,
    pub plugged: Option<String>,
    pub generators: Option<usize>,
    pub storm: Option<String>,
    pub memory: Option<u32>,
    /// Whether the guest has the selftests.
    pub selftests: bool,
    /// Whether kernels of both drivers are on the first drive.
    pub kernels: bool,
    /// Whether it is among the few of `make test`.
    pub short: bool,
}

impl Boots {
    pub fn read() -> Result<Self> {
        toml::from_str(include_str!("../boots.toml")).context("tools/boots.toml")
    }
}

impl Variant {
    pub fn boot<'a>(&'a self, machine: &'a Machine, name: &'a str, limit: Duration) -> Boot<'a> {
        Boot {
            arguments: &self.arguments,
            devices: if self.selftests {
                kselftest::DEVICES
            } else {
                ""
            },
            plugged: self.plugged.as_deref().unwrap_or(EVERYTHING),
            // As many as a domain has room for without further memory.
            generators: self.generators.unwrap_or(6),
            storm: self.storm.as_deref(),
            memory: self.memory.unwrap_or(2),
            // Races want more than two.
            processors: 4,
            ..machine.boot(name, format!("guest.mode=test {}", self.words), limit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_understood() {
        let boots = Boots::read().unwrap();
        assert!(boots.torture.iter().any(|boot| boot.short));
    }
}
