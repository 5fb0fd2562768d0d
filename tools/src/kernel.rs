// SPDX-License-Identifier: GPL-2.0
//! Configures and builds a kernel with the driver in it.

use crate::{
    deps::GCC,
    integrate::{self, integrate},
    prelude::*,
    source::{self, Source},
};
use std::ffi::OsString;

/// Space that a first build needs: source, objects and ccache, in bytes.
const SPACE: u64 = 7 << 30;

pub struct Kernel {
    pub source: Source,
    pub version: Version,
    pub objects: PathBuf,
    pub image: PathBuf,
    /// Changes when the kernel does; `None` for a tree of the caller's.
    pub key: Option<String>,
    /// Arguments for the kernel's own `make`: this source and these objects.
    pub make: Vec<OsString>,
    /// Keeps others from building in the cache.
    _lock: File,
}

/// The same configuration with the driver as `name` says: `rust`, `module` or `c`.
pub fn with_driver(flavour: &str, name: &str) -> String {
    replace(flavour, &["rust", "module"], name)
}

/// The flavour with another fragment for some of its own.
fn replace(flavour: &str, some: &[&str], name: &str) -> String {
    let parts = flavour.split(',');
    let parts = parts.map(|part| if some.contains(&part) { name } else { part });
    parts.collect::<Vec<_>>().join(",")
}

/// The folder of a kernel's objects in the cache.
fn objects_folder(project: &Project, source: &str, flavour: &str) -> PathBuf {
    let name = format!("{source}-{}", flavour.replace(',', "+"));
    project.cache.join("objects").join(name)
}

/// The flavour that differs in the driver only, and is built first in `make test`.
fn sibling(flavour: &str) -> String {
    replace(flavour, &["rust", "module", "c"], "rust")
}

/// Begins a new folder with the objects of the same kernel with another driver: the kernel's
/// `make` then builds only what the driver's options change.
fn begin_with_sibling(
    project: &Project,
    objects: &Path,
    source: &str,
    flavour: &str,
) -> Result<()> {
    let from = objects_folder(project, source, &sibling(flavour));
    if objects.exists() || !hash::is_built(&from) {
        return Ok(());
    }
    let step = Step::start(project, "objects", &format!("copying those of {from}"))?;
    let new = PathBuf::from(format!("{objects}.new"));
    let _ = fs_err::remove_dir_all(&new);
    let advice = "check that there is space";
    run!(step, "cp --archive --reflink=auto {from} {new}", advice)?;
    // Commands that differ are run again, and those for Rust have the folder's path.
    let edit = format!("s,{from},{objects},g");
    let each = ["-name", ".*.cmd", "-exec", "sed", "-i", &edit, "{}", "+"];
    run!(step, "find {new} {each...}", advice)?;
    fs::rename(&new, objects)?;
    step.done("copied");
    Ok(())
}

/// Builds the kernel; what is up to date is not built again. The flavour names fragments of
/// `tools/config/`, which are put on top of `base.config`, or on nothing where the first is
/// `l2`.
pub fn build(project: &Project, flavour: &str) -> Result<Kernel> {
    let lock = project.lock()?;
    deps::ensure(project)?;
    // Building a bindgen and fetching the source do not wait for each other.
    let project_of_bindgen = project.clone();
    let bindgen = std::thread::spawn(move || deps::bindgen(&project_of_bindgen));
    let source = prepare_source(project);
    let bindgen = bindgen.join();
    let bindgen = bindgen.map_err(|_| anyhow!("the thread for bindgen died"))??;
    let (source, version) = source?;

    let objects = match &project.kout {
        Some(path) => path.clone(),
        None => objects_folder(project, &source.name, flavour),
    };
    if !objects.join("vmlinux").exists() {
        check_space(project)?;
    }
    if project.kout.is_none() && source.pristine.is_some() {
        begin_with_sibling(project, &objects, &source.name, flavour)?;
    }
    fs::create_dir_all(&objects)?;
    let wanted = wanted_config(project, flavour)?;
    let key = source.pristine.as_ref();
    let key = key.map(|_| input_key(project, &source, &wanted, &bindgen));
    let key = key.transpose()?;
    let mut make = make_arguments(project, &bindgen);
    let tree = &source.tree;
    make.extend(arguments(&command!(project, "make -C {tree} O={objects}")));
    let kernel = Kernel {
        image: objects.join("arch/s390/boot/bzImage"),
        source,
        version,
        objects,
        key,
        make,
        _lock: lock,
    };
    let doing = format!("building Linux {version} ({})", flavour.replace(',', ", "));
    let step = Step::start(project, "kernel", &doing)?;
    let (objects, key, make) = (&kernel.objects, kernel.key.as_ref(), &kernel.make);
    let is_new = hash::build_once(objects, &kernel.image, key, || {
        kernel.configure(&step, &wanted)?;
        let advice = "correct what the compiler says";
        run!(step, "make {make...} bzImage modules", advice)
    })?;
    step.done(if is_new { "built" } else { "nothing changed" });
    Ok(kernel)
}

/// The fragment of the smallest kernel, which has no base.
const ALONE: &str = "l2";

/// The text of the fragments, a later one over an earlier.
fn wanted_config(project: &Project, flavour: &str) -> Result<String> {
    let names = flavour.split(',');
    let base = (names.clone().next() != Some(ALONE)).then_some("base");
    let read = |name| {
        let file = format!("tools/config/{name}.config");
        Ok(fs::read_to_string(project.root.join(file))?)
    };
    base.into_iter().chain(names).map(read).collect()
}

/// A key of all that a kernel of a tree in the cache is built from.
fn input_key(project: &Project, source: &Source, wanted: &str, bindgen: &Path) -> Result<String> {
    let patches = integrate::patch_texts(&project.root)?;
    let files = integrate::driver_files(&project.root)?;
    let texts = read_all(files.iter().map(|file| project.root.join(file)))?;
    let clang = project.llvm_tool("clang");
    let tools = [&clang, &project.rustc, bindgen].map(hash::of_program);
    Ok(hash::key((
        &source.name,
        wanted,
        patches,
        files,
        texts,
        tools,
    )))
}

/// Finds the source and puts the driver in.
pub fn prepare_source(project: &Project) -> Result<(Source, Version)> {
    let source = source::find(project)?;
    if project.kdir.is_some() && source.tree.join("include/config/auto.conf").exists() {
        bail!(
            "KDIR={} was built in place, which O= folders do not take; run make mrproper there",
            source.tree
        );
    }
    if project.as_it_is {
        let version = integrate::tree_version(&source.tree)?;
        return Ok((source, version));
    }
    let report = integrate(&project.root, &source)?;
    if project.kdir.is_some() && report.edited + report.copied > 0 {
        println!(
            "           integrate: {} of the tree's files patched, {} of the driver's files \
             copied in KDIR={}",
            report.edited, report.copied, source.tree
        );
    }
    Ok((source, report.version))
}

fn check_space(project: &Project) -> Result<()> {
    let info = rustix::fs::statvfs(project.cache.as_str())?;
    let free = info.f_bavail * info.f_frsize;
    if free < SPACE {
        bail!(
            "only {} GiB free in {}, a first build needs {}: free some, or name another folder \
             with S390_IOMMU_CACHE=",
            free >> 30,
            project.cache,
            SPACE >> 30
        );
    }
    Ok(())
}

impl Kernel {
    /// A name for files that are made for this kernel.
    pub fn label(&self) -> String {
        name_of(&self.objects)
    }

    fn configure(&self, step: &Step, wanted: &str) -> Result<()> {
        let config = self.objects.join(".config");
        // A folder of the caller's has a configuration of the caller's.
        let stamp = self.objects.join(".s390-iommu-config");
        if config.exists() && !stamp.exists() {
            return check_foreign(&config, wanted);
        }
        let all = self.objects.join("wanted.config");
        write_if_changed(&all, wanted)?;
        let make = &self.make;
        step.run(
            command!(step, "make {make...} allnoconfig").env("KCONFIG_ALLCONFIG", &all),
            "check tools/config and the driver's Kconfig",
        )?;
        let unmet = unmet(wanted, &fs::read_to_string(&config)?).join(" ");
        if !unmet.is_empty() {
            // It must not look like a configuration of the caller's next time.
            fs::remove_file(&config)?;
            bail!(
                "kernel: the tree does not take {unmet}; see what these depend on and correct \
                 tools/config"
            );
        }
        Ok(fs::write(stamp, "")?)
    }
}

/// Arguments for the kernel's own `make`: the tools that were checked.
pub fn make_arguments(project: &Project, bindgen: &Path) -> Vec<OsString> {
    let clang = project.llvm_tool("clang");
    let (jobs, rustc, llvm) = (project.jobs.to_string(), &project.rustc, &project.llvm);
    let (rustdoc, rustfmt) = (project.rust_tool("rustdoc"), project.rust_tool("rustfmt"));
    let clippy = project.rust_tool("clippy-driver");
    let ccache = find_program(Path::new("ccache")).map_or("", |_| "ccache ");
    let (prefix, gcc) = (GCC.trim_end_matches("gcc"), GCC);
    let of_c = arguments(&match project.gcc {
        true => command!(project, "make CROSS_COMPILE={prefix} CC={ccache}{gcc}"),
        false => command!(project, "make LLVM={llvm} CC={ccache}{clang}"),
    });
    // HOSTCC has no blank: rust/Makefile passes it on unquoted.
    arguments(&command!(
        project,
        "make ARCH=s390 -j{jobs} {of_c...} HOSTCC={clang} RUSTC={rustc} RUSTDOC={rustdoc}
            RUSTFMT={rustfmt} CLIPPY_DRIVER={clippy} BINDGEN={bindgen}"
    ))
}

pub fn arguments(command: &Command) -> Vec<OsString> {
    command.get_args().map(ToOwned::to_owned).collect()
}

/// The options of a configuration; a later line counts more than an earlier.
fn parse_config(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines();
    let options = lines.filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
    options.collect()
}

/// The options that are not as wanted.
fn unmet(wanted: &str, made: &str) -> Vec<String> {
    let made = parse_config(made);
    parse_config(wanted)
        .into_iter()
        .filter(|(name, value)| made.get(name).unwrap_or(&"n") != value)
        .map(|(name, value)| format!("CONFIG_{name}={value}"))
        .collect()
}

fn check_foreign(config: &Path, wanted: &str) -> Result<()> {
    let mut driver = unmet(wanted, &fs::read_to_string(config)?);
    driver.retain(|line| line.contains("S390_IOMMU_RUST") || line.starts_with("CONFIG_RUST="));
    ensure!(
        driver.is_empty(),
        "{config} is not ours and lacks {}; set it there, or name an empty KOUT=",
        driver.join(" ")
    );
    println!("           kernel: using the configuration {config}");
    Ok(())
}

/// `make kernel`.
pub fn print_places(project: &Project) -> Result<()> {
    let kernel = build(project, &project.flavour)?;
    println!("image={}", kernel.image);
    println!("source={}", kernel.source.tree);
    println!("objects={}", kernel.objects);
    Ok(())
}

pub fn integrate_only(project: &Project) -> Result<()> {
    // A tree of the caller's is not in the cache.
    let _lock = project.kdir.is_none().then(|| project.lock()).transpose()?;
    deps::program(project, "patch", "patch")?;
    let source = source::find(project)?;
    let report = integrate::integrate(&project.root, &source)?;
    println!(
        "integrate: Linux {} in {}, {} of its files patched, {} of the driver's files copied",
        report.version, source.tree, report.edited, report.copied
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmet_options_are_named() {
        let wanted = "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=y\nCONFIG_C=m\nCONFIG_D=8\n";
        let made = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_D=8\n";
        assert_eq!(unmet(wanted, made), ["CONFIG_C=m"]);
        assert_eq!(unmet(wanted, "").len(), 3);
        assert!(unmet("CONFIG_A=y\nCONFIG_A=m\n", "CONFIG_A=m\n").is_empty());
    }

    #[test]
    fn a_sibling_has_another_driver() {
        assert_eq!(sibling("c"), "rust");
        assert_eq!(sibling("module,debug"), "rust,debug");
        assert_eq!(sibling("kselftest,c"), "kselftest,rust");
        assert_eq!(sibling("l2,c"), "l2,rust");
    }

    #[test]
    fn the_driver_is_put_in_for_another() {
        assert_eq!(with_driver("rust,debug", "module"), "module,debug");
        assert_eq!(with_driver("kselftest,module", "c"), "kselftest,c");
        assert_eq!(with_driver("c", "module"), "c");
    }
}
