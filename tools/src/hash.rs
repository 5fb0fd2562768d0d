// SPDX-License-Identifier: GPL-2.0
//! Short keys of what something is built from.

use crate::prelude::*;
use std::hash::{Hash, Hasher};
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

    /// Whether it was built from this input, to its end.
    pub fn is_current(&self) -> bool {
        self.key.is_some() && fs::read_to_string(&self.path).ok() == self.key
    }

    /// Before building: what is there is not whole.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    pub fn write(&self) -> Result<()> {
        if let Some(key) = &self.key {
            fs::write(&self.path, key)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_for_its_key_only() {
        let folder = camino_tempfile::tempdir().unwrap();
        let stamp = |key: Option<&str>| Stamp::new(folder.path(), key.map(str::to_owned));
        assert!(!stamp(Some("a")).is_current());
        stamp(Some("a")).write().unwrap();
        assert!(stamp(Some("a")).is_current());
        assert!(!stamp(Some("b")).is_current());
        assert!(!stamp(None).is_current());
    }
}
