// SPDX-License-Identifier: GPL-2.0
//! What the caller sees while it works: a line when a step starts, seconds
//! when it is done; what the commands print goes to a log. A command that
//! fails shows the end of its log and one line on what to do.

use crate::project::Project;
use anyhow::{bail, Context, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How often a step that takes long says that it is still at work.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// A step of the work, with its own log.
pub struct Step {
    name: String,
    log: PathBuf,
    start: Instant,
}

impl Step {
    /// Says what starts, and empties its log.
    pub fn start(project: &Project, name: &str, doing: &str) -> Result<Self> {
        println!("           {name}: {doing} ...");
        let log = project.logs.join(format!("{name}.log"));
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        Ok(Self {
            name: name.to_owned(),
            log,
            start: Instant::now(),
        })
    }

    /// Says what was done, and how long it took.
    pub fn done(self, what: &str) {
        println!("[{:>7.1} s] {}: {what}", self.seconds(), self.name);
    }

    /// The seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The log's path.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An open end of the log.
    pub fn log_file(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))
    }

    /// Runs a command, its output to the log.
    ///
    /// # Errors
    ///
    /// The command could not be started or failed; `advice` is what to do then.
    pub fn run(&self, command: &mut Command, advice: &str) -> Result<()> {
        if self.status(command)? {
            return Ok(());
        }
        self.fail(&program_name(command), advice)
    }

    /// Runs a command, its output to the log, and says whether it succeeded.
    pub fn status(&self, command: &mut Command) -> Result<bool> {
        let mut log = self.log_file()?;
        writeln!(log, "+ {}", line_of(command))?;
        command
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log));
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program_name(command)))?;
        let mut next = self.start.elapsed() + SIGN_OF_LIFE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(50));
            if self.start.elapsed() > next {
                self.sign_of_life();
                next = self.start.elapsed() + SIGN_OF_LIFE;
            }
        }
    }

    /// Like [`Step::status`], and shows what a command said that failed.
    pub fn check(&self, command: &mut Command) -> Result<bool> {
        let before = fs::metadata(&self.log)?.len();
        let good = self.status(command)?;
        if !good {
            self.show(&tail_from(&self.log, before, 15));
        }
        Ok(good)
    }

    /// Shows lines of a log, indented.
    pub fn show(&self, text: &str) {
        for line in text.lines() {
            println!("    | {line}");
        }
    }

    /// Runs a command and returns its standard output; the rest to the log.
    pub fn output(&self, command: &mut Command, advice: &str) -> Result<String> {
        let mut log = self.log_file()?;
        writeln!(log, "+ {}", line_of(command))?;
        let output = command
            .stderr(Stdio::from(log.try_clone()?))
            .output()
            .with_context(|| format!("cannot start {}", program_name(command)))?;
        log.write_all(&output.stdout)?;
        if !output.status.success() {
            self.fail(&program_name(command), advice)?;
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The error of a command that failed: the log's end is printed before.
    pub fn fail(&self, what: &str, advice: &str) -> Result<()> {
        let tail = tail(&self.log, 15);
        self.show(&tail);
        println!("    | the whole log: {}", self.log.display());
        let advice = known_cause(&tail).unwrap_or(advice);
        bail!("{}: {what} failed; {advice}", self.name)
    }

    fn sign_of_life(&self) {
        let tail = tail(&self.log, 1);
        let line: String = tail.trim().chars().take(60).collect();
        println!("[{:>7.1} s] {}: ... {line}", self.seconds(), self.name);
    }
}

fn program_name(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

/// A command as one would type it.
fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    match command.get_current_dir() {
        Some(folder) => format!("cd {}; {}", folder.display(), words.join(" ")),
        None => words.join(" "),
    }
}

/// Causes that have nothing to do with the step they hit.
fn known_cause(text: &str) -> Option<&'static str> {
    let any = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if any(&["No space left on device", "os error 28"]) {
        return Some(
            "the disk is full: free some space, or name another cache with S390_IOMMU_CACHE=",
        );
    }
    if any(&[
        "Temporary failure resolving",
        "Could not resolve host",
        "Could not connect",
        "Connection timed out",
        "Network is unreachable",
        "failed to download from",
    ]) {
        return Some(
            "the network or the mirror does not answer: check the connection and run it again",
        );
    }
    if any(&["Could not get lock", "Unable to acquire the dpkg"]) {
        return Some("another apt or dpkg is at work: wait for it and run it again");
    }
    None
}

/// The last lines of a file, as far as they can be read.
pub fn tail(path: &Path, lines: usize) -> String {
    tail_from(path, 0, lines)
}

/// The last lines of what follows an offset.
fn tail_from(path: &Path, offset: u64, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(16 * 1024).max(offset)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Writes a file if its content differs, so that its time tells when it changed.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let cause = known_cause("fatal: write: No space left on device").unwrap();
        assert!(cause.contains("disk is full"));
        assert!(known_cause("error: expected `;`").is_none());
    }

    #[test]
    fn unchanged_content_keeps_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        assert!(write_if_changed(&path, b"x").unwrap());
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!write_if_changed(&path, b"x").unwrap());
        assert_eq!(before, fs::metadata(&path).unwrap().modified().unwrap());
    }

    #[test]
    fn tail_is_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "1\n2\n3\n").unwrap();
        assert_eq!(tail(&path, 2), "2\n3");
        assert_eq!(tail(&folder.path().join("none"), 2), "");
    }
}
