// SPDX-License-Identifier: GPL-2.0
//! Parses the kernel command line.

use anyhow::{Context, Result, bail};

use crate::block::MIB;

/// What to do in this boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Show the machine, transfer data, print a verdict.
    Run,
    /// Run test suites and report in KTAP.
    Test,
    /// Run selftest programs and report in KTAP.
    Kselftest,
    /// Run a benchmark.
    Bench,
    /// Pass drives through to a nested guest.
    Passthrough,
    /// Be the nested guest.
    L2,
    /// Run an interactive shell.
    Shell,
}

/// The parsed kernel command line.
pub struct Cmdline {
    pub mode: Mode,
    /// Label of a run, for its verdict line.
    pub phase: String,
    args: Vec<String>,
}

impl Cmdline {
    /// Reads `/proc/cmdline`.
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
        Self::parse(&text)
    }

    /// Parses a command line.
    pub fn parse(text: &str) -> Result<Self> {
        let mut cmdline = Self {
            mode: Mode::Shell,
            phase: String::new(),
            args: text.split_whitespace().map(String::from).collect(),
        };
        cmdline.mode = match cmdline.value("guest.mode") {
            None | Some("shell") => Mode::Shell,
            Some("run") => Mode::Run,
            Some("test") => Mode::Test,
            Some("kselftest") => Mode::Kselftest,
            Some("bench") => Mode::Bench,
            Some("passthrough") => Mode::Passthrough,
            Some("l2") => Mode::L2,
            Some(other) => bail!(
                "unknown guest.mode={other}; use run, test, kselftest, bench, passthrough, l2 or \
                 shell"
            ),
        };
        let default = if cmdline.strict() { "strict" } else { "lazy" };
        cmdline.phase = cmdline.value("guest.phase").unwrap_or(default).to_owned();
        Ok(cmdline)
    }

    /// The value of `key=value`. The last one wins, as in the kernel.
    pub fn value(&self, key: &str) -> Option<&str> {
        let value = |arg: &'_ String| -> Option<usize> {
            (arg.strip_prefix(key)?.starts_with('=')).then_some(key.len() + 1)
        };
        let arg = self.args.iter().rev().find(|arg| value(arg).is_some())?;
        Some(&arg[key.len() + 1..])
    }

    /// The value of a mandatory numeric argument.
    pub fn number(&self, key: &str) -> Result<u64> {
        let value = self.value(key).with_context(|| format!("{key}= is missing"))?;
        value.parse().with_context(|| format!("{key}={value} is not a number"))
    }

    /// The value of a numeric argument that has a default.
    pub fn number_or(&self, key: &str, default: u64) -> Result<u64> {
        match self.value(key) {
            None => Ok(default),
            Some(_) => self.number(key),
        }
    }

    /// How many bytes a transfer between two cards has: `default`, or `guest.transfer=` in
    /// MiB, for kernels where packets take long.
    pub fn transfer(&self, default: usize) -> Result<usize> {
        let mebibytes = self.number_or("guest.transfer", (default / MIB) as u64)?;
        Ok(mebibytes as usize * MIB)
    }

    /// The suites to run, in the given order; `None` means all.
    pub fn suites(&self) -> Option<Vec<&str>> {
        Some(self.value("guest.suite")?.split(',').collect())
    }

    /// Whether to load the driver before anything else.
    pub fn wants_driver(&self) -> bool {
        self.value("guest.driver") != Some("later") && self.value("guest.beside").is_none()
    }

    /// Whether the DMA API flushes after every unmap.
    pub fn strict(&self) -> bool {
        // s390_iommu=strict can only enable strict mode, and the kernel parses it with
        // the other __setup parameters, so it wins wherever it is.
        self.args.iter().any(|arg| arg == "s390_iommu=strict")
            || matches!(self.value("iommu.strict"), Some("1" | "y" | "on" | "true"))
    }

    /// The most table levels that the machine supports: `guest.levels=`.
    pub fn levels(&self) -> u32 {
        self.value("guest.levels").and_then(|v| v.parse().ok()).unwrap_or(3)
    }

    /// The first IOVA of a function's window, if it is not QEMU's default:
    /// `guest.starts=DOMAIN:START,...`, with the PCI domain of the function.
    pub fn start_dma(&self, address: &str) -> Option<u64> {
        self.of_domain("guest.starts", address)
    }

    /// The last IOVA of the window: `guest.ends=DOMAIN:END,...`.
    pub fn end_dma(&self, address: &str) -> Option<u64> {
        self.of_domain("guest.ends", address)
    }

    fn of_domain(&self, key: &str, address: &str) -> Option<u64> {
        let mut values = self.value(key)?.split(',').filter_map(|value| value.split_once(':'));
        let (_, number) = values.find(|(domain, _)| address.starts_with(domain))?;
        u64::from_str_radix(number.trim_start_matches("0x"), 16).ok()
    }

    /// The factor of `s390_iommu_aperture=`; 0 means no limit.
    pub fn aperture_factor(&self) -> u64 {
        let value = self.value("s390_iommu_aperture");
        value.and_then(|v| v.parse().ok()).unwrap_or(1)
    }
}
