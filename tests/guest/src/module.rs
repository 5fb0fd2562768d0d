// SPDX-License-Identifier: GPL-2.0
//! Test modules: loading them and taking their results.

use std::ffi::CString;
use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::ktap::skip;

/// A loaded module; unloaded when dropped.
pub struct Module {
    name: String,
}

/// Whether the initramfs has a module of this name.
pub fn is_there(name: &str) -> bool {
    path(name).exists()
}

/// Loads `/lib/modules/<name>.ko` for good.
pub fn load(name: &str, parameters: &str) -> Result<()> {
    let path = path(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    finit_module(&file, &CString::new(parameters)?, ModuleInitFlags::empty())
        .with_context(|| format!("load {}", path.display()))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(format!("/lib/modules/{name}.ko"))
}

impl Module {
    /// Loads a module for a test; one that is not in the initramfs makes the
    /// test point a skip that says so.
    pub fn load(name: &str, parameters: &str) -> Result<Self> {
        if !is_there(name) {
            skip!("{} is not in the initramfs", path(name).display());
        }
        load(name, parameters)?;
        Ok(Self { name: name.to_owned() })
    }

    /// Unloads the module and says if that failed.
    pub fn unload(mut self) -> Result<()> {
        let name = std::mem::take(&mut self.name);
        delete_module(&CString::new(name.clone())?, DeleteModuleFlags::O_NONBLOCK)
            .with_context(|| format!("unload {name}"))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(name) = CString::new(self.name.clone()) {
            let _ = delete_module(&name, DeleteModuleFlags::O_NONBLOCK);
        }
    }
}
