// SPDX-License-Identifier: GPL-2.0
//! KVM together with the driver, as far as an emulated CPU supports it.
//!
//! The KVM module needs SIE, the instruction that runs a guest. Without it the module
//! fails to load with a message. The suite "reenable" makes the calls to the driver that
//! KVM would make.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::cmdline::Cmdline;
use crate::console::say;
use crate::ktap::Suite;
use crate::module::{self, Module};
use crate::{kmsg, sysfs};

/// Name of the suite and of the module
pub const NAME: &str = "kvm";
/// The module's message on a machine without SIE
const NO_SIE: &str = "SIE is not available";

/// Whether KVM is available as a module.
pub fn is_there() -> bool {
    module::is_there(NAME)
}

pub fn run(suite: &mut Suite, _: &Cmdline) -> Result<()> {
    ensure!(is_there(), "this kernel has no KVM as a module; build it with CONFIG=rust,kvm");
    suite.test("what zPCI gives KVM is in the kernel", symbols);
    if has_sie()? {
        suite.test("the module loads and unloads", load);
    } else {
        suite.test("without SIE the module is refused, and says why", refused);
    }
    Ok(())
}

/// Symbols of `VFIO_PCI_ZDEV_KVM`, and those that the KVM module calls.
fn symbols() -> Result<()> {
    let symbols = std::fs::read_to_string("/proc/kallsyms")?;
    for name in ["vfio_pci_zdev_open_device", "zpci_reenable_device"] {
        ensure!(symbols.lines().any(|line| line.ends_with(&format!(" {name}"))), "no {name}");
    }
    Ok(())
}

fn has_sie() -> Result<bool> {
    let text = sysfs::read("/proc/cpuinfo")?;
    let features = text.lines().filter_map(|line| line.strip_prefix("features")).next();
    Ok(features.is_some_and(|list| list.split_whitespace().any(|feature| feature == "sie")))
}

fn load() -> Result<()> {
    let module = Module::load(NAME, "")?;
    ensure!(Path::new("/dev/kvm").exists(), "there is no /dev/kvm");
    module.unload()
}

fn refused() -> Result<()> {
    let Err(error) = Module::load(NAME, "") else {
        anyhow::bail!("the module loads on a CPU without SIE");
    };
    let cause = error.downcast_ref::<nix::Error>().copied();
    ensure!(cause == Some(nix::Error::ENODEV), "{error:#}");
    let messages = kmsg::messages()?;
    let line = messages.iter().find(|message| message.contains(NO_SIE));
    ensure!(line.is_some(), "the module did not print \"{NO_SIE}\"");
    say!("# kvm: {}", line.map_or("", String::as_str));
    Ok(())
}
