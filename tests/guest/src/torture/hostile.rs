// SPDX-License-Identifier: GPL-2.0
//! Fuzzes iommufd with valid and invalid calls, and compares every result with a model of
//! what must be mapped. (The selftests cover VFIO's own container.)

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use nix::errno::Errno;

use super::Campaign;
use super::ioctl::{AddressSpace, Arguments, FIXED, Pages, READABLE, WRITEABLE, call, nr};
use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::ktap::Suite;
use crate::state;
use crate::sysfs;

const PAGE: u64 = 4096;
/// Size of the memory to map: more than four page tables cover
const MEMORY: usize = 4 * MIB + 16 * PAGE as usize;
/// Calls per round
const CALLS: u64 = 1000;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let mut campaign = Campaign::new(cmdline, "hostile", 20)?;
    let nvme = Function::first_of("nvme")?;
    nvme.unbind()?;
    nvme.set_override("vfio-pci")?;
    nvme.probe()?;
    let before = state::table_pages()?;
    suite.test("edges of maps and unmaps", || edges(&nvme));
    let name = format!("{CALLS} calls at random, {} times", campaign.rounds);
    suite.test(&name, || {
        for round in 0..campaign.rounds {
            let seed = campaign.rng.u64(..);
            Fuzz::new(&nvme, seed)?
                .run()
                .with_context(|| format!("round {round}, its seed {seed}"))?;
        }
        Ok(())
    });
    suite.test("no table is left", || {
        let same = || (state::table_pages().ok()? <= before).then_some(());
        let done = sysfs::wait_for("tables", std::time::Duration::from_secs(10), same);
        ensure!(done.is_ok(), "{before} table pages before, now {}", state::table_pages()?);
        Ok(())
    });
    nvme.unbind()?;
    nvme.set_override("")?;
    nvme.probe()?;
    suite.test("the disk works afterwards", || {
        Transfer::new(1700, 4 * MIB).verify(&nvme.disk()?).map(drop)
    });
    Ok(())
}

/// Maps at both ends of each range, and one page or one byte beside them.
fn edges(nvme: &Function) -> Result<()> {
    let space = AddressSpace::new(&nvme.address)?;
    let pages = Pages::new(MEMORY)?;
    let memory = pages.address();
    for (first, last) in space.ranges()? {
        for iova in [first, last + 1 - PAGE] {
            space
                .map(FIXED | READABLE, memory, PAGE, iova)
                .with_context(|| format!("{iova:#x}"))?;
            let unmapped = space.unmap(iova, PAGE)?;
            ensure!(unmapped == PAGE, "{iova:#x}: unmapped {unmapped} bytes");
        }
        let bad = [
            (first.wrapping_sub(PAGE), PAGE),
            (first.wrapping_sub(PAGE), 2 * PAGE),
            (first, 0),
            (first, 1),
            (first, PAGE - 1),
            (first + 1, PAGE),
            (first, u64::MAX),
            (first, !(PAGE - 1)),
            (last + 1 - PAGE, 2 * PAGE),
            (last.wrapping_add(1), PAGE),
            (!(PAGE - 1), PAGE),
            (!(PAGE - 1), 2 * PAGE),
        ];
        for (iova, length) in bad {
            // The page below IOVA 0 wraps around to the end of the address space.
            if first == 0 && iova > last && length == 2 * PAGE {
                continue;
            }
            let done = space.map(FIXED | READABLE, memory, length, iova);
            ensure!(done.is_err(), "a map of {length:#x} bytes at {iova:#x} succeeded");
        }
    }
    let left = space.unmap(0, u64::MAX).or_else(none_is_zero)?;
    ensure!(left == 0, "{left} bytes were still mapped");
    Ok(())
}

/// Treats ENOENT as 0 bytes: whether an unmap of nothing is an error depends on the
/// kernel's version.
fn none_is_zero(error: Errno) -> nix::Result<u64> {
    if error == Errno::ENOENT { Ok(0) } else { Err(error) }
}

/// Random calls in one address space.
struct Fuzz<'a> {
    space: AddressSpace,
    pages: Pages,
    rng: Rng,
    ranges: Vec<(u64, u64)>,
    /// The expected mappings: length by IOVA.
    model: BTreeMap<u64, u64>,
    nvme: &'a Function,
}

impl<'a> Fuzz<'a> {
    fn new(nvme: &'a Function, seed: u64) -> Result<Self> {
        let space = AddressSpace::new(&nvme.address)?;
        Ok(Self {
            ranges: space.ranges()?,
            space,
            pages: Pages::new(MEMORY)?,
            rng: Rng::with_seed(seed),
            model: BTreeMap::new(),
            nvme,
        })
    }

    fn run(mut self) -> Result<()> {
        for number in 0..CALLS {
            let done = match self.rng.u32(0..100) {
                0..50 => self.map(),
                50..80 => self.unmap(),
                80..85 => self.copy(),
                85..90 => self.attach(),
                _ => self.anything(),
            };
            done.with_context(|| format!("call {number} on {}", self.nvme.address))?;
        }
        let mapped: u64 = self.model.values().sum();
        let unmapped = self.space.unmap(0, u64::MAX).or_else(none_is_zero)?;
        ensure!(unmapped == mapped, "{unmapped} bytes were mapped at the end, expected {mapped}");
        Ok(())
    }

    /// A random IOVA: near existing maps, at an edge, or anywhere.
    fn iova(&mut self) -> u64 {
        let (first, last) = self.ranges[self.rng.usize(..self.ranges.len())];
        let near = PAGE * self.rng.u64(0..2048);
        match self.rng.u32(0..10) {
            0 => last.wrapping_add(1).wrapping_sub(PAGE * self.rng.u64(0..4)),
            1 => first.wrapping_sub(PAGE).wrapping_add(near),
            2 => self.rng.u64(..),
            3 => first.wrapping_add(self.rng.u64(0..1 << 24)),
            // Near the end of the first segment table, which spans 2 GiB
            4 => first.wrapping_add((2 << 30) - 1024 * PAGE + near),
            _ => first.wrapping_add(near),
        }
    }

    fn length(&mut self) -> u64 {
        match self.rng.u32(0..10) {
            0 => 0,
            1 => self.rng.u64(..),
            2 => u64::MAX - self.rng.u64(0..2 * PAGE),
            3 => self.rng.u64(0..2 * PAGE),
            4 => 1 << 20,
            5 => MEMORY as u64,
            _ => PAGE * self.rng.u64(1..64),
        }
    }

    fn memory(&mut self) -> u64 {
        match self.rng.u32(0..20) {
            0 => self.rng.u64(..),
            1 => 0,
            2 => self.pages.address() + self.pages.size as u64,
            3 => self.pages.address() + self.rng.u64(0..PAGE),
            _ => self.pages.address() + PAGE * self.rng.u64(0..64),
        }
    }

    fn flags(&mut self) -> u32 {
        match self.rng.u32(0..10) {
            0 => self.rng.u32(..) | FIXED,
            1 => FIXED,
            2 => FIXED | READABLE,
            _ => FIXED | READABLE | WRITEABLE,
        }
    }

    fn overlaps(&self, iova: u64, length: u64) -> bool {
        let end = iova.saturating_add(length);
        self.model.range(..end).next_back().is_some_and(|(start, size)| start + size > iova)
    }

    fn record(&mut self, what: &str, iova: u64, length: u64) -> Result<()> {
        ensure!(length > 0, "{what} of 0 bytes at {iova:#x} succeeded");
        ensure!(!self.overlaps(iova, length), "{what} at {iova:#x} overlaps a live mapping");
        let end = iova.checked_add(length - 1).context("the range wraps around")?;
        let is_inside = self.ranges.iter().any(|(first, last)| *first <= iova && end <= *last);
        ensure!(is_inside, "{what} of {length:#x} bytes at {iova:#x} is outside the ranges");
        ensure!((iova | length).is_multiple_of(PAGE), "{what} of {length:#x} bytes at {iova:#x}");
        self.model.insert(iova, length);
        Ok(())
    }

    fn map(&mut self) -> Result<()> {
        let (flags, memory, length, iova) =
            (self.flags(), self.memory(), self.length(), self.iova());
        match self.space.map(flags, memory, length, iova) {
            Ok(()) => self.record("a map", iova, length),
            Err(_) => Ok(()),
        }
    }

    /// iommufd unmaps only whole maps, in order, up to the first one that the range cuts.
    fn unmap(&mut self) -> Result<()> {
        let known = self.model.keys().nth(self.rng.usize(0..8)).copied();
        let (iova, length) = match known {
            Some(iova) if self.rng.bool() => (iova, self.model[&iova]),
            _ => (self.iova(), self.length()),
        };
        let done = self.space.unmap(iova, length);
        if length == 0 || iova.checked_add(length - 1).is_none() {
            ensure!(done.is_err(), "an unmap of {length:#x} bytes at {iova:#x} succeeded");
            return Ok(());
        }
        let (bytes, is_cut) = self.remove(iova, iova + (length - 1));
        let is_expected = match done {
            Ok(unmapped) => unmapped == bytes && !is_cut,
            // See `none_is_zero`.
            Err(Errno::ENOENT) => is_cut || bytes == 0,
            Err(_) => false,
        };
        ensure!(
            is_expected,
            "an unmap of {length:#x} bytes at {iova:#x}, with {bytes:#x} mapped, cut: {is_cut}, \
             returned {done:x?}"
        );
        Ok(())
    }

    /// Removes from the model what an unmap removes. Returns how many bytes, and whether
    /// it stops at a map that the range cuts.
    fn remove(&mut self, first: u64, last: u64) -> (u64, bool) {
        let before = self.model.range(..first).next_back();
        if before.is_some_and(|(start, size)| start + (size - 1) >= first) {
            return (0, true);
        }
        let mut bytes = 0;
        while let Some((&start, &size)) = self.model.range(first..=last).next() {
            if start + (size - 1) > last {
                return (bytes, true);
            }
            self.model.remove(&start);
            bytes += size;
        }
        (bytes, false)
    }

    fn copy(&mut self) -> Result<()> {
        let (flags, length, to, from) = (self.flags(), self.length(), self.iova(), self.iova());
        let id = self.space.id;
        let mut copy = Arguments::new(40).u32(flags).u32(id).u32(id).u64(length).u64(to).u64(from);
        match call(&self.space.iommufd, nr::IOAS_COPY, &mut copy) {
            Ok(()) => self.record("a copy", to, length),
            Err(_) => Ok(()),
        }
    }

    /// Detaches the function from the address space with all its maps, and attaches it
    /// again.
    fn attach(&mut self) -> Result<()> {
        self.space.detach().context("detach")?;
        self.space.attach().context("attach")
    }

    /// A random call, which must neither crash the kernel nor change what is mapped.
    fn anything(&mut self) -> Result<()> {
        let id = if self.rng.bool() { self.space.id } else { self.rng.u32(0..8) };
        let number = [nr::IOAS_ALLOW, nr::IOAS_RANGES, nr::OPTION, nr::HWPT_ALLOC, nr::IOAS_MAP]
            [self.rng.usize(0..5)];
        let size = [8, 16, 24, 32, 40, 48, 4096][self.rng.usize(0..7)];
        let mut arguments = Arguments::new(size).u32(id);
        for _ in 0..6 {
            arguments = arguments.u64(match self.rng.u32(0..4) {
                0 => 0,
                1 => self.rng.u64(0..16),
                2 => self.rng.u64(..) & !7 | 1 << 63,
                _ => u64::MAX,
            });
        }
        // No map can succeed, because the arguments have no valid memory address.
        if call(&self.space.iommufd, number, &mut arguments).is_ok() && number == nr::IOAS_MAP {
            bail!("a map of an invalid address succeeded");
        }
        Ok(())
    }
}
