// SPDX-License-Identifier: GPL-2.0
//! Helpers for sysfs and similar files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Reads a whole file, without trailing white space.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// Writes `value` with one `write`.
pub fn write(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}

/// The entries of a directory, sorted; empty if it does not exist.
pub fn list(path: impl AsRef<Path>) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// The last component of a path.
pub fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The last component of a link's target.
pub fn link_name(path: impl AsRef<Path>) -> Option<String> {
    fs::read_link(path).ok().map(|target| name(&target))
}

/// Polls `ready` until it returns a value.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("{what}: not there after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
