// SPDX-License-Identifier: GPL-2.0
//! Short keys of what something is built from.

use crate::project::find_program;
use anyhow::Result;
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds a part; the borders of parts count.
    pub fn add(&mut self, part: impl AsRef<[u8]>) {
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub fn add_path(&mut self, path: &Path) {
        self.add(path.as_os_str().as_encoded_bytes());
    }

    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        self.add_path(path);
        self.add(fs::read(path)?);
        Ok(())
    }

    /// Adds what tells one version of a program from another without running it.
    pub fn add_program(&mut self, name: &Path) {
        let path = find_program(name).unwrap_or_else(|| name.to_owned());
        let time = fs::metadata(&path).and_then(|data| Ok((data.len(), data.modified()?)));
        self.add(format!("{} {:?}", path.display(), time.ok()));
    }

    pub fn finish(self) -> String {
        let hash = self.0.finalize();
        hash.iter().take(6).map(|b| format!("{b:02x}")).collect()
    }
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
        let folder = tempfile::tempdir().unwrap();
        let stamp = |key: Option<&str>| Stamp::new(folder.path(), key.map(str::to_owned));
        assert!(!stamp(Some("a")).is_current());
        stamp(Some("a")).write().unwrap();
        assert!(stamp(Some("a")).is_current());
        assert!(!stamp(Some("b")).is_current());
        assert!(!stamp(None).is_current());
    }
}
