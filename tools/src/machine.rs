// SPDX-License-Identifier: GPL-2.0
//! `make machine`: QEMU with the patches of `integration/qemu`, which give
//! emulated functions what Debian's QEMU has none of.

use crate::{
    apt::{self, Root},
    prelude::*,
};
use std::ops::Range;

/// The release of Debian that has the version which the patches are for.
const RELEASE: &str = "trixie";
/// What the patches are for: these, and what was corrected since.
const OLDEST: Version = Version(10, 0, 13);
const TOO_NEW: Version = Version(10, 1, 0);
const FITTING: Range<Version> = OLDEST..TOO_NEW;
const NAME: &str = "qemu-system-s390x";
/// Nothing but the emulator. The firmware is Debian's, its archive of QEMU's source has
/// none.
const CONFIGURE: &[&str] = &[
    "--python=/usr/bin/python3",
    "--cc=ccache cc",
    "--target-list=s390x-softmmu",
    "--without-default-features",
    "--enable-tcg",
    "--disable-docs",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-werror",
    "--disable-download",
    "--disable-install-blobs",
    "--firmwarepath=/usr/share/qemu",
];

pub fn run(project: &Project) -> Result<()> {
    println!("machine={}", build(project)?);
    Ok(())
}

/// The emulator: the one that is named, or from the cache if it was built from the same
/// before.
pub fn build(project: &Project) -> Result<PathBuf> {
    if project.qemu.is_some() {
        return deps::qemu(project);
    }
    deps::ensure_machine(project)?;
    let _lock = project.lock_file("machine.lock")?;
    let (archive, version) = source(project)?;
    let patches = paths_of_kind(&project.root.join("integration/qemu"), "patch")?;
    let key = hash::key((version, CONFIGURE, read_all(&patches)?));
    let place = project.cache.join(format!("machine-{key}"));
    let program = place.join(NAME);
    if program.is_file() {
        return Ok(program);
    }
    let work = project.cache.join("machine-build");
    let (tree, objects) = (work.join("source"), work.join("objects"));
    make_anew(&work)?;
    prepare(project, &archive, version, &patches, &tree)?;
    compile(project, &tree, &objects)?;
    let doing = "leaving out what debuggers read";
    let step = Step::start(project, "machine-strip", doing)?;
    let stripped = work.join("stripped");
    fs::create_dir_all(&stripped)?;
    let mut command = command!(step, "strip -o {stripped}/{NAME} {objects}/{NAME}");
    step.run(&mut command, "read the log")?;
    // Appears when it is whole.
    fs::rename(&stripped, &place)?;
    fs::remove_dir_all(&work)?;
    step.done(&format!("QEMU {version} is there"));
    Ok(program)
}

/// QEMU's source: the newest in the cache, or the newest that Debian offers.
fn source(project: &Project) -> Result<(PathBuf, Version)> {
    let folder = project.cache.join("deb");
    if let Some((version, archive)) = newest_in(&folder).filter(|_| !project.update) {
        return Ok((archive, version));
    }
    ensure!(
        apt::codename().is_some(),
        "QEMU's source is taken from Debian; name an emulator that has the patches with QEMU="
    );
    let doing = "looking for QEMU's source in Debian";
    let step = Step::start(project, "machine-source", doing)?;
    let root = Root::of_sources(&step, RELEASE)?;
    let offered = root.ask("showsrc --only-source qemu", "Version: ")?;
    let Some((version, text)) = Version::newest(&offered, FITTING) else {
        bail!(
            "{RELEASE} has no QEMU from {OLDEST} to before {TOO_NEW}, but {}: adapt \
             integration/qemu",
            offered.join(", ")
        );
    };
    // Nothing but the archive: not every mirror has the rest.
    let words = format!("source --download-only --tar-only qemu={text}");
    let archive = root.download(&words, &folder)?.swap_remove(0);
    step.done(&format!("QEMU {version} is downloaded"));
    Ok((archive, version))
}

fn newest_in(folder: &Path) -> Option<(Version, PathBuf)> {
    let names = paths_in(folder)
        .ok()?
        .into_iter()
        .map(|path| name_of(&path));
    let names = names.filter(|name| name.starts_with("qemu_"));
    Version::newest(names, FITTING).map(|(version, name)| (version, folder.join(name)))
}

fn prepare(
    project: &Project,
    archive: &Path,
    version: Version,
    patches: &[PathBuf],
    tree: &Path,
) -> Result<()> {
    let doing = format!("unpacking QEMU {version}");
    let step = Step::start(project, "machine-patch", &doing)?;
    fs::create_dir_all(tree)?;
    run!(
        step,
        "tar --extract --strip-components=1 --no-same-owner --file {archive} --directory {tree}",
        "the archive is broken: remove the cache's folder deb and run it again"
    )?;
    for path in patches {
        step.run(
            // A patch that almost fits is one that nobody has seen run.
            &mut command!(
                step,
                "patch --directory={tree} --strip=1 --fuzz=0 --forward --batch --input={path}"
            ),
            &format!("{path} does not fit QEMU {version}: adapt it"),
        )?;
    }
    step.done(&format!("unpacked, {} patches applied", patches.len()));
    Ok(())
}

fn compile(project: &Project, tree: &Path, objects: &Path) -> Result<()> {
    let step = Step::start(project, "machine-build", "building QEMU")?;
    fs::create_dir_all(objects)?;
    step.run(
        command!(step, "{tree}/configure {CONFIGURE...}").current_dir(objects),
        "read the log, or meson-logs/meson-log.txt beside the objects",
    )?;
    let jobs = project.jobs.to_string();
    let mut ninja = command!(step, "ninja -C {objects} -j {jobs} {NAME}");
    step.run(&mut ninja, "read the log")?;
    step.done("built");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_fits_is_taken() {
        let offered = [
            "1:10.0.2+ds-2+deb13u1",
            "1:10.0.14+ds-0+deb13u1",
            "1:10.0.13+ds-0+deb13u1",
            "1:11.1.3+ds-1",
        ];
        let newest = |texts: &[&'static str]| Version::newest(texts.to_vec(), FITTING);
        assert_eq!(newest(&offered), Some((Version(10, 0, 14), offered[1])));
        assert_eq!(newest(&offered[..1]), None);
    }
}
