// SPDX-License-Identifier: GPL-2.0
//! `make bare`: shows that the commands need nothing but a bare Debian. A
//! minimal one is unpacked into the cache, the last commit is cloned, and the
//! command runs there with empty caches.

use crate::{apt, prelude::*};

const CHECKOUT: &str = "root/checkout";

/// `SUITE=` names the release, `TARGET=` the command (default `test`).
pub fn run(project: &Project) -> Result<()> {
    let suite = text("SUITE").unwrap_or("bookworm".into());
    let target = text("TARGET").unwrap_or("test".into());
    if !apt::RELEASES.contains(&suite.as_str()) {
        bail!("SUITE={suite}: the commands are made for bookworm and trixie");
    }
    let folder = project.cache.join("bare").join(&suite);
    let _lock = project.lock_file(&format!("bare-{suite}.lock"))?;
    lay(project, &suite, &folder)?;
    println!("           bare: make {target} in a bare {suite}, with nothing in its caches");
    let mut command = command!(
        project,
        "unshare --mount --pid --fork --kill-child
            sh -c {ENTER} sh {folder} make -C /{CHECKOUT} {target}"
    );
    let status = command.status().context("cannot start unshare")?;
    if !status.success() {
        bail!(
            "make {target} failed in a bare {suite}; its logs are in {}",
            folder.join(CHECKOUT).join("build/logs")
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

/// A minimal Debian with `make`, and a clone of the last commit.
fn lay(project: &Project, suite: &str, folder: &Path) -> Result<()> {
    make_anew(folder)?;
    let debootstrap = deps::program(project, "debootstrap", "debootstrap")?;
    let step = Step::start(project, "bare", &format!("laying a bare {suite}"))?;
    let (mirror, _) = apt::mirrors(&step)?;
    run!(
        step,
        "{debootstrap} --variant=minbase --include=make {suite} {folder} {mirror}",
        "check the network, or free some space"
    )?;
    // The network is configured as on this machine.
    let resolver = Path::new("/etc/resolv.conf");
    if resolver.is_file() {
        fs::copy(resolver, folder.join("etc/resolv.conf"))?;
    }
    let place = "usr/local/share/ca-certificates";
    fs::create_dir_all(folder.join(place))?;
    let certificates = paths_in(&Path::new("/").join(place)).unwrap_or_default();
    for path in certificates.iter().filter(|path| path.is_file()) {
        fs::copy(path, folder.join(place).join(name_of(path)))?;
    }
    let (root, checkout) = (&project.root, folder.join(CHECKOUT));
    run!(
        step,
        "git clone --quiet --depth=1 file://{root} {checkout}",
        "this takes git, and a checkout with a commit"
    )?;
    step.done("laid");
    Ok(())
}
