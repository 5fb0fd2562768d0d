// SPDX-License-Identifier: GPL-2.0
//! What the kernel command line asks for.

use anyhow::{Context, Result, bail};

/// What this boot is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Show the machine, move data, give a verdict.
    Run,
    /// Run test suites and report in KTAP.
    Test,
    /// Run selftest programs and report in KTAP.
    Kselftest,
    /// Measure and print the figures.
    Bench,
    /// Give drives to a guest of this guest.
    Passthrough,
    /// Be that guest.
    L2,
    /// Give the user a shell.
    Shell,
}

/// The words of the kernel command line that matter here.
pub struct Cmdline {
    pub mode: Mode,
    /// Label of a run, for its verdict line.
    pub phase: String,
    words: Vec<String>,
}

impl Cmdline {
    /// Reads `/proc/cmdline`.
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
        Self::parse(&text)
    }

    /// What such a text asks for.
    pub fn parse(text: &str) -> Result<Self> {
        let mut cmdline = Self {
            mode: Mode::Shell,
            phase: String::new(),
            words: text.split_whitespace().map(String::from).collect(),
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
                "guest.mode={other} is not known; use run, test, kselftest, bench, passthrough, l2 \
                 or shell"
            ),
        };
        let default = if cmdline.strict() { "strict" } else { "lazy" };
        cmdline.phase = cmdline.value("guest.phase").unwrap_or(default).to_owned();
        Ok(cmdline)
    }

    /// The value of the last `key=value` word, as the kernel takes the last.
    pub fn value(&self, key: &str) -> Option<&str> {
        let value = |word: &'_ String| -> Option<usize> {
            (word.strip_prefix(key)?.starts_with('=')).then_some(key.len() + 1)
        };
        let word = self.words.iter().rev().find(|w| value(w).is_some())?;
        Some(&word[key.len() + 1..])
    }

    /// The value of a word that must be there and be a number.
    pub fn number(&self, key: &str) -> Result<u64> {
        let value = self.value(key).with_context(|| format!("{key}= is missing"))?;
        value.parse().with_context(|| format!("{key}={value} is no number"))
    }

    /// The suites to run, in the given order; none means all.
    pub fn suites(&self) -> Option<Vec<&str>> {
        Some(self.value("guest.suite")?.split(',').collect())
    }

    /// Whether the driver is to be loaded before anything else.
    pub fn wants_driver(&self) -> bool {
        self.value("guest.driver") != Some("later") && self.value("guest.beside").is_none()
    }

    /// Whether the DMA API was asked to flush at every unmap.
    pub fn strict(&self) -> bool {
        // s390_iommu=strict only ever switches strict on, and it is read with
        // the other __setup words, so it wins wherever it stands.
        self.words.iter().any(|w| w == "s390_iommu=strict")
            || matches!(self.value("iommu.strict"), Some("1" | "y" | "on" | "true"))
    }

    /// How many levels the machine's tables have at most: `guest.levels=`.
    pub fn levels(&self) -> u32 {
        self.value("guest.levels").and_then(|v| v.parse().ok()).unwrap_or(3)
    }

    /// The first address of a function's window, if the machine was made with another
    /// than QEMU's: `guest.starts=DOMAIN:START,...`.
    pub fn start_dma(&self, address: &str) -> Option<u64> {
        self.of_domain("guest.starts", address)
    }

    /// The last address, `guest.ends=DOMAIN:END,...`.
    pub fn end_dma(&self, address: &str) -> Option<u64> {
        self.of_domain("guest.ends", address)
    }

    fn of_domain(&self, key: &str, address: &str) -> Option<u64> {
        let mut words = self.value(key)?.split(',').filter_map(|word| word.split_once(':'));
        let (_, number) = words.find(|(domain, _)| address.starts_with(domain))?;
        u64::from_str_radix(number.trim_start_matches("0x"), 16).ok()
    }

    /// The factor of `s390_iommu_aperture=`; 0 is "no limit".
    pub fn aperture_factor(&self) -> u64 {
        let word = self.value("s390_iommu_aperture");
        word.and_then(|v| v.parse().ok()).unwrap_or(1)
    }
}
