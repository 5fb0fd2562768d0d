// SPDX-License-Identifier: GPL-2.0
//! Runs a selftest program and parses its output.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::console::say;

/// Directory of the programs in the initramfs
const FOLDER: &str = "/kselftest";
/// The interval of checks whether a program has exited
const PAUSE: Duration = Duration::from_millis(20);
/// Exit status of a program that skips everything (`KSFT_SKIP`)
const SKIPPED: i32 = 4;

/// The result of one test of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Passed,
    Failed,
    Skipped,
}

/// One result line of a program.
#[derive(Debug, PartialEq, Eq)]
pub struct Point {
    pub name: String,
    pub end: End,
    /// The reason of a skip, or the last line before a failure.
    pub why: String,
}

/// The parsed output of a program.
#[derive(Default)]
pub struct Output {
    pub points: Vec<Point>,
    plan: Option<usize>,
    /// The reason, if the whole program was skipped.
    pub skipped: Option<String>,
    last: String,
}

/// Runs `folder/name` with arguments and copies its output to the console as comments.
///
/// # Errors
///
/// The program cannot be run, exceeds `limit`, or ends before it has reported all of its
/// tests.
pub fn run(name: &str, arguments: &[&str], limit: Duration) -> Result<Output> {
    let path = Path::new(FOLDER).join(name);
    say!("# run: {name} {}", arguments.join(" "));
    let (reader, writer) = std::io::pipe().context("create a pipe")?;
    let mut command = Command::new(&path);
    command.args(arguments).stdin(Stdio::null());
    // One pipe for both streams keeps diagnostics next to the result of their test.
    command.stdout(writer.try_clone()?).stderr(writer);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().with_context(|| format!("run {}", path.display()))?;
    // The command holds write ends of the pipe, which would keep it from ending.
    drop(command);
    let watch = std::thread::spawn(move || wait(&mut child, limit));
    let mut output = Output::default();
    for line in BufReader::new(reader).split(b'\n') {
        output.line(&String::from_utf8_lossy(&line?));
    }
    let Ok(status) = watch.join() else { bail!("the thread that waits for the program died") };
    output.check(status?)?;
    Ok(output)
}

/// Waits for a program, then kills what is left of its process group, which would keep
/// the device and the pipe open.
fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    let mut status = child.try_wait()?;
    while status.is_none() && Instant::now() < end {
        std::thread::sleep(PAUSE);
        status = child.try_wait()?;
    }
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    status.with_context(|| format!("killed after {} s", limit.as_secs()))
}

impl Output {
    fn line(&mut self, line: &str) {
        say!("# {line}");
        if let Some(text) = line.strip_prefix("1..") {
            let (count, directive) = text.split_once(' ').unwrap_or((text, ""));
            self.plan = count.parse().ok();
            self.skipped = directive.strip_prefix("# SKIP ").map(str::to_owned);
        } else if let Some(point) = self.point(line) {
            self.points.push(point);
        }
        if !line.trim().is_empty() {
            self.last = line.trim().to_owned();
        }
    }

    /// Parses `ok 1 name`, `not ok 2 name` or `ok 3 name # SKIP why`.
    fn point(&self, line: &str) -> Option<Point> {
        let (ok, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ")?),
        };
        let (_, rest) = rest.split_once(' ')?;
        let (name, directive) = rest.split_once('#').unwrap_or((rest, ""));
        let name = name.trim().trim_start_matches("- ").to_owned();
        let (end, why) = match directive.trim().strip_prefix("SKIP") {
            Some(why) if ok => (End::Skipped, why),
            // Any other directive, such as XFAIL, does not count as passed.
            _ if ok && directive.is_empty() => (End::Passed, ""),
            _ => (End::Failed, self.last.trim_start_matches('#')),
        };
        Some(Point { name, end, why: why.trim().to_owned() })
    }

    /// Checks that the exit status and the plan match the reported results.
    fn check(&mut self, status: ExitStatus) -> Result<()> {
        if let Some(signal) = status.signal() {
            bail!("killed by signal {signal}; its last line was {:?}", self.last);
        }
        let code = status.code().unwrap_or(-1);
        if code == SKIPPED && self.points.is_empty() {
            let last = self.last.clone();
            self.skipped.get_or_insert(last);
            return Ok(());
        }
        let plan = self.plan.context("the program printed no plan")?;
        let reported = self.points.len();
        ensure!(plan == reported, "{plan} tests planned, {reported} reported");
        ensure!(plan > 0, "the program has no tests");
        let failed = self.points.iter().any(|point| point.end == End::Failed);
        ensure!(failed || code == 0 || code == SKIPPED, "exit status {code}");
        Ok(())
    }
}
