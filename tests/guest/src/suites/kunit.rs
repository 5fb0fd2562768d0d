// SPDX-License-Identifier: GPL-2.0
//! Reports the results of the kernel's KUnit tests.

use anyhow::{Context, Result, ensure};

use crate::cmdline::Cmdline;
use crate::ktap::{Suite, skip};
use crate::sysfs;

const ROOT: &str = "/sys/kernel/debug/kunit";

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    let mut reported = 0;
    for path in sysfs::list(ROOT) {
        let text = sysfs::read(path.join("results"))?;
        reported += report(suite, &sysfs::name(&path), &text)?;
    }
    if reported == 0 {
        skip!("no KUnit suite ran (it takes kunit.enable=1 kunit.autorun=1)");
    }
    Ok(())
}

/// Reports each test case of a suite. Cases are indented by four spaces, the parameters
/// of a case by eight. A suite that did not run also has a line "ok" for itself, but no
/// cases, so count only these. Returns how many there were.
fn report(suite: &mut Suite, name: &str, text: &str) -> Result<usize> {
    let cases = cases(text);
    for result in &cases {
        let (good, rest) = match result.strip_prefix("ok ") {
            Some(rest) => (true, rest),
            None => (false, result.strip_prefix("not ok ").unwrap_or(result)),
        };
        let (_, what) = rest.split_once(' ').context("a result without a name")?;
        suite.test(&format!("{name}: {}", label(what)), || verdict(good, what));
    }
    Ok(cases.len())
}

/// The lines of the test cases.
fn cases(text: &str) -> Vec<&str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    lines.filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")).collect()
}

/// The name without the directive that follows it.
fn label(what: &str) -> &str {
    what.split(" # ").next().unwrap_or(what)
}

fn verdict(good: bool, what: &str) -> Result<()> {
    if let Some((_, why)) = what.split_once("# SKIP") {
        skip!("{}", why.trim());
    }
    ensure!(good, "failed, see the kernel log");
    Ok(())
}
