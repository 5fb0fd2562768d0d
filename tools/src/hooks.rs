// SPDX-License-Identifier: GPL-2.0
//! The lines that a kernel tree needs, as data (`integration/hooks.toml`), and
//! their application to the text of a file.
//!
//! An edit finds its place by an *anchor*, a line that must be there exactly
//! once, and is recognised when its text is there already.

use anyhow::{bail, Context, Result};
use regex_lite::Regex;
use serde::Deserialize;

/// The file `integration/hooks.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// The edits, in the order in which they are made.
    #[serde(rename = "edit")]
    pub edits: Vec<Edit>,
}

/// What an edit does at its anchor.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The text follows the anchor.
    InsertAfter,
    /// The text precedes the anchor.
    InsertBefore,
    /// The text takes the anchor's place.
    ReplaceLine,
}

/// One edit of one file.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file, relative to the tree.
    pub file: String,
    /// The line at which to edit, without the space around it.
    anchor: Option<String>,
    /// In place of `anchor`: an expression that matches the whole line.
    anchor_regex: Option<String>,
    /// Look only below this line: the first match there is the anchor.
    below: Option<String>,
    /// What to do there.
    action: Action,
    /// The lines to add; empty ones count.
    text: String,
    /// A tree without the anchor needs no such edit.
    #[serde(default)]
    optional: bool,
}

/// Reads the hooks and checks that each is complete.
pub fn parse(text: &str) -> Result<Hooks> {
    let hooks: Hooks = toml::from_str(text).context("hooks.toml is not understood")?;
    for edit in &hooks.edits {
        let _checked = edit.matcher()?;
        if edit.text.trim().is_empty() {
            bail!("hooks.toml: an edit of {} has no text", edit.file);
        }
    }
    Ok(hooks)
}

impl Edit {
    /// The file's text with this edit made; `None` when it is there already,
    /// or the tree needs none.
    pub fn apply(&self, content: &str) -> Result<Option<String>> {
        let lines: Vec<&str> = content.lines().collect();
        let text: Vec<&str> = self.text.lines().collect();
        if position(&lines, &text).is_some() {
            return Ok(None);
        }
        let Some(at) = self.find(&lines)? else {
            return Ok(None);
        };
        let (before, after) = match self.action {
            Action::InsertAfter => (at + 1, at + 1),
            Action::InsertBefore => (at, at),
            Action::ReplaceLine => (at, at + 1),
        };
        let all = [&lines[..before], &text, &lines[after..]].concat();
        Ok(Some(all.join("\n") + "\n"))
    }

    /// The file's text without this edit; `None` when it is not there, or
    /// cannot be told from the rest.
    pub fn undo(&self, content: &str) -> Option<String> {
        let lines: Vec<&str> = content.lines().collect();
        let text: Vec<&str> = self.text.lines().collect();
        let at = position(&lines, &text)?;
        let instead: &[&str] = match (self.action, &self.anchor) {
            (Action::ReplaceLine, Some(anchor)) => &[anchor.as_str()],
            (Action::ReplaceLine, None) => return None,
            _ => &[],
        };
        let all = [&lines[..at], instead, &lines[at + text.len()..]].concat();
        Some(all.join("\n") + "\n")
    }

    /// The anchor's index; `None` if there is none and need not be.
    fn find(&self, lines: &[&str]) -> Result<Option<usize>> {
        let matcher = self.matcher()?;
        let matches = |line: &str| matcher.matches(line);
        let start = match &self.below {
            Some(line) => match only(lines, |text| text.trim() == line.trim()) {
                Found::One(index) => index + 1,
                other => return self.not_found(other, line),
            },
            None => 0,
        };
        let rest = &lines[start..];
        let found = if self.below.is_some() {
            rest.iter()
                .position(|line| matches(line))
                .map_or(Found::None, Found::One)
        } else {
            only(rest, matches)
        };
        match found {
            Found::One(index) => Ok(Some(start + index)),
            other => self.not_found(other, self.anchor_text()),
        }
    }

    fn not_found(&self, found: Found, line: &str) -> Result<Option<usize>> {
        match found {
            Found::None if self.optional => Ok(None),
            Found::None => bail!("{} has no line `{line}`", self.file),
            _ => bail!("{} has the line `{line}` more than once", self.file),
        }
    }

    fn anchor_text(&self) -> &str {
        self.anchor
            .as_deref()
            .or(self.anchor_regex.as_deref())
            .unwrap_or_default()
    }

    fn matcher(&self) -> Result<Matcher> {
        match (&self.anchor, &self.anchor_regex) {
            (Some(line), None) => Ok(Matcher::Line(line.trim().to_owned())),
            (None, Some(pattern)) => Regex::new(&format!("^(?:{pattern})$"))
                .map(Matcher::Regex)
                .with_context(|| format!("hooks.toml: `{pattern}` is no expression")),
            _ => bail!(
                "hooks.toml: an edit of {} needs anchor or anchor_regex",
                self.file
            ),
        }
    }
}

/// What an anchor's line looks like.
enum Matcher {
    Line(String),
    Regex(Regex),
}

impl Matcher {
    fn matches(&self, line: &str) -> bool {
        match self {
            Self::Line(text) => line.trim() == text,
            Self::Regex(regex) => regex.is_match(line.trim_end()),
        }
    }
}

enum Found {
    None,
    One(usize),
    Many,
}

fn only(lines: &[&str], matches: impl Fn(&str) -> bool) -> Found {
    let mut all = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| matches(line))
        .map(|(index, _)| index);
    match (all.next(), all.next()) {
        (None, _) => Found::None,
        (Some(index), None) => Found::One(index),
        _ => Found::Many,
    }
}

/// Where the lines stand in the file as they are.
fn position(lines: &[&str], text: &[&str]) -> Option<usize> {
    let same = |(a, b): (&&str, &&str)| a.trim_end() == b.trim_end();
    lines
        .windows(text.len())
        .position(|window| window.iter().zip(text).all(same))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(toml: &str) -> Edit {
        parse(&format!("[[edit]]\nfile='f'\n{toml}"))
            .unwrap()
            .edits
            .remove(0)
    }

    #[test]
    fn each_action() {
        for (action, want) in [
            ("insert_after", "a\nb\nX\nY\nc\n"),
            ("insert_before", "a\nX\nY\nb\nc\n"),
            ("replace_line", "a\nX\nY\nc\n"),
        ] {
            let edit = edit(&format!("anchor='b'\naction='{action}'\ntext=\"X\\nY\"\n"));
            let once = edit.apply("a\nb\nc\n").unwrap().unwrap();
            assert_eq!(once, want);
            assert_eq!(edit.apply(&once).unwrap(), None, "twice is once");
            assert_eq!(edit.undo(&once).as_deref(), Some("a\nb\nc\n"));
            assert_eq!(edit.undo("a\nb\nc\n"), None);
        }
    }

    #[test]
    fn empty_lines_count() {
        let edit = edit("anchor='b'\naction='insert_before'\ntext=\"X\\n\\n\"\n");
        let once = edit.apply("a\nb\n").unwrap().unwrap();
        assert_eq!(once, "a\nX\n\nb\n");
        assert_eq!(edit.apply(&once).unwrap(), None);
    }

    #[test]
    fn indentation_of_the_anchor_does_not_matter() {
        let edit = edit("anchor='b'\naction='insert_after'\ntext=\"\\tX\"\n");
        assert_eq!(edit.apply("\t b \n").unwrap().unwrap(), "\t b \n\tX\n");
    }

    #[test]
    fn an_expression_matches_the_whole_line() {
        let edit = edit("anchor_regex='b+'\naction='insert_after'\ntext='X'\n");
        assert_eq!(edit.apply("abb\nbb\n").unwrap().unwrap(), "abb\nbb\nX\n");
    }

    #[test]
    fn below_a_line_the_first_match_counts() {
        let edit = edit("below='two'\nanchor='d'\naction='insert_after'\ntext='X'\n");
        let done = edit.apply("one\nd\ntwo\nd\nd\n").unwrap().unwrap();
        assert_eq!(done, "one\nd\ntwo\nd\nX\nd\n");
    }

    #[test]
    fn a_missing_or_repeated_anchor_is_an_error() {
        let edit = edit("anchor='b'\naction='insert_after'\ntext='X'\n");
        let error = edit.apply("a\n").unwrap_err().to_string();
        assert_eq!(error, "f has no line `b`");
        let error = edit.apply("b\nb\n").unwrap_err().to_string();
        assert_eq!(error, "f has the line `b` more than once");
    }

    #[test]
    fn an_optional_edit_may_have_no_anchor() {
        let edit = edit("anchor='b'\naction='insert_after'\ntext='X'\noptional=true\n");
        assert_eq!(edit.apply("a\n").unwrap(), None);
        assert!(edit.apply("b\nb\n").is_err());
    }

    #[test]
    fn hooks_that_make_no_sense_are_refused() {
        for toml in [
            "[[edit]]\nfile='f'\naction='insert_after'\ntext='X'\n",
            "[[edit]]\nfile='f'\nanchor='a'\nanchor_regex='a'\naction='insert_after'\ntext='X'\n",
            "[[edit]]\nfile='f'\nanchor='a'\naction='insert_after'\ntext=''\n",
            "[[edit]]\nfile='f'\nanchor='a'\naction='remove'\ntext='X'\n",
            "[[edit]]\nfile='f'\nanchor_regex='('\naction='insert_after'\ntext='X'\n",
            "[[edit]]\nfile='f'\nanker='a'\naction='insert_after'\ntext='X'\n",
        ] {
            assert!(parse(toml).is_err(), "{toml}");
        }
    }
}
