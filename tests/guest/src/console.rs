// SPDX-License-Identifier: GPL-2.0
//! Output on the console.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line with a single `write`, so that kernel messages on the same console
/// cannot split it.
pub fn line(text: Arguments) {
    let mut line = text.to_string();
    line.push('\n');
    // If the console fails, there is nowhere to report it.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// Like `println!`, with one `write` per line.
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::line(format_args!($($arg)*)) };
}
pub(crate) use say;
