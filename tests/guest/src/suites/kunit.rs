// SPDX-License-Identifier: GPL-2.0
//! What the kernel's own unit tests said.

use anyhow::{Context, Result, ensure};

use crate::cmdline::Cmdline;
use crate::ktap::{Suite, skip};
use crate::sysfs;

const ROOT: &str = "/sys/kernel/debug/kunit";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let suites = sysfs::list(ROOT);
    if suites.is_empty() {
        skip!("no KUnit suite ran in this kernel (it takes kunit.enable=1)");
    }
    for path in suites {
        let text = sysfs::read(path.join("results"))?;
        report(suite, &sysfs::name(&path), &text)?;
    }
    Ok(())
}

/// Hands on each test case: its lines are indented by four, parameters of a
/// case by eight.
fn report(suite: &mut Suite, name: &str, text: &str) -> Result<()> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    let cases: Vec<_> =
        lines.filter(|l| l.starts_with("ok ") || l.starts_with("not ok ")).collect();
    ensure!(!cases.is_empty(), "{name}: the suite has no results");
    for case in cases {
        let (good, rest) = match case.strip_prefix("ok ") {
            Some(rest) => (true, rest),
            None => (false, case.strip_prefix("not ok ").unwrap_or(case)),
        };
        let (_, what) = rest.split_once(' ').context("a result without a name")?;
        suite.test(&format!("{name}: {}", label(what)), || verdict(good, what));
    }
    Ok(())
}

/// The name without the directive behind it.
fn label(what: &str) -> &str {
    what.split(" # ").next().unwrap_or(what)
}

fn verdict(good: bool, what: &str) -> Result<()> {
    if let Some((_, why)) = what.split_once("# SKIP") {
        skip!("{}", why.trim());
    }
    ensure!(good, "failed; the details are in the kernel log");
    Ok(())
}
