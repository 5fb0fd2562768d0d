// SPDX-License-Identifier: GPL-2.0
//! `make bare`: shows that the commands need nothing but a bare Debian. A
//! minimal one is laid into the cache, what is committed is cloned, and the
//! command runs there with empty caches.

use crate::{
    apt::{Mirrors, Root},
    project::{find_program, variable, Project},
    steps::Step,
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

/// Where the checkout lies in there.
const CHECKOUT: &str = "root/checkout";

/// `SUITE=` names the release, `TARGET=` the command (default `test`).
pub fn run(project: &Project) -> Result<()> {
    let text = |name: &str, default: &str| {
        variable(name).map_or(default.to_owned(), |v| v.to_string_lossy().into_owned())
    };
    let (suite, target) = (text("SUITE", "bookworm"), text("TARGET", "test"));
    if !["bookworm", "trixie"].contains(&suite.as_str()) {
        bail!("SUITE={suite}: the commands are made for bookworm and trixie");
    }
    let folder = project.cache.join("bare").join(&suite);
    let _lock = project.lock_file(&format!("bare-{suite}.lock"))?;
    lay(project, &suite, &folder)?;
    copy_checkout(project, &folder)?;
    println!("           bare: make {target} in a bare {suite}, with nothing in its caches");
    let status = project
        .command("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-c", ENTER, "sh"])
        .arg(&folder)
        .args(["make", "-C", &format!("/{CHECKOUT}"), &target])
        .stdin(Stdio::null())
        .status()
        .context("cannot start unshare")?;
    if !status.success() {
        bail!(
            "make {target} failed in a bare {suite}; its logs are in {}",
            folder.join(CHECKOUT).join("build/logs").display()
        );
    }
    println!("bare: make {target} succeeded in a bare {suite}");
    Ok(())
}

/// Enters the folder given first, with an environment that has nothing of ours.
const ENTER: &str = r#"
    set -e
    cd "$1"; shift
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount --rbind /dev dev
    exec env -i HOME=/root TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . "$@"
"#;

/// A minimal Debian with `make`, which is what a clone is used with.
fn lay(project: &Project, suite: &str, folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let step = Step::start(project, "bare", &format!("laying a bare {suite}"))?;
    if find_program(Path::new("debootstrap")).is_none() {
        Root::of_machine(project, &step)?.install(project, &step, &["debootstrap"], None)?;
    }
    let mirrors = Mirrors::of_this_machine(project, &step)?;
    step.run(
        project
            .command("debootstrap")
            .args(["--variant=minbase", "--include=make", suite])
            .arg(folder)
            .arg(&mirrors.main),
        "check the network, or free some space",
    )?;
    // How to reach the network is the machine's business, not the release's.
    copy_if_there(
        Path::new("/etc/resolv.conf"),
        &folder.join("etc/resolv.conf"),
    )?;
    let certificates = Path::new("usr/local/share/ca-certificates");
    for path in files_in(&Path::new("/").join(certificates)) {
        let name = path.file_name().context("a file without a name")?;
        copy_if_there(&path, &folder.join(certificates).join(name))?;
    }
    step.done("laid");
    Ok(())
}

/// What a fresh clone would have: what is committed.
fn copy_checkout(project: &Project, folder: &Path) -> Result<()> {
    let step = Step::start(project, "bare-copy", "copying what is committed")?;
    let to = folder.join(CHECKOUT);
    step.run(
        project
            .command("git")
            .args(["clone", "--quiet", "--depth=1"])
            .arg(format!("file://{}", project.root.display()))
            .arg(&to),
        "this takes git, and a checkout with a commit",
    )?;
    step.done("copied");
    Ok(())
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_file()).collect()
}

fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
