// SPDX-License-Identifier: GPL-2.0
//! Short keys of what something is built from.

use crate::project::find_program;
use anyhow::Result;
use fs_err as fs;
use std::{
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh64::Xxh64;

/// A key of all that is in there.
pub fn key(parts: impl Hash) -> String {
    let mut hasher = Xxh64::new(0);
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// What tells one version of a program from another without running it.
pub fn of_program(name: &Path) -> impl Hash {
    let path = find_program(name).unwrap_or_else(|| name.to_owned());
    let data = fs::metadata(&path).ok();
    let data = data.map(|data| (data.len(), data.modified().ok()));
    (path, data)
}

/// Remembers from what something was built; without a key it never does.
pub struct Stamp {
    path: PathBuf,
    key: Option<String>,
}

impl Stamp {
    pub fn new(folder: &Path, key: Option<String>) -> Self {
        let path = folder.join(".s390-iommu-built");
        Self { path, key }
    }

    /// Builds it, unless it was built from this input to its end; whether it did.
    pub fn build(&self, is_there: bool, build: impl FnOnce() -> Result<()>) -> Result<bool> {
        let is_current = self.key.is_some() && fs::read_to_string(&self.path).ok() == self.key;
        if is_there && is_current {
            return Ok(false);
        }
        // What is there is not whole.
        let _ = fs::remove_file(&self.path);
        build()?;
        if let Some(key) = &self.key {
            fs::write(&self.path, key)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn a_stamp_holds_for_its_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let stamp = |key: Option<&str>| Stamp::new(folder.path(), key.map(str::to_owned));
        let builds = |key| stamp(key).build(true, || Ok(())).unwrap();
        assert!(builds(Some("a")) && !builds(Some("a")));
        assert!(stamp(Some("a")).build(false, || Ok(())).unwrap());
        assert!(builds(Some("b")) && builds(Some("a")));
        assert!(stamp(Some("a")).build(false, || bail!("x")).is_err());
        assert!(builds(Some("a")));
        assert!(builds(None) && builds(None));
    }
}
