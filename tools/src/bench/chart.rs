// SPDX-License-Identifier: GPL-2.0
//! Figures as bars, on a logarithmic scale.

use super::{Bench, Cost, C, CASES, OFF, ON};
use crate::prelude::*;
use plotters::{coord::Shift, prelude::*};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Red, green, blue.
type Colour = (u8, u8, u8);
pub const OURS: Colour = (31, 119, 180);
pub const THEIRS: Colour = (214, 39, 40);
/// The series of calls: a title, the guest, what was measured, its colour.
const CALLS: [(&str, &str, &str, Colour); 5] = [
    ("this driver, large off", OFF, "driver", OURS),
    ("this driver, large on", ON, "driver", (23, 190, 207)),
    ("C driver", C, "driver", THEIRS),
    ("generic_pt, x86-64", OFF, "x86-64", (255, 187, 40)),
    ("floor: the core alone", OFF, "floor", (150, 150, 150)),
];
const SIZE: (u32, u32) = (1100, 900);
/// How much of a place its bars fill.
const FILLED: f64 = 0.8;

/// A part of a chart: bars of several series at each place of the axis.
pub struct Panel {
    pub caption: String,
    pub places: Vec<String>,
    /// The scale's ends; bars start at the lower one.
    pub scale: (f64, f64),
    pub series: Vec<Series>,
}

pub struct Series {
    pub title: &'static str,
    pub colour: Colour,
    /// For each place the lowest figure, the median, and the highest.
    pub bars: Vec<[u64; 3]>,
}

/// What calls of map and unmap cost.
pub fn of_calls(bench: &Bench) -> Result<[Panel; 2]> {
    let panel = |call, pick: fn(Cost) -> u64| -> Result<Panel> {
        let series = CALLS.map(|(title, guest, subject, colour)| {
            let costs = CASES.iter().map(|case| bench.cost(guest, subject, case));
            let bars = costs.map(|cost| cost.map(|cost| [pick(cost); 3]));
            Ok(Series {
                title,
                colour,
                bars: bars.collect::<Result<_>>()?,
            })
        });
        Ok(Panel {
            caption: format!("{call}, guest instructions"),
            places: CASES.iter().map(|case| case.title.to_owned()).collect(),
            scale: (50.0, 50e6),
            series: series.into_iter().collect::<Result<_>>()?,
        })
    };
    Ok([
        panel("iommu_map()", |cost| cost.map)?,
        panel("iommu_unmap()", |cost| cost.unmap)?,
    ])
}

/// Draws two panels, one above the other.
pub fn draw(panels: &[Panel; 2], path: &Path) -> Result<()> {
    let draw = || {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, half) in panels.iter().zip(root.split_evenly((2, 1))) {
            panel.draw(&half)?;
        }
        Ok::<_, anyhow::Error>(root.present()?)
    };
    draw().with_context(|| format!("cannot write {path}"))
}

impl Panel {
    fn draw(&self, area: &Area) -> Result<()> {
        let places = -0.5..self.places.len() as f64 - 0.5;
        let (bottom, top) = self.scale;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.caption, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(80)
            .build_cartesian_2d(places, (bottom..top).log_scale())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(self.places.len())
            .x_label_formatter(&|place| self.title(*place))
            .y_label_formatter(&|value| format!("{value:.0}"))
            .draw()?;
        let width = FILLED / self.series.len() as f64;
        for (index, series) in self.series.iter().enumerate() {
            let (red, green, blue) = series.colour;
            let colour = RGBColor(red, green, blue);
            let left = |place: usize| place as f64 + index as f64 * width - FILLED / 2.0;
            let bars = series.bars.iter().enumerate();
            let areas = bars.clone().map(|(place, [_, median, _])| {
                let (start, end) = (left(place), left(place) + width);
                Rectangle::new([(start, bottom), (end, *median as f64)], colour.filled())
            });
            chart
                .draw_series(areas)?
                .label(series.title)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
                });
            let spreads = bars.filter(|(_, [lowest, _, highest])| lowest < highest);
            chart.draw_series(spreads.map(|(place, [lowest, _, highest])| {
                let middle = left(place) + width / 2.0;
                PathElement::new([(middle, *lowest as f64), (middle, *highest as f64)], BLACK)
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        Ok(())
    }

    /// What stands at a place of the axis.
    fn title(&self, place: f64) -> String {
        let near = |(index, _): &(usize, &String)| (*index as f64 - place).abs() < 0.01;
        let found = self.places.iter().enumerate().find(near);
        found.map(|(_, title)| title.clone()).unwrap_or_default()
    }
}
