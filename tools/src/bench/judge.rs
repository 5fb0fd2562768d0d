// SPDX-License-Identifier: GPL-2.0
//! The bounds, and whether they are met.

use super::{pair, Bench, Case, Cost, C, CASES, OFF, ON};
use crate::prelude::*;
use serde::Serialize;

/// The most that a case may cost: its name, large pages off or on, map and unmap.
const BOUNDS: [(&str, &str, u64, u64); 6] = [
    ("4K", OFF, 195, 168),
    ("64K", OFF, 300, 265),
    ("singles", OFF, 51_500, 43_000),
    // 5 and 4 a page, whatever the large pages.
    ("64M", OFF, 5 * 16_384, 4 * 16_384),
    ("64M", ON, 5 * 16_384, 4 * 16_384),
    ("1G", ON, 10_000, 7_000),
];

/// The cases that are also measured with a function attached, which takes refreshes.
pub const ATTACHED: [&str; 2] = ["4K", "singles"];

/// The cases where large pages must not cost the driver's share anything.
const SHARES: [&str; 3] = ["4K", "64K", "singles"];

/// A batch of unmaps in a corner may refresh this part of the window.
const CORNER: u64 = 1024;

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Bound {
    pub case: &'static str,
    pub call: &'static str,
    pub what: String,
    pub figure: u64,
    pub limit: u64,
    pub met: bool,
}

impl Bound {
    pub fn new(
        case: &'static str,
        call: &'static str,
        what: impl Into<String>,
        figure: u64,
        limit: u64,
    ) -> Self {
        Self {
            case,
            call,
            what: what.into(),
            figure,
            limit,
            met: figure <= limit,
        }
    }

    fn both(case: &'static str, what: &'static str, figure: Cost, limit: Cost) -> [Self; 2] {
        [
            Self::new(case, "map", what, figure.map, limit.map),
            Self::new(case, "unmap", what, figure.unmap, limit.unmap),
        ]
    }
}

impl Bench {
    /// Compares each figure with its bound.
    pub fn judge(&self) -> Result<Vec<Bound>> {
        let mut bounds = Vec::new();
        for (name, guest, map, unmap) in BOUNDS {
            let (figure, limit) = (
                self.cost(guest, "driver", case(name)?)?,
                Cost { map, unmap },
            );
            bounds.extend(Bound::both(name, guest, figure, limit));
        }
        for name in SHARES {
            let limit = self.share(OFF, "driver", "floor", case(name)?)?;
            let figure = self.share(ON, "driver", "floor2", case(name)?)?;
            bounds.extend(Bound::both(name, "share with large", figure, limit));
        }
        for name in ATTACHED {
            // Two sizes of pages cost the core more; there, the drivers' shares are compared.
            let (figure, limit) = (
                self.cost(OFF, "attached", case(name)?)?,
                self.cost(C, "attached", case(name)?)?,
            );
            bounds.extend(Bound::both("attached", name, figure, limit));
            let figure = self.share(ON, "attached", "floor2", case(name)?)?;
            let limit = self.share(C, "attached", "floor", case(name)?)?;
            bounds.extend(Bound::both("attached", name, figure, limit));
        }
        for guest in [OFF, ON] {
            let lookup =
                |guest| Ok::<_, anyhow::Error>(self.cost(guest, "lookup", case("4K")?)?.map);
            let (figure, limit) = (lookup(guest)?, lookup(C)?);
            bounds.push(Bound::new("attached", "lookup", "lookup", figure, limit));
        }
        let (ours, theirs) = pair(&self.flush)?;
        let corner = ours.window / CORNER * ours.batches;
        for (what, figure, limit) in [
            ("bytes refreshed in all batches", ours.bytes, corner),
            ("time of a batch, C driver's", ours.median, theirs.median),
        ] {
            bounds.push(Bound::new("flush", "flush", what, figure, limit));
        }
        bounds.extend(self.judge_scale()?);
        Ok(bounds)
    }

    /// What the driver adds to what the core takes for itself.
    fn share(&self, guest: &str, subject: &str, floor: &str, case: &Case) -> Result<Cost> {
        let figure = self.cost(guest, subject, case)?;
        let floor = self.cost(guest, floor, case)?;
        Ok(Cost {
            map: figure.map.saturating_sub(floor.map),
            unmap: figure.unmap.saturating_sub(floor.unmap),
        })
    }
}

pub fn case(name: &str) -> Result<&'static Case> {
    let case = CASES.iter().find(|case| case.name == name);
    case.with_context(|| format!("bench: there is no case {name}"))
}

/// What makes the command fail.
pub fn faults(bench: &Bench, bounds: &[Bound]) -> Vec<String> {
    let missed = bounds.iter().filter(|bound| !bound.met).map(|bound| {
        format!(
            "{} {}, {}: {} is over {}",
            bound.case, bound.call, bound.what, bound.figure, bound.limit
        )
    });
    let counts = bench.differences.iter();
    let counts = counts.map(|text| format!("the counts do not repeat: {text}"));
    missed.chain(counts).collect()
}
