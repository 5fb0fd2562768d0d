// SPDX-License-Identifier: GPL-2.0
//! Patches of this checkout for files of the kernel, applied by patch(1).
//!
//! They have to fit exactly except for line numbers, so that none is applied in the
//! wrong place, or twice.

use crate::prelude::*;

pub struct Patch {
    pub name: String,
    pub text: String,
    pub path: PathBuf,
}

/// The patches in a folder, in the order of their names; none without a folder.
pub fn read(folder: &Path) -> Result<Vec<Patch>> {
    let paths = paths_of_kind(folder, "patch").unwrap_or_default();
    paths.into_iter().map(Patch::read).collect()
}

pub fn apply(patches: &[Patch], tree: &Path) -> Result<()> {
    patches.iter().try_for_each(|patch| patch.apply(tree))
}

/// Reverts all of them; the tree must have them.
pub fn revert(patches: &[Patch], tree: &Path) -> Result<()> {
    let mut last_first = patches.iter().rev();
    // Without --force, patch(1) would apply a patch that is not there to revert.
    last_first.try_for_each(|patch| patch.run(tree, &["--reverse", "--force"]))
}

impl Patch {
    pub fn read(path: PathBuf) -> Result<Self> {
        Ok(Self {
            name: name_of(&path),
            text: fs::read_to_string(&path)?,
            path,
        })
    }

    /// The files that it changes, and whether it creates them.
    pub fn files(&self) -> Vec<(&str, bool)> {
        let lines: Vec<&str> = self.text.lines().collect();
        let files = lines.windows(2).filter_map(|pair| {
            let (old, new) = (pair[0].strip_prefix("--- ")?, pair[1].strip_prefix("+++ ")?);
            let name = if new == "/dev/null" { old } else { new };
            Some((name.split_once('/')?.1, old == "/dev/null"))
        });
        files.collect()
    }

    /// The values of all lines of its header with this key, split at blanks.
    pub fn header<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let header = self.text.split("\n\n").next().unwrap_or_default();
        let values = move |line: &'a str| line.strip_prefix(key)?.strip_prefix(": ");
        let lines = header.lines().filter_map(values);
        lines.flat_map(str::split_whitespace)
    }

    /// Its subject and its changelog.
    pub fn message(&self) -> Result<String> {
        let subject: Vec<&str> = self.header("Subject").collect();
        let rest = self.text.split_once("\n\n");
        let (_, rest) = rest.with_context(|| format!("{} says nothing", self.name))?;
        let body = rest.split("\n---\n").next().unwrap_or_default();
        Ok(format!("{}\n\n{body}", subject.join(" ")))
    }

    /// Applies it to a tree. If a hunk does not fit, the others are applied nevertheless.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn series(folder: &Path) -> Vec<Patch> {
        let change = "--- a/d/f\n+++ b/d/f\n@@ -1,2 +1,3 @@\n a\n+X\n b\n";
        let add = "--- /dev/null\n+++ b/d/new\n@@ -0,0 +1 @@\n+N\n";
        let again = "--- a/d/f\n+++ b/d/f\n@@ -1,3 +1,3 @@\n a\n-X\n+Y\n b\n";
        for (name, body) in [("2.patch", again), ("1.patch", &(change.to_owned() + add))] {
            let text = format!("Subject: x\nFiles: a b\nFiles: c\n\nWhy.\n---\n{body}");
            fs::write(folder.join(name), text).unwrap();
        }
        read(folder).unwrap()
    }

    /// What a change makes of a tree with this text in `d/f`, and in `d/new` if any.
    fn changed(f: &str, new: &str, change: fn(&[Patch], &Path) -> Result<()>) -> Result<String> {
        let folder = camino_tempfile::tempdir().unwrap();
        for (file, text) in [("d/f", f), ("d/new", new)] {
            if !text.is_empty() {
                write_if_changed(&folder.path().join(file), text).unwrap();
            }
        }
        change(&series(folder.path()), folder.path())?;
        let read = |file| fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        Ok(read("d/f") + &read("d/new"))
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |f, new| changed(f, new, apply).unwrap_err().to_string();
        let text = error("a\nc\n", "");
        assert!(
            text.starts_with("1.patch does not fit d/f: Hunk #1 FAILED"),
            "{text}"
        );
        assert!(error("a\nX\nb\n", "").contains("previously applied"));
        assert!(error("a\nb\n", "other\n").contains("has d/new already"));
        assert!(error("", "").contains("it has no d/f"));
    }

    #[test]
    fn only_what_is_there_is_taken_back() {
        for (f, new) in [
            ("a\nb\n", ""),
            ("a\nX\nb\n", "N\n"),
            ("a\nY\nb\n", "other\n"),
        ] {
            assert!(changed(f, new, revert).is_err(), "{f:?} {new:?}");
        }
    }

    #[test]
    fn what_a_patch_says() {
        let folder = camino_tempfile::tempdir().unwrap();
        let patch = &series(folder.path())[0];
        assert_eq!(patch.header("Files").collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(patch.message().unwrap(), "x\n\nWhy.");
    }

    #[test]
    fn the_project_s_own_say_what_they_are() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for folder in ["patches", "selftests", "series"] {
            let list = read(&root.join("integration").join(folder)).unwrap();
            assert!(!list.is_empty());
            for patch in &list {
                let (name, text) = (&patch.name, &patch.text);
                assert!(
                    text.starts_with("SPDX-License-Identifier: GPL-2.0\n"),
                    "{name}"
                );
                assert!(text.contains("\nSubject: "), "{name}");
                // One of the series may only name files of the checkout.
                let has_files = patch.header("Files").next().is_some();
                assert!(has_files || !patch.files().is_empty(), "{name}");
                assert!(has_files || text.contains("\n---\n"), "{name}");
            }
        }
    }
}
