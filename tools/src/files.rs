// SPDX-License-Identifier: GPL-2.0
//! Folders and files.

use crate::prelude::*;

pub fn paths_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path().try_into()?));
    let mut list = paths.collect::<Result<Vec<_>>>()?;
    list.sort();
    Ok(list)
}

/// Those whose names end in `.kind`.
pub fn paths_of_kind(folder: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let mut list = paths_in(folder)?;
    list.retain(|path| path.extension().is_some_and(|found| found == kind));
    Ok(list)
}

/// All files below a folder, relative to it; none without the folder.
pub fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut list = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in paths_in(&next).unwrap_or_default() {
            if path.is_dir() {
                folders.push(path);
            } else {
                list.push(path.strip_prefix(folder)?.to_string());
            }
        }
    }
    list.sort();
    Ok(list)
}

pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_owned()
}

/// Whether a file has one of these extensions, and kbuild did not generate it.
pub fn has_kind(path: &Path, kinds: &[&str]) -> bool {
    let name = name_of(path);
    let kind = name.rsplit('.').next().unwrap_or_default();
    kinds.contains(&kind) && !name.ends_with(".mod.c")
}

/// The content of all these files.
pub fn read_all(paths: impl IntoIterator<Item: AsRef<Path>>) -> Result<Vec<Vec<u8>>> {
    let texts = paths.into_iter().map(|path| fs::read(path.as_ref()));
    Ok(texts.collect::<std::io::Result<_>>()?)
}

/// A text that may have other bytes in it.
pub fn read_lossy(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

pub fn make_anew(folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    Ok(fs::create_dir_all(folder)?)
}

/// Writes a file if its content differs, so that its time is that of its last change.
pub fn write_if_changed(path: &Path, content: impl AsRef<[u8]>) -> Result<bool> {
    let content = content.as_ref();
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)?;
    Ok(true)
}
