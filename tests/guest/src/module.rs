// SPDX-License-Identifier: GPL-2.0
//! Loads and unloads kernel modules.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module, init_module};

use crate::ktap::skip;
use crate::state::State;
use crate::{kmsg, sysfs};

/// A loaded module; unloaded when dropped.
pub struct Module {
    name: String,
}

/// Whether there is a module file of this name.
pub fn is_there(name: &str) -> bool {
    path(name).exists()
}

/// Loads `<name>.ko` without unloading it later.
pub fn load(name: &str, parameters: &str) -> Result<()> {
    let path = path(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    finit_module(&file, &CString::new(parameters)?, ModuleInitFlags::empty())
        .with_context(|| format!("load {}", path.display()))
}

/// Loads a file; returns the plain error code.
pub fn try_load(path: &Path, parameters: &str) -> nix::Result<()> {
    let file = File::open(path).map_err(|_| Errno::ENOENT)?;
    let parameters = CString::new(parameters).map_err(|_| Errno::EINVAL)?;
    finit_module(&file, &parameters, ModuleInitFlags::empty())
}

/// Loads a module image in memory; returns the plain error code.
pub fn load_image(image: &[u8]) -> nix::Result<()> {
    init_module(image, c"")
}

/// Unloads a module without waiting for users; returns the plain error code.
pub fn try_unload(name: &str) -> nix::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
}

/// The module's reference count, as `lsmod` shows it.
pub fn users(name: &str) -> Result<usize> {
    let text = sysfs::read("/proc/modules")?;
    let mut modules = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let fields = modules.find(|fields| fields[0] == name);
    let fields = fields.with_context(|| format!("{name} is not in /proc/modules"))?;
    fields.get(2).context("no third field")?.parse().context("the third field is not a number")
}

/// Checks that a load fails with this error, logs this text, and leaves nothing behind.
pub fn refused(load: impl FnOnce() -> nix::Result<()>, error: Errno, text: &str) -> Result<()> {
    let before = State::take()?;
    let (result, log) = kmsg::during(load)?;
    ensure!(result == Err(error), "loading returned {result:?}, expected {error:?}");
    ensure!(log.iter().any(|line| line.contains(text)), "no message contains {text:?}: {log:?}");
    before.ensure_unchanged()
}

/// Directory of the modules, if it is not `/lib/modules`
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// From now on, uses the directory `modules` beside the program, if it exists.
pub fn look_beside_program() -> Result<()> {
    let program = std::env::current_exe()?;
    let beside = program.parent().map(|folder| folder.join("modules"));
    if let Some(folder) = beside.filter(|folder| folder.is_dir()) {
        FOLDER.get_or_init(|| folder);
    }
    Ok(())
}

fn path(name: &str) -> PathBuf {
    let folder = FOLDER.get().map_or(Path::new("/lib/modules"), PathBuf::as_path);
    folder.join(format!("{name}.ko"))
}

impl Module {
    /// Loads a module for a test; skips the test if there is no module file.
    pub fn load(name: &str, parameters: &str) -> Result<Self> {
        if !is_there(name) {
            skip!("{} is not in the initramfs", path(name).display());
        }
        load(name, parameters)?;
        Ok(Self { name: name.to_owned() })
    }

    /// Unloads the module and returns the error, if any.
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
