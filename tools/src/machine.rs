// SPDX-License-Identifier: GPL-2.0
//! `make machine`: QEMU with the patches of `integration/qemu`, which give
//! emulated functions what Debian's QEMU lacks.

use crate::{
    apt::{self, Root, INSTALL},
    patches::{self, Patch},
    prelude::*,
};
use std::ops::Range;

/// The release of Debian that has the version which the patches are for.
const RELEASE: &str = "trixie";
/// The versions that the patches fit: this one, and its corrections.
const OLDEST: Version = Version(10, 0, 13);
const TOO_NEW: Version = Version(10, 1, 0);
const FITTING: Range<Version> = OLDEST..TOO_NEW;
const NAME: &str = "qemu-system-s390x";
/// Nothing but the emulator. The firmware is Debian's, its archive of QEMU's source has
/// none.
const CONFIGURE: &str = "--python=/usr/bin/python3 --target-list=s390x-softmmu \
    --without-default-features --enable-tcg --disable-debug-info --disable-docs --disable-tools \
    --disable-guest-agent --disable-werror --disable-download --disable-install-blobs \
    --firmwarepath=/usr/share/qemu";
/// The cross compiler's prefix, for a guest's QEMU.
const CROSS: &str = "s390x-linux-gnu-";
/// Debian's s390x packages that a guest's QEMU is linked with.
const LIBRARIES: [&str; 2] = ["libglib2.0-dev", "zlib1g-dev"];

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
    provide(project, None)
}

/// The same built for s390x, which a guest can start with the libraries of this release of
/// Debian.
pub fn build_for_guest(project: &Project) -> Result<PathBuf> {
    let release = apt::codename();
    let release = release.context(
        "a guest's QEMU is built with Debian's libraries for s390x, this is no Debian 12 or 13",
    )?;
    provide(project, Some(&release))
}

/// From the cache, or built: for this machine, or with the s390x libraries of a release.
fn provide(project: &Project, of_guest: Option<&str>) -> Result<PathBuf> {
    deps::ensure_machine(project)?;
    let _lock = project.lock_file("machine.lock")?;
    let (archive, version) = source(project)?;
    let patches = patches::read(&project.root.join("integration/qemu"))?;
    let texts: Vec<&[u8]> = patches.iter().map(|patch| patch.text.as_bytes()).collect();
    let options: Vec<&str> = CONFIGURE.split(' ').collect();
    let key = hash::key((version, options, of_guest, texts));
    let place = project.cache.join(format!("machine-{key}"));
    let program = place.join(NAME);
    if program.is_file() {
        return Ok(program);
    }
    let work = project.cache.join("machine-build");
    let (tree, objects) = (work.join("source"), work.join("objects"));
    make_anew(&work)?;
    prepare(project, &archive, version, &patches, &tree)?;
    let sysroot = of_guest.map(|release| sysroot(project, release, work.join("sysroot")));
    let sysroot = sysroot.transpose()?;
    compile(project, &tree, &objects, sysroot.as_deref())?;
    let new = work.join("new");
    fs::create_dir_all(&new)?;
    fs::rename(objects.join(NAME), new.join(NAME))?;
    // Appears when it is whole.
    fs::rename(&new, &place)?;
    fs::remove_dir_all(&work)?;
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
    let arguments = format!("source --download-only --tar-only qemu={text}");
    let archive = root.download(&arguments, &folder)?.swap_remove(0);
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
    patches: &[Patch],
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
    patches::apply(patches, tree)
        .with_context(|| format!("adapt integration/qemu to QEMU {version}"))?;
    step.done(&format!("unpacked, {} patches applied", patches.len()));
    Ok(())
}

/// A folder with what an s390x program is compiled and linked with.
fn sysroot(project: &Project, release: &str, folder: PathBuf) -> Result<PathBuf> {
    // The guest's other packages come through the same private root.
    let _lock = project.lock()?;
    let doing = format!("fetching {} for s390x", LIBRARIES.join(" and "));
    let step = Step::start(project, "machine-sysroot", &doing)?;
    let root = Root::of_suites(&step, &[release.to_owned()], "s390x")?;
    root.unpack(&format!("{INSTALL} {}", LIBRARIES.join(" ")), &folder)?;
    step.done("unpacked");
    Ok(folder)
}

fn compile(project: &Project, tree: &Path, objects: &Path, sysroot: Option<&Path>) -> Result<()> {
    let doing = sysroot.map_or("building QEMU", |_| "building QEMU for a guest");
    let step = Step::start(project, "machine-build", doing)?;
    fs::create_dir_all(objects)?;
    let options = CONFIGURE.split(' ');
    let mut configure = command!(step, "{tree}/configure {options...}");
    if let Some(folder) = sysroot {
        configure
            .arg(format!("--cross-prefix={CROSS}"))
            .arg(format!("--cc=ccache {CROSS}gcc --sysroot={folder}"))
            .env("PKG_CONFIG", "pkg-config")
            .env("PKG_CONFIG_SYSROOT_DIR", folder)
            .env(
                "PKG_CONFIG_LIBDIR",
                folder.join("usr/lib/s390x-linux-gnu/pkgconfig"),
            );
    } else {
        configure.arg("--cc=ccache cc");
    }
    step.run(
        configure.current_dir(objects),
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
