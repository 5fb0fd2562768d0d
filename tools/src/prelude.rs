// SPDX-License-Identifier: GPL-2.0
//! What many files use.

pub use crate::{
    count::Count,
    deps::Version,
    files::{
        files_below, has_kind, make_anew, name_of, paths_in, paths_of_kind, read_all, read_lossy,
        write_if_changed,
    },
    guest::Machine,
    kernel::Kernel,
    project::{find_program, more_arguments, text, Project},
    qemu::Boot,
    steps::Step,
};
pub use anyhow::{anyhow, bail, ensure, Context, Result};
pub use camino::{Utf8Path as Path, Utf8PathBuf as PathBuf};
pub use fs_err::{self as fs, File};
pub use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::{Duration, Instant},
};

pub(crate) use crate::{deps, hash, kernel, project::command, steps::run};
