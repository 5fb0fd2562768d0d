// SPDX-License-Identifier: GPL-2.0
//! Records the kernel's trace events, or counts them.

use anyhow::{Context, Result, ensure};

use crate::sysfs;

const ROOT: &str = "/sys/kernel/tracing";
/// Size of each CPU's buffer, enough for a minute of maps
const BUFFER_KIB: &str = "8192";

/// Enabled events; disabled when dropped.
pub struct Recording {
    events: &'static [&'static str],
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// The event's name, without its group.
    pub name: String,
    /// The printed fields.
    pub text: String,
}

impl Recording {
    /// Clears the buffers and starts recording events, given as `group/event`.
    pub fn start(events: &'static [&'static str]) -> Result<Self> {
        sysfs::write(format!("{ROOT}/buffer_size_kb"), BUFFER_KIB)?;
        sysfs::write(format!("{ROOT}/trace"), "")?;
        let recording = Self { events };
        recording.switch("1")?;
        sysfs::write(format!("{ROOT}/tracing_on"), "1")?;
        Ok(recording)
    }

    fn switch(&self, value: &str) -> Result<()> {
        for event in self.events {
            sysfs::write(format!("{ROOT}/events/{event}/enable"), value)?;
        }
        Ok(())
    }

    /// Stops recording. Returns the events in order; fails if any were lost.
    pub fn stop(self) -> Result<Vec<Event>> {
        sysfs::write(format!("{ROOT}/tracing_on"), "0")?;
        let text = sysfs::read(format!("{ROOT}/trace"))?;
        let lost =
            text.lines().find_map(|line| line.split("entries-in-buffer/entries-written:").nth(1));
        let lost = lost.context("the trace has no header")?;
        let mut counts = lost.split_whitespace().next().unwrap_or_default().split('/');
        ensure!(counts.next() == counts.next(), "events were lost:{lost}");
        Ok(text.lines().filter_map(Event::parse).collect())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.switch("0");
        let _ = sysfs::write(format!("{ROOT}/trace"), "");
    }
}

/// The number of times that an event happens, counted until dropped. Needs
/// `CONFIG_HIST_TRIGGERS`.
pub struct Counted {
    event: &'static str,
}

impl Counted {
    /// A histogram with a line for each CPU; its total is what counts.
    const TRIGGER: &str = "hist:keys=common_cpu";

    /// Starts to count an event, given as `group/event`.
    pub fn start(event: &'static str) -> Result<Self> {
        sysfs::write(format!("{ROOT}/events/{event}/trigger"), Self::TRIGGER)?;
        Ok(Self { event })
    }

    /// How often the event has happened until now.
    pub fn count(&self) -> Result<u64> {
        let text = sysfs::read(format!("{ROOT}/events/{}/hist", self.event))?;
        // "Totals:", "    Hits: 12", and two more
        let hits = text.lines().rev().find_map(|line| line.trim().strip_prefix("Hits: "));
        hits.and_then(|hits| hits.parse().ok()).context(text)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Truncating the file removes the trigger.
        let _ = sysfs::write(format!("{ROOT}/events/{}/trigger", self.event), "");
    }
}

impl Event {
    /// Parses "task-pid [cpu] flags time: name: text".
    fn parse(line: &str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let mut parts = line.splitn(3, ": ");
        let (_, name, text) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { name: name.trim().to_owned(), text: text.trim().to_owned() })
    }

    /// The value of the field `key=value`.
    pub fn value(&self, key: &str) -> Option<&str> {
        let values = self.text.split_whitespace().filter_map(|word| word.split_once('='));
        values.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// The value of a numeric field: hexadecimal with `0x`, otherwise decimal.
    pub fn number(&self, key: &str) -> Result<u64> {
        let text = self.value(key).with_context(|| format!("no {key}= in {:?}", self.text))?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.with_context(|| format!("{key}={text}"))
    }
}
