// SPDX-License-Identifier: GPL-2.0
//! The figures as bars, on a logarithmic scale.

use super::{Bench, Case, Cost, C, CASES, OFF, ON};
use crate::prelude::*;
use plotters::{coord::Shift, prelude::*};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A bar of every case: its title, the guest, what was measured, its colour.
type Series = (&'static str, &'static str, &'static str, (u8, u8, u8));
const SERIES: [Series; 5] = [
    ("this driver, large off", OFF, "driver", (31, 119, 180)),
    ("this driver, large on", ON, "driver", (23, 190, 207)),
    ("C driver", C, "driver", (214, 39, 40)),
    ("generic_pt, x86-64", OFF, "x86-64", (255, 187, 40)),
    ("floor: the core alone", OFF, "floor", (150, 150, 150)),
];
const SIZE: (u32, u32) = (1100, 900);
/// The scale's ends; the bars start at the lower one.
const SCALE: (f64, f64) = (50.0, 50e6);
/// How much of a case's place its bars fill.
const FILLED: f64 = 0.8;

/// Draws maps above, unmaps below.
pub fn draw(bench: &Bench, path: &Path) -> Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("plotters: {error}");
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let halves = root.split_evenly((2, 1));
    panel(bench, &halves[0], "iommu_map()", |cost| cost.map)?;
    panel(bench, &halves[1], "iommu_unmap()", |cost| cost.unmap)?;
    root.present().map_err(|error| failed(&error))
}

fn panel(bench: &Bench, area: &Area, call: &str, pick: fn(Cost) -> u64) -> Result<()> {
    let places = -0.5..CASES.len() as f64 - 0.5;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{call}, guest instructions"), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(80)
        .build_cartesian_2d(places, (SCALE.0..SCALE.1).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(CASES.len())
        .x_label_formatter(&|place| title(*place))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    for (index, (title, guest, subject, colour)) in SERIES.into_iter().enumerate() {
        let colour = RGBColor(colour.0, colour.1, colour.2);
        let width = FILLED / SERIES.len() as f64;
        let left = index as f64 * width - FILLED / 2.0;
        let mut bars = Vec::new();
        for (place, case) in CASES.iter().enumerate() {
            let value = pick(bench.cost(guest, subject, case)?) as f64;
            let start = place as f64 + left;
            bars.push(Rectangle::new(
                [(start, SCALE.0), (start + width, value)],
                colour.filled(),
            ));
        }
        chart
            .draw_series(bars)?
            .label(title)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

/// The case that stands at a place of the axis, if one does.
fn title(place: f64) -> String {
    let near = |(index, _): &(usize, &Case)| (*index as f64 - place).abs() < 0.01;
    let case = CASES.iter().enumerate().find(near);
    case.map(|(_, case)| case.title.to_owned())
        .unwrap_or_default()
}
