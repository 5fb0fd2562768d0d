// SPDX-License-Identifier: GPL-2.0
//! Patches of this checkout for files of the kernel, applied by patch(1).
//!
//! They have to fit exactly but for line numbers, so that none goes to the
//! wrong place, or in twice.

use anyhow::{bail, Context, Result};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The content of files, by their paths in a tree. An empty one stands for a
/// file that is not there, as it does for patch(1).
pub type Texts = BTreeMap<String, Vec<u8>>;

/// A patch.
pub struct Patch {
    /// Its file's name.
    pub name: String,
    /// What it says.
    pub text: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The patches in a folder, in the order of their names; none without a folder.
pub fn read(folder: &Path) -> Result<Vec<Patch>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "patch") {
            let name = path.file_name().unwrap_or_default();
            list.push(Patch {
                name: name.to_string_lossy().into_owned(),
                text: fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?,
                path,
            });
        }
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(list)
}

impl Patch {
    /// The files that it changes, and whether it makes them.
    pub fn files(&self) -> Vec<(&str, bool)> {
        let lines: Vec<&str> = self.text.lines().collect();
        lines
            .windows(2)
            .filter_map(|pair| {
                let (old, new) = (pair[0].strip_prefix("--- ")?, pair[1].strip_prefix("+++ ")?);
                let name = if new == "/dev/null" { old } else { new };
                Some((name.split_once('/')?.1, old == "/dev/null"))
            })
            .collect()
    }

    /// The words of all lines of its header with this key.
    pub fn header<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let header = self.text.split("\n\n").next().unwrap_or_default();
        header
            .lines()
            .filter_map(move |line| line.strip_prefix(key)?.strip_prefix(": "))
            .flat_map(str::split_whitespace)
    }

    /// Its subject, and why it is.
    pub fn message(&self) -> Result<String> {
        let subject: Vec<&str> = self.header("Subject").collect();
        let (_, rest) = self
            .text
            .split_once("\n\n")
            .with_context(|| format!("{} says nothing", self.name))?;
        let body = rest.split("\n---\n").next().unwrap_or_default();
        Ok(format!("{}\n\n{body}", subject.join(" ")))
    }

    /// Applies it to a tree. What fits is changed also if another part does not.
    pub fn apply(&self, tree: &Path) -> Result<()> {
        for (file, made) in self.files() {
            match (made, tree.join(file).is_file()) {
                (false, false) => bail!("it has no {file}, which {} changes", self.name),
                (true, true) => bail!("it has {file} already, which {} makes", self.name),
                _ => {}
            }
        }
        self.run(tree, &["--forward"])
    }

    fn run(&self, tree: &Path, direction: &[&str]) -> Result<()> {
        let output = Command::new("patch")
            .args(["--strip=1", "--fuzz=0", "--no-backup-if-mismatch"])
            .args(["--reject-file=-", "--directory"])
            .arg(tree)
            .arg("--input")
            .arg(&self.path)
            .args(direction)
            .env("LC_ALL", "C")
            .output()
            .context("cannot start patch; install it")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let mut file = "the tree";
        for line in said.lines() {
            if let Some(name) = line.strip_prefix("patching file ") {
                file = name;
            }
            if line.contains("FAILED") || line.contains("previously applied") {
                bail!("{} does not fit {file}: {line}", self.name);
            }
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{} does not fit: {}", self.name, (said + errors).trim())
    }
}

/// The texts with the patches.
pub fn apply(patches: &[Patch], texts: &Texts) -> Result<Texts> {
    in_scratch(texts, |tree| {
        patches.iter().try_for_each(|patch| patch.apply(tree))
    })
}

/// The texts without the patches, which they must have.
pub fn revert(patches: &[Patch], texts: &Texts) -> Result<Texts> {
    in_scratch(texts, |tree| {
        let mut last_first = patches.iter().rev();
        // Without --force patch would put in what is not there to be taken out.
        last_first.try_for_each(|patch| patch.run(tree, &["--reverse", "--force"]))
    })
}

/// Has the texts changed as files of a folder, so that nothing else is touched.
fn in_scratch(texts: &Texts, change: impl FnOnce(&Path) -> Result<()>) -> Result<Texts> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    for (file, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        fs::write(path, text)?;
    }
    change(folder.path())?;
    let read = |file: &String| fs::read(folder.path().join(file)).unwrap_or_default();
    Ok(texts
        .keys()
        .map(|file| (file.clone(), read(file)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(folder: &Path, name: &str, body: &str) {
        fs::write(
            folder.join(name),
            format!("Subject: x\n\nWhy.\n---\n{body}"),
        )
        .unwrap();
    }

    fn series() -> (tempfile::TempDir, Vec<Patch>) {
        let folder = tempfile::tempdir().unwrap();
        let change = "--- a/d/f\n+++ b/d/f\n@@ -1,2 +1,3 @@\n a\n+X\n b\n";
        let add = "--- /dev/null\n+++ b/d/new\n@@ -0,0 +1 @@\n+N\n";
        let again = "--- a/d/f\n+++ b/d/f\n@@ -1,3 +1,3 @@\n a\n-X\n+Y\n b\n";
        patch(folder.path(), "0002-b.patch", again);
        patch(folder.path(), "0001-a.patch", &format!("{change}{add}"));
        fs::write(folder.path().join("notes"), "").unwrap();
        let series = read(folder.path()).unwrap();
        (folder, series)
    }

    fn texts(f: &str, new: &str) -> Texts {
        [("d/f", f), ("d/new", new)]
            .map(|(file, text)| (file.to_owned(), text.into()))
            .into()
    }

    #[test]
    fn in_order_and_back() {
        let (_folder, series) = series();
        assert_eq!(series[0].files(), [("d/f", false), ("d/new", true)]);
        let done = apply(&series, &texts("a\nb\n", "")).unwrap();
        assert_eq!(done, texts("a\nY\nb\n", "N\n"));
        assert_eq!(revert(&series, &done).unwrap(), texts("a\nb\n", ""));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (_folder, series) = series();
        let error = |texts| apply(&series, &texts).unwrap_err().to_string();
        let text = error(texts("a\nc\n", ""));
        assert!(
            text.starts_with("0001-a.patch does not fit d/f: Hunk #1 FAILED"),
            "{text}"
        );
        assert!(error(texts("a\nX\nb\n", "")).contains("previously applied"));
        assert!(error(texts("a\nb\n", "other\n")).contains("has d/new already"));
        assert!(error(texts("", "")).contains("it has no d/f"));
    }

    #[test]
    fn what_a_patch_says() {
        let text = "Subject: a: b\nFiles: x y\nFiles: z\n\nWhy.\n\nAnd why.\n---\n--- a/f\n";
        let patch = Patch {
            name: "n".into(),
            text: text.into(),
            path: PathBuf::new(),
        };
        assert_eq!(patch.header("Files").collect::<Vec<_>>(), ["x", "y", "z"]);
        assert_eq!(patch.message().unwrap(), "a: b\n\nWhy.\n\nAnd why.");
    }

    #[test]
    fn only_what_is_there_is_taken_back() {
        let (_folder, series) = series();
        for (f, new) in [
            ("a\nb\n", ""),
            ("a\nX\nb\n", "N\n"),
            ("a\nY\nb\n", "other\n"),
        ] {
            assert!(revert(&series, &texts(f, new)).is_err(), "{f:?} {new:?}");
        }
        // Nor is a patch put in where it should be taken out.
        assert!(revert(&series[..1], &texts("a\nb\n", "")).is_err());
    }

    #[test]
    fn the_project_s_own_say_what_they_are() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for folder in ["patches", "selftests", "series"] {
            let list = read(&root.join("integration").join(folder)).unwrap();
            assert!(!list.is_empty());
            for Patch { name, text, .. } in &list {
                assert!(
                    text.starts_with("SPDX-License-Identifier: GPL-2.0\n"),
                    "{name}"
                );
                assert!(text.contains("\nSubject: "), "{name}");
                // One of the series may only name files of the checkout.
                let files = text.contains("\nFiles: ");
                assert!(files || text.contains("\n---\n"), "{name}");
            }
            let empty = |patch: &Patch| patch.files().is_empty();
            assert!(!list
                .iter()
                .any(|p| empty(p) && p.header("Files").count() == 0));
        }
    }
}
