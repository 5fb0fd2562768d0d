// SPDX-License-Identifier: GPL-2.0
//! What the caller sees while it works: a line when a step starts, seconds
//! when it is done; what the commands print goes to a log. A command that
//! fails shows the end of its log and one line on what to do.

use crate::prelude::*;
use std::{ffi::OsStr, io::Write, iter, ops::Deref, process::Stdio};

/// How often a long step shows that it is still running.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

pub struct Step<'a> {
    pub project: &'a Project,
    name: String,
    log: PathBuf,
    start: Instant,
}

/// A step gives access to its project.
impl Deref for Step<'_> {
    type Target = Project;

    fn deref(&self) -> &Project {
        self.project
    }
}

impl<'a> Step<'a> {
    /// Says what starts, and empties its log.
    pub fn start(project: &'a Project, name: &str, doing: &str) -> Result<Self> {
        println!("           {name}: {doing} ...");
        let log = project.logs.join(format!("{name}.log"));
        File::create(&log)?;
        Ok(Self {
            project,
            name: name.to_owned(),
            log,
            start: Instant::now(),
        })
    }

    pub fn done(self, what: &str) {
        println!("[{:>7.1} s] {}: {what}", self.seconds(), self.name);
    }

    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    fn log_end(&self) -> Result<Stdio> {
        Ok(self.open_log()?.into_parts().0.into())
    }

    fn open_log(&self) -> Result<File> {
        Ok(fs::OpenOptions::new().append(true).open(&self.log)?)
    }

    /// Runs a command, its output to the log.
    ///
    /// # Errors
    ///
    /// The command could not be started or failed; `advice` is what to do then.
    pub fn run(&self, command: &mut Command, advice: &str) -> Result<()> {
        match self.attempt(command)? {
            (true, _) => Ok(()),
            _ => self.fail(&program_name(command), advice),
        }
    }

    /// Runs a command, its output to the log; whether it succeeded, and that output.
    pub fn attempt(&self, command: &mut Command) -> Result<(bool, String)> {
        let before = self.note(command)?;
        let mut child = command
            .stdout(self.log_end()?)
            .stderr(self.log_end()?)
            .spawn()
            .with_context(|| format!("cannot start {}", program_name(command)))?;
        let mut next = self.start.elapsed() + SIGN_OF_LIFE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(Duration::from_millis(50));
            if self.start.elapsed() > next {
                let tail = self.tail(1);
                let line: String = tail.trim().chars().take(60).collect();
                println!("[{:>7.1} s] {}: ... {line}", self.seconds(), self.name);
                next = self.start.elapsed() + SIGN_OF_LIFE;
            }
        };
        let log = fs::read(&self.log)?;
        let output = String::from_utf8_lossy(&log[before.min(log.len())..]);
        Ok((status.success(), output.into_owned()))
    }

    /// Runs a command and shows what it said if it failed.
    pub fn check(&self, command: &mut Command) -> Result<bool> {
        let (good, output) = self.attempt(command)?;
        if !good {
            self.show_end(&output);
        }
        Ok(good)
    }

    pub fn show_end(&self, output: &str) {
        self.show(&last_lines(output, 15));
    }

    /// Runs a command and returns its standard output; the rest to the log.
    pub fn output(&self, command: &mut Command, advice: &str) -> Result<String> {
        self.note(command)?;
        let output = command
            .stderr(self.log_end()?)
            .output()
            .with_context(|| format!("cannot start {}", program_name(command)))?;
        self.open_log()?.write_all(&output.stdout)?;
        if !output.status.success() {
            self.fail(&program_name(command), advice)?;
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn show(&self, text: &str) {
        for line in text.lines() {
            println!("    | {line}");
        }
    }

    /// The error of a command that failed: the log's end is printed before.
    pub fn fail(&self, what: &str, advice: &str) -> Result<()> {
        let tail = self.tail(15);
        self.show(&tail);
        println!("    | the whole log: {}", self.log);
        let advice = known_cause(&tail).unwrap_or(advice);
        bail!("{}: {what} failed; {advice}", self.name)
    }

    fn tail(&self, lines: usize) -> String {
        last_lines(&read_lossy(&self.log).unwrap_or_default(), lines)
    }

    /// Writes a command into the log as one would type it; where its output begins.
    fn note(&self, command: &Command) -> Result<usize> {
        let parts = iter::once(command.get_program()).chain(command.get_args());
        let parts: Vec<_> = parts.map(OsStr::to_string_lossy).collect();
        let mut log = self.open_log()?;
        let folder = command.get_current_dir();
        let folder = folder.map(|folder| format!("cd {}; ", folder.display()));
        writeln!(log, "+ {}{}", folder.unwrap_or_default(), parts.join(" "))?;
        Ok(log.metadata()?.len().try_into()?)
    }
}

fn program_name(command: &Command) -> String {
    name_of(Path::new(&command.get_program().to_string_lossy()))
}

fn last_lines(text: &str, count: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(count)..].join("\n")
}

/// Runs a command given as text, see [`Step::run`].
macro_rules! run {
    ($step:expr, $typed:literal, $advice:expr) => {
        $step.run(&mut command!($step, $typed), $advice)
    };
}
pub(crate) use run;

/// Causes that have nothing to do with the step they hit.
fn known_cause(text: &str) -> Option<&'static str> {
    const DISK: &str =
        "the disk is full: free some space, or name another cache with S390_IOMMU_CACHE=";
    const NETWORK: &str =
        "the network or the mirror does not answer: check the connection and run it again";
    const DPKG: &str = "another apt or dpkg is at work: wait for it and run it again";
    const SIGNS: [(&str, &str); 10] = [
        ("No space left on device", DISK),
        ("os error 28", DISK),
        ("Temporary failure resolving", NETWORK),
        ("Could not resolve host", NETWORK),
        ("Could not connect", NETWORK),
        ("Connection timed out", NETWORK),
        ("Network is unreachable", NETWORK),
        ("failed to download from", NETWORK),
        ("Could not get lock", DPKG),
        ("Unable to acquire the dpkg", DPKG),
    ];
    let sign = SIGNS.iter().find(|(sign, _)| text.contains(sign));
    sign.map(|(_, cause)| *cause)
}
