// SPDX-License-Identifier: GPL-2.0
//! Runs a selftest program and reads what it reports.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::console::say;

/// Where the programs are in the initramfs.
const FOLDER: &str = "/kselftest";
/// How often one looks whether a program has ended.
const PAUSE: Duration = Duration::from_millis(20);
/// How a program ends that skipped all of itself.
const SKIPPED: i32 = 4;

/// How a test of a program ended.
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
    /// The reason of a skip, or what was said last before a failure.
    pub why: String,
}

/// Everything that a program reported.
#[derive(Default)]
pub struct Output {
    pub points: Vec<Point>,
    plan: Option<usize>,
    /// Why all of it was skipped.
    pub skipped: Option<String>,
    last: String,
}

/// Runs `folder/name` with arguments; its lines go to the console as comments.
///
/// # Errors
///
/// It can not be run, takes longer than `limit`, or does not end as a program
/// ends that has reported all of its tests.
pub fn run(name: &str, arguments: &[&str], limit: Duration) -> Result<Output> {
    let path = Path::new(FOLDER).join(name);
    say!("# run: {name} {}", arguments.join(" "));
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let mut command = Command::new(&path);
    command.args(arguments).stdin(Stdio::null());
    // One pipe for both: what is said of a test stands beside its result.
    command.stdout(writer.try_clone()?).stderr(writer);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().with_context(|| format!("run {}", path.display()))?;
    // The command keeps the ends of the pipe that it was given.
    drop(command);
    let watch = std::thread::spawn(move || wait(&mut child, limit));
    let mut output = Output::default();
    for line in BufReader::new(reader).split(b'\n') {
        output.line(&String::from_utf8_lossy(&line?));
    }
    let Ok(status) = watch.join() else { bail!("the thread that waits for it died") };
    output.check(status?)?;
    Ok(output)
}

/// Waits for the end of a program, and ends what it leaves behind: that would
/// keep its device, and the pipe.
fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    let mut status = child.try_wait()?;
    while status.is_none() && Instant::now() < end {
        std::thread::sleep(PAUSE);
        status = child.try_wait()?;
    }
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    status.with_context(|| format!("not done after {} s, and killed", limit.as_secs()))
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

    /// `ok 1 name`, `not ok 2 name`, `ok 3 name # SKIP why`.
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
            // What is expected to fail has not passed.
            _ if ok && directive.is_empty() => (End::Passed, ""),
            _ => (End::Failed, self.last.trim_start_matches('#')),
        };
        Some(Point { name, end, why: why.trim().to_owned() })
    }

    /// A program that ended otherwise than it reports has not reported all.
    fn check(&mut self, status: ExitStatus) -> Result<()> {
        if let Some(signal) = status.signal() {
            bail!("ended by signal {signal}; {:?} was its last line", self.last);
        }
        let code = status.code().unwrap_or(-1);
        if code == SKIPPED && self.points.is_empty() {
            let last = self.last.clone();
            self.skipped.get_or_insert(last);
            return Ok(());
        }
        let plan = self.plan.context("it printed no plan")?;
        let reported = self.points.len();
        ensure!(plan == reported, "{plan} tests were planned and {reported} reported");
        ensure!(plan > 0, "it has no tests");
        let failed = self.points.iter().any(|point| point.end == End::Failed);
        ensure!(failed || code == 0 || code == SKIPPED, "it ended with status {code}");
        Ok(())
    }
}
