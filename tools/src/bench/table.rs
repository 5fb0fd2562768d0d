// SPDX-License-Identifier: GPL-2.0
//! The figures as tables for people, and as a record for programs.

use super::{
    judge::{self, Bound, ATTACHED},
    pair, Bench, Case, Cost, Flush, C, CASES, OFF, ON,
};
use crate::prelude::*;
use serde::Serialize;
use std::fmt::Write;

/// Lines with a title and columns.
pub struct Table {
    pub text: String,
    /// How wide the title is, and each column.
    widths: &'static [usize],
}

impl Table {
    pub fn new(head: &str, widths: &'static [usize]) -> Self {
        Self {
            text: format!("\n{head}:\n\n"),
            widths,
        }
    }

    /// The title to the left, cells to the right of their columns.
    pub fn line<T: ToString>(&mut self, title: &str, cells: impl IntoIterator<Item = T>) {
        self.text += &format!("{title:<width$}", width = self.widths[0]);
        for (cell, width) in cells.into_iter().zip(&self.widths[1..]) {
            self.text += &format!("{:>width$}", cell.to_string());
        }
        self.text.push('\n');
    }

    /// Appends to the last line.
    fn append(&mut self, text: &str) {
        self.text.insert_str(self.text.len() - 1, text);
    }
}

/// What is shown of a call: its key in the record, two lines of a head, the guest and what
/// was measured there.
const COLUMNS: [(&str, [&str; 2], &str, &str); 6] = [
    ("large_off", ["this driver", OFF], OFF, "driver"),
    ("large_on", ["", ON], ON, "driver"),
    ("c_driver", ["C driver", ""], C, "driver"),
    ("x86_64", ["generic_pt", "x86-64"], OFF, "x86-64"),
    ("floor", ["floor", "1 size"], OFF, "floor"),
    ("floor_two_sizes", ["", "2 sizes"], OFF, "floor2"),
];

/// A call on a case, everywhere.
#[derive(Serialize)]
struct Row {
    #[serde(skip)]
    title: &'static str,
    case: &'static str,
    call: &'static str,
    #[serde(flatten)]
    figures: BTreeMap<&'static str, u64>,
    /// The floor and one store a page.
    one_store_a_page: u64,
    ratio_large_off: f64,
    ratio_large_on: f64,
}

#[derive(Serialize)]
pub struct Record<'a> {
    unit: &'static str,
    table: Vec<Row>,
    bounds: &'a [Bound],
    #[serde(flatten)]
    bench: &'a Bench,
}

pub fn record<'a>(bench: &'a Bench, bounds: &'a [Bound]) -> Result<Record<'a>> {
    Ok(Record {
        unit: "instructions of the guest a call; of full flushes nanoseconds and bytes",
        table: rows(bench)?,
        bounds,
        bench,
    })
}

fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in &CASES {
        rows.push(row(bench, case, "map", |cost| cost.map)?);
        rows.push(row(bench, case, "unmap", |cost| cost.unmap)?);
    }
    Ok(rows)
}

fn row(bench: &Bench, case: &Case, call: &'static str, pick: fn(Cost) -> u64) -> Result<Row> {
    let get = |(key, _, guest, subject)| {
        let cost: Cost = bench.cost(guest, subject, case)?;
        Ok((key, pick(cost)))
    };
    let figures: BTreeMap<_, _> = COLUMNS.into_iter().map(get).collect::<Result<_>>()?;
    let c = figures["c_driver"];
    Ok(Row {
        title: case.title,
        case: case.name,
        call,
        one_store_a_page: figures["floor"] + case.pages,
        ratio_large_off: ratio(c, figures["large_off"]),
        ratio_large_on: ratio(c, figures["large_on"]),
        figures,
    })
}

pub fn ratio(theirs: u64, ours: u64) -> f64 {
    theirs as f64 / ours.max(1) as f64
}

pub fn of(bench: &Bench, bounds: &[Bound]) -> Result<String> {
    let head = format!("Instructions, Linux {}", bench.kernel);
    let mut table = Table::new(&head, &[23, 11, 11, 12, 11, 9, 9, 11, 9, 9]);
    for (index, more) in [["one store", "C/ours", ""], ["a page", "off", "on"]]
        .into_iter()
        .enumerate()
    {
        let heads = COLUMNS.map(|column| column.1[index]);
        table.line("", heads.into_iter().chain(more));
    }
    table.append("  bounds");
    for row in rows(bench)? {
        let figures = COLUMNS.map(|column| row.figures[column.0]);
        let figures = figures.into_iter().chain([row.one_store_a_page]);
        let ratios = [row.ratio_large_off, row.ratio_large_on].map(|ratio| format!("{ratio:.2}"));
        let title = format!("{:<17}{}", row.title, row.call);
        table.line(&title, figures.map(digits).chain(ratios));
        let these = bounds.iter();
        let these = these.filter(|bound| bound.case == row.case && bound.call == row.call);
        let these = these.map(describe).collect::<Vec<_>>().join(", ");
        table.append(&format!("  {these}"));
    }
    let mut text = table.text;
    let bounds_of = |cases: &[&str]| {
        let these = bounds.iter().filter(|bound| cases.contains(&bound.case));
        let lines = these.map(|bound| describe(bound) + "\n");
        lines.collect::<String>()
    };
    text += &attached(bench)?;
    text += &bounds_of(&["attached"]);
    text += &flush(pair(&bench.flush)?);
    text += &bounds_of(&["flush"]);
    text += &bench.scale_table()?;
    text += &bounds_of(&["scale", "memory"]);
    text += &bench.functions_table()?;
    let same = match bench.differences.len() {
        0 => "identical".to_owned(),
        count => format!("NOT IDENTICAL in {count} figures"),
    };
    let met = bounds.iter().filter(|bound| bound.met).count();
    writeln!(
        text,
        "\nEvery count was taken in {} boots: {same}. Bounds: {met} of {} met.",
        bench.runs,
        bounds.len()
    )?;
    Ok(text)
}

/// Calls on a domain with a function, which is refreshed each time, and lookups.
fn attached(bench: &Bench) -> Result<String> {
    let mut table = Table::new(
        "With a function attached, and lookups",
        &[26, 11, 11, 12, 9, 9],
    );
    table.line("", ["large off", "large on", "C driver", "C/off", "C/on"]);
    let mut line = |subject: &str, name: &str, calls: [&str; 2]| {
        let case = judge::case(name)?;
        let cost = |guest| bench.cost(guest, subject, case);
        let costs = [cost(OFF)?, cost(ON)?, cost(C)?];
        let of_calls = [costs.map(|cost| cost.map), costs.map(|cost| cost.unmap)];
        for (call, [off, on, c]) in calls.into_iter().zip(of_calls) {
            let ratios = [off, on].map(|ours| format!("{:.2}", ratio(c, ours)));
            let title = format!("{:<17}{call}", case.title);
            table.line(&title, [off, on, c].map(digits).into_iter().chain(ratios));
        }
        Ok::<_, anyhow::Error>(())
    };
    for name in ATTACHED {
        line("attached", name, ["map", "unmap"])?;
    }
    line("lookup", "4K", ["lookup", "if empty"])?;
    Ok(table.text)
}

fn flush((ours, theirs): (&Flush, &Flush)) -> String {
    let head = format!(
        "Full flush, window {} GiB, {} pages live, batches of {} pages at {:#x}",
        ours.window >> 30,
        ours.live,
        ours.pages,
        ours.corner
    );
    let mut table = Table::new(&head, &[30, 17, 17, 9]);
    table.line("a batch", ["this driver", "C driver", "C/ours"]);
    let per_batch = |flush: &Flush| flush.bytes / flush.batches.max(1);
    for (what, a, b) in [
        ("nanoseconds, median", ours.median, theirs.median),
        ("nanoseconds, best", ours.best, theirs.best),
        ("bytes refreshed", per_batch(ours), per_batch(theirs)),
        ("RPCIT in all batches", ours.ranges, theirs.ranges),
    ] {
        table.line(what, [digits(a), digits(b), format!("{:.1}", ratio(b, a))]);
    }
    let range = |flush: &Flush| format!("{:#x}+{:#x}", flush.first_start, flush.first_size);
    table.widths = &[16, 31, 33];
    table.line("the first", [range(ours), range(theirs)]);
    table.text
}

fn describe(bound: &Bound) -> String {
    let word = if bound.met { "met" } else { "NOT MET" };
    let (figure, limit) = (digits(bound.figure), digits(bound.limit));
    format!("{} {figure} <= {limit} {word}", bound.what)
}

/// A number with its thousands apart.
pub fn digits(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", digits(number / 1000), number % 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn thousands() {
        assert_eq!(digits(999), "999");
        assert_eq!(digits(14_400_000), "14,400,000");
    }
}
