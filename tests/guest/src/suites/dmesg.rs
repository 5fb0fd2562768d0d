// SPDX-License-Identifier: GPL-2.0
//! The kernel log contains no bad messages.

use anyhow::ensure;

use crate::console::say;
use crate::kmsg;
use crate::ktap::Suite;

pub fn run(suite: &mut Suite) {
    suite.test("dmesg is clean", || {
        let messages = kmsg::messages()?;
        let bad = kmsg::bad(&messages);
        for line in &bad {
            say!("# dmesg: {line}");
        }
        ensure!(bad.is_empty(), "{} bad messages, the first: {}", bad.len(), bad[0]);
        Ok(())
    });
}
