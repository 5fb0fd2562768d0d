// SPDX-License-Identifier: GPL-2.0
//! What the README shows is what the commands print.
//!
//! A block of the README that begins with `$ make run` is compared with what that
//! command printed. A line `...` stands for any lines, also none. Numbers may
//! differ (times, rates, counts, versions) and so may the space in a line;
//! checksums, addresses and texts may not.

use crate::prelude::*;

/// A line that stands for others.
const ELLIPSIS: &str = "...";
/// What stands before the first line, and after the last.
const ENDS: [&str; 2] = ["<begin>", "<end>"];

/// Compares the README's block of a command with what it printed.
///
/// # Errors
///
/// There is no such block, or a line of it was not printed.
pub fn check(project: &Project, command: &str, printed: &str) -> Result<()> {
    let text = fs::read_to_string(project.root.join("README.md"))?;
    let block = block(&text, command)
        .with_context(|| format!("README.md has no block that begins with \"$ {command}\""))?;
    match missing(&block, &printed.lines().collect::<Vec<_>>()) {
        None => Ok(()),
        Some(line) => bail!("README.md: {command} does not print {:?}", line.trim()),
    }
}

/// The lines of the fenced block whose first line is the command.
fn block<'a>(text: &'a str, command: &str) -> Option<Vec<&'a str>> {
    let prompt = format!("$ {command}");
    let mut lines = text.lines().skip_while(|line| *line != prompt).skip(1);
    let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
    (!block.is_empty()).then_some(block)
}

/// A line of the block that cannot be found where it has to be, if there is one.
fn missing<'a>(block: &[&'a str], printed: &[&str]) -> Option<&'a str> {
    let printed: Vec<String> = with_ends(printed).into_iter().map(normal).collect();
    let mut rest = &printed[..];
    for run in with_ends(block).split(|line| line.trim() == ELLIPSIS) {
        let wanted: Vec<String> = run.iter().map(|line| normal(line)).collect();
        if wanted.is_empty() {
            continue;
        }
        let Some(place) = rest.windows(wanted.len()).position(|lines| lines == wanted) else {
            let mut lines = run.iter().filter(|line| !ENDS.contains(line));
            let first = lines.clone().next();
            return lines
                .find(|line| !rest.contains(&normal(line)))
                .or(first)
                .copied();
        };
        rest = &rest[place + wanted.len()..];
    }
    None
}

/// What begins a block has to begin the output, and what ends it to end it.
fn with_ends<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    [&ENDS[..1], lines, &ENDS[1..]].concat()
}

/// A line with its numbers and its spaces made equal.
fn normal(line: &str) -> String {
    let parts: Vec<&str> = line.split_whitespace().map(normal_word).collect();
    parts.join(" ")
}

/// A decimal number or a version becomes "N", with what stands around it.
fn normal_word(word: &str) -> &str {
    let core = word.trim_matches(['(', ')', '[', ']', ',', ';', '.']);
    let is_number = core.starts_with(|c: char| c.is_ascii_digit())
        && core.chars().all(|c| c.is_ascii_digit() || c == '.');
    // A checksum may happen to have decimal digits only.
    if is_number && core.len() < 16 {
        "N"
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: [&str; 5] = ["[ 1.0 s] a: done", "x 12", "y", "z 0x10", "end (3 s)"];

    fn missing_of(text: &'static str) -> Option<&'static str> {
        missing(&text.lines().collect::<Vec<_>>(), &PRINTED)
    }

    #[test]
    fn numbers_and_spaces_may_differ() {
        assert_eq!(
            normal("[    0.1 s] a:  12, 7.3.4"),
            normal("[ 22.0 s] a: 3, 7.4")
        );
        assert_ne!(normal("0x10"), normal("0x11"));
        assert_ne!(normal("0001:00:00.0"), normal("0002:00:00.0"));
        assert_ne!(normal("1234567812345678"), normal("1234567812345679"));
    }

    #[test]
    fn what_was_printed_is_found() {
        assert_eq!(missing_of("[ 9.9 s] a: done\n...\ny\n...\nend (4 s)"), None);
        assert_eq!(missing_of("...\nx 1\ny\n..."), None);
        assert_eq!(missing_of("...\nend (1 s)"), None);
    }

    #[test]
    fn what_was_not_printed_is_named() {
        assert_eq!(missing_of("...\nq\n..."), Some("q"));
        assert_eq!(missing_of("...\nz 0x11\n..."), Some("z 0x11"));
        // In another order, or with something between.
        assert_eq!(missing_of("...\ny\n...\nx 1\n..."), Some("x 1"));
        assert_eq!(missing_of("...\nx 1\nz 0x10\n..."), Some("x 1"));
        // Not at the beginning, not at the end.
        assert_eq!(missing_of("x 1\n..."), Some("x 1"));
        assert_eq!(missing_of("...\ny"), Some("y"));
        assert!(missing_of("[ 1.0 s] a: done\nx 1").is_some());
    }
}
