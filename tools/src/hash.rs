// SPDX-License-Identifier: GPL-2.0
//! Short keys of what something is built from.

use crate::prelude::*;
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh64::Xxh64;

/// A key of all parts.
pub fn key(parts: impl Hash) -> String {
    let mut hasher = Xxh64::new(0);
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Distinguishes versions of a program without running it.
pub fn of_program(name: &Path) -> impl Hash {
    let path = find_program(name).unwrap_or_else(|| name.to_owned());
    let data = fs::metadata(&path).ok();
    let data = data.map(|data| (data.len(), data.modified().ok()));
    (path.into_std_path_buf(), data)
}

const STAMP: &str = ".s390-iommu-built";

/// Whether a build was completed in a folder.
pub fn is_built(folder: &Path) -> bool {
    folder.join(STAMP).exists()
}

/// Builds in a folder unless an earlier build with the same key was completed there; without
/// a key it always builds. Returns whether it did.
pub fn build_once(
    folder: &Path,
    made: &Path,
    key: Option<&String>,
    build: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let stamp = folder.join(STAMP);
    if made.exists() && key.is_some() && fs::read_to_string(&stamp).ok().as_ref() == key {
        return Ok(false);
    }
    // From now on the folder is incomplete.
    let _ = fs::remove_file(&stamp);
    build()?;
    if let Some(key) = key {
        fs::write(&stamp, key)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_built_once_from_its_key() {
        let folder = camino_tempfile::tempdir().unwrap();
        let (folder, made) = (folder.path(), folder.path().join("made"));
        let build = |key: Option<&str>| {
            let key = key.map(str::to_owned);
            build_once(folder, &made, key.as_ref(), || Ok(fs::write(&made, "")?)).unwrap()
        };
        assert!(build(Some("a")) && !build(Some("a")));
        assert!(build(Some("b")) && build(Some("a")));
        assert!(build(None) && build(Some("a")));
        fs::remove_file(&made).unwrap();
        assert!(build(Some("a")));
    }
}
