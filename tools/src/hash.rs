// SPDX-License-Identifier: GPL-2.0
//! Short keys of what something is built from.

use crate::project::find_program;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A key of the given parts; their borders count.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What tells one version of a program from another without running it.
pub fn of_program(name: &Path) -> Vec<u8> {
    let path = find_program(name).unwrap_or_else(|| name.to_owned());
    let time = fs::metadata(&path).and_then(|data| Ok((data.len(), data.modified()?)));
    format!("{} {:?}", path.display(), time.ok()).into_bytes()
}

/// Remembers from what something was built; without a key it never does.
pub struct Stamp {
    path: PathBuf,
    key: Option<String>,
}

impl Stamp {
    /// A stamp in this file, for this input.
    pub fn new(path: PathBuf, key: Option<String>) -> Self {
        Self { path, key }
    }

    /// Whether it was built from this input, to its end.
    pub fn is_current(&self) -> bool {
        self.key.is_some() && fs::read_to_string(&self.path).ok() == self.key
    }

    /// Before building: what is there is not whole.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    /// After building.
    pub fn write(&self) -> Result<()> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        fs::write(&self.path, key).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_for_its_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = |key: Option<&str>| Stamp::new(folder.path().join("s"), key.map(str::to_owned));
        assert!(!stamp(Some("a")).is_current());
        stamp(Some("a")).write().unwrap();
        assert!(stamp(Some("a")).is_current());
        assert!(!stamp(Some("b")).is_current());
        assert!(!stamp(None).is_current());
        stamp(Some("a")).remove();
        assert!(!stamp(Some("a")).is_current());
    }

    #[test]
    fn borders_count() {
        assert_ne!(key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
        assert_eq!(key([&b"ab"[..]]).len(), 12);
    }
}
