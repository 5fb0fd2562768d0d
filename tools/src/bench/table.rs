// SPDX-License-Identifier: GPL-2.0
//! The figures as a table for people, and as a record for programs.

use super::{
    judge::{Bound, Verdict},
    Bench, Case, Cost, Flush, C, CASES, OFF, ON,
};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write;

/// A call on a case, everywhere.
#[derive(Serialize)]
struct Row {
    case: &'static str,
    call: &'static str,
    large_off: u64,
    large_on: u64,
    c_driver: u64,
    x86_64: u64,
    floor: u64,
    floor_two_sizes: u64,
    /// The floor and one store a page.
    one_store_a_page: u64,
    ratio_large_off: f64,
    ratio_large_on: f64,
}

/// What is written as JSON.
#[derive(Serialize)]
pub struct Record<'a> {
    unit: &'static str,
    table: Vec<Row>,
    bounds: &'a [Bound],
    #[serde(flatten)]
    bench: &'a Bench,
}

/// All of it.
pub fn record<'a>(bench: &'a Bench, verdict: &'a Verdict) -> Result<Record<'a>> {
    Ok(Record {
        unit: "instructions of the guest a call; of full flushes nanoseconds and bytes",
        table: rows(bench)?,
        bounds: &verdict.bounds,
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
    let get = |guest, subject| bench.cost(guest, subject, case).map(pick);
    let (off, on, c) = (get(OFF, "driver")?, get(ON, "driver")?, get(C, "driver")?);
    let floor = get(OFF, "floor")?;
    Ok(Row {
        case: case.name,
        call,
        large_off: off,
        large_on: on,
        c_driver: c,
        x86_64: get(OFF, "x86-64")?,
        floor,
        floor_two_sizes: get(OFF, "floor2")?,
        one_store_a_page: floor + case.pages,
        ratio_large_off: ratio(c, off),
        ratio_large_on: ratio(c, on),
    })
}

pub fn ratio(theirs: u64, ours: u64) -> f64 {
    theirs as f64 / ours.max(1) as f64
}

/// The table, and a line on every bound.
pub fn of(bench: &Bench, verdict: &Verdict) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "\nInstructions, Linux {}:\n", bench.kernel)?;
    writeln!(
        text,
        "{:<17}{:<6}{:>11}{:>11}{:>12}{:>11}{:>9}{:>9}{:>11}{:>9}{:>9}",
        "", "", "this driver", "", "C driver", "generic_pt", "floor", "", "one store", "C/ours", ""
    )?;
    writeln!(
        text,
        "{:<17}{:<6}{:>11}{:>11}{:>12}{:>11}{:>9}{:>9}{:>11}{:>9}{:>9}  bounds",
        "", "", OFF, ON, "", "x86-64", "1 size", "2 sizes", "a page", "off", "on"
    )?;
    for row in rows(bench)? {
        let title = CASES.iter().find(|case| case.name == row.case);
        writeln!(
            text,
            "{:<17}{:<6}{:>11}{:>11}{:>12}{:>11}{:>9}{:>9}{:>11}{:>9.2}{:>9.2}  {}",
            title.map_or(row.case, |case| case.title),
            row.call,
            digits(row.large_off),
            digits(row.large_on),
            digits(row.c_driver),
            digits(row.x86_64),
            digits(row.floor),
            digits(row.floor_two_sizes),
            digits(row.one_store_a_page),
            row.ratio_large_off,
            row.ratio_large_on,
            bounds_of(verdict, row.case, row.call)
        )?;
    }
    let ours = bench.flush_of("rust")?;
    text += &flush(ours, bench.flush_of("c")?);
    for bound in verdict.bounds.iter().filter(|bound| bound.case == "flush") {
        writeln!(text, "{}", describe(bound))?;
    }
    text += &bench.scale_table()?;
    let others = verdict.bounds.iter();
    for bound in others.filter(|bound| matches!(bound.case, "scale" | "memory")) {
        writeln!(text, "{}", describe(bound))?;
    }
    text += &bench.functions_table()?;
    let same = match bench.differences.len() {
        0 => "identical".to_owned(),
        count => format!("NOT IDENTICAL in {count} figures"),
    };
    let met = verdict.bounds.iter().filter(|bound| bound.met).count();
    writeln!(
        text,
        "\nEvery count was taken in {} boots: {same}. Bounds: {met} of {} met.",
        bench.runs,
        verdict.bounds.len()
    )?;
    Ok(text)
}

fn flush(ours: &Flush, theirs: &Flush) -> String {
    let line = |what: &str, a: u64, b: u64| {
        let (left, right) = (digits(a), digits(b));
        format!("{what:<30}{left:>17}{right:>17}{:>9.1}\n", ratio(b, a))
    };
    let range = |flush: &Flush| format!("{:#x}+{:#x}", flush.first_start, flush.first_size);
    let mut text = format!(
        "\nFull flush, window {} GiB, {} pages live, batches of {} pages at {:#x}:\n\n\
         {:<30}{:>17}{:>17}{:>9}\n",
        ours.window >> 30,
        ours.live,
        ours.pages,
        ours.corner,
        "a batch",
        "this driver",
        "C driver",
        "C/ours"
    );
    text += &line("nanoseconds, median", ours.median, theirs.median);
    text += &line("nanoseconds, best", ours.best, theirs.best);
    let per_batch = |sum: u64, flush: &Flush| sum / flush.batches.max(1);
    text += &line(
        "bytes refreshed",
        per_batch(ours.bytes, ours),
        per_batch(theirs.bytes, theirs),
    );
    text += &line("RPCIT in all batches", ours.ranges, theirs.ranges);
    text += &format!(
        "{:<16}{:>31}{:>33}\n",
        "the first",
        range(ours),
        range(theirs)
    );
    text
}

fn bounds_of(verdict: &Verdict, case: &str, call: &str) -> String {
    let all = verdict.bounds.iter();
    let these = all.filter(|bound| bound.case == case && bound.call == call);
    these.map(describe).collect::<Vec<_>>().join(", ")
}

fn describe(bound: &Bound) -> String {
    let word = if bound.met { "met" } else { "NOT MET" };
    let (figure, limit) = (digits(bound.figure), digits(bound.limit));
    format!("{} {figure} <= {limit} {word}", bound.what)
}

/// A number with its thousands apart.
pub fn digits(number: u64) -> String {
    let plain = number.to_string();
    let mut text = String::new();
    for (index, digit) in plain.chars().enumerate() {
        if index > 0 && (plain.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn thousands() {
        assert_eq!(digits(0), "0");
        assert_eq!(digits(999), "999");
        assert_eq!(digits(14_400_000), "14,400,000");
    }
}
