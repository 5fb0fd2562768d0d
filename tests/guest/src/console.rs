// SPDX-License-Identifier: GPL-2.0
//! Lines on the console.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line with a single `write`, so that kernel messages, which share
/// the console, come before or after it but not in its middle.
pub fn line(text: Arguments) {
    let mut line = text.to_string();
    line.push('\n');
    // There is nowhere to report a failure of the console itself.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// Like `println!`, one `write` a line.
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::line(format_args!($($arg)*)) };
}
pub(crate) use say;
