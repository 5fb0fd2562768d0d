// SPDX-License-Identifier: GPL-2.0
//! The driver as a module: what its file says, and boots that load it, unload
//! it and give it what it must refuse.
//!
//! It has a kernel of its own, with `CONFIG_S390_IOMMU_RUST=m`, since nothing
//! else shows that this option works. The module is built twice, by that kernel
//! and outside of it; the guest loads both.

use super::Suite;
use crate::{initramfs, kernel::with_driver, modules, prelude::*, qemu::USUAL};

/// Fifty rounds with a drive that comes and goes take a fraction of this.
const LIMIT: Duration = Duration::from_secs(1800);
/// The kernel records who allocated what: the guest's program checks that the
/// driver has left nothing behind.
const TRACED: &str = "slab_debug=U,kmalloc-*";

impl Suite<'_> {
    pub(super) fn module(&mut self) -> Result<()> {
        // It locks the cache, which the next kernels need.
        self.kernel = None;
        let (machine, version, root) = self.parts()?;
        let append =
            format!("guest.suite=module guest.driver=later guest.version={version} {TRACED}");
        self.boot_with(&machine, "guest-module", &append, |boot| boot.plugged = "");
        let append = "guest.suite=root guest.root=nvme";
        self.boot_with(&machine, "guest-root", append, |boot| {
            boot.root = Some(&root);
        });
        let append = "guest.suite=absent guest.driver=later";
        self.boot_with(&machine, "guest-no-zpci", append, |boot| {
            boot.cpu = "max,zpci=off";
            boot.plugged = "";
        });
        let append = format!("pci=off {append}");
        self.boot_with(&machine, "guest-pci-off", &append, |_| {});
        self.beside(&machine, "rust", &self.project.flavour);
        self.beside(&machine, "c", "c");
        Ok(())
    }

    /// Builds what is booted: a machine with the external module, the driver's version, and a
    /// root on a drive.
    fn parts(&mut self) -> Result<(Machine, String, PathBuf)> {
        let flavour = with_driver(&self.project.flavour, "module");
        if !flavour.split(',').any(|name| name == "module") {
            bail!("CONFIG={flavour} has no driver to be a module");
        }
        let kernel = kernel::build(self.project, &flavour)?;
        let mut parts = None;
        self.step("module", "building the external module", |step| {
            let external = modules::build_for_tests(&kernel, step)?;
            let built = kernel.objects.join("drivers/iommu/s390/s390_iommu.ko");
            let version = modinfo(step, &built, "version")?;
            let mut count = check_modinfo(step, &built, &version)?;
            count += check_modinfo(step, &external, &version)?;
            parts = Some((external, version));
            Ok(count)
        });
        let (external, version) = parts.context("there is no external module to boot with")?;
        let files = [("lib/modules/external/s390_iommu.ko".to_owned(), external)];
        let machine = Machine::with_files(self.project, &kernel, &files)?;
        Ok((machine, version, root_image(self.project, &kernel)?))
    }

    /// A kernel that has a driver already: the module must be refused.
    fn beside(&mut self, machine: &Machine, other: &str, flavour: &str) {
        let name = format!("guest-beside-{other}");
        let image = self.project.build.join(format!("{name}.bzImage"));
        let built = kernel::build(self.project, flavour)
            .and_then(|kernel| Ok(fs::copy(&kernel.image, &image)?));
        if let Err(error) = built {
            return self.keep(&name, Err(error));
        }
        let append = format!("guest.suite=beside guest.beside={other}");
        self.boot_with(machine, &name, &append, |boot| boot.image = &image);
    }

    fn boot_with<'b>(
        &mut self,
        machine: &'b Machine,
        name: &'b str,
        append: &str,
        change: impl FnOnce(&mut Boot<'b>),
    ) {
        let append = format!("guest.mode=test {append}");
        let mut boot = machine.boot(name, append, LIMIT);
        boot.plugged = USUAL;
        change(&mut boot);
        self.run_boot(name, &boot);
    }
}

fn modinfo(step: &Step, module: &Path, field: &str) -> Result<String> {
    let mut command = command!(step, "modinfo -F {field} {module}");
    let text = step.output(&mut command, "the module is not what it should be")?;
    Ok(text.trim_end().to_owned())
}

/// Compares the fields with what they must be. The guest compares the version
/// with what the driver says at its start.
fn check_modinfo(step: &Step, module: &Path, version: &str) -> Result<Count> {
    const DESCRIPTION: &str = "IOMMU driver for s390 PCI functions (zPCI)";
    const PARAMETER: &str = "large_pages:Large pages: 0 off, 1 on";
    let is_right = |field, text: &str| match field {
        "license" => text == "GPL",
        "description" => text == DESCRIPTION,
        "version" => text == version && text.contains('.'),
        "parm" => text.lines().count() == 1 && text.starts_with(PARAMETER),
        _ => !text.is_empty(),
    };
    let fields = ["license", "description", "author", "version", "parm"];
    let results = fields.into_iter().map(|field| {
        let text = modinfo(step, module, field)?;
        let good = is_right(field, &text);
        if !good {
            println!("    | {module}: {field} is {text:?}");
        }
        Ok(good)
    });
    results.collect()
}

/// A file system with the guest's program as its /sbin/init.
fn root_image(project: &Project, kernel: &Kernel) -> Result<PathBuf> {
    let step = Step::start(project, "root", "making a root file system")?;
    let tree = project.build.join(format!("root-{}", kernel.label()));
    make_anew(&tree)?;
    for folder in ["bin", "dev", "proc", "sbin", "sys", "tmp", "mnt"] {
        fs::create_dir(tree.join(folder))?;
    }
    fs::copy(initramfs::init_path(project), tree.join("sbin/init"))?;
    fs::copy(initramfs::busybox(&step)?, tree.join("bin/busybox"))?;
    make_ext2(step, &tree, "64M")
}

/// An ext2 file system with the content of a folder, beside it.
pub fn make_ext2(step: Step, tree: &Path, size: &str) -> Result<PathBuf> {
    let image = tree.with_extension("ext2");
    let _ = fs::remove_file(&image);
    run!(
        step,
        "mke2fs -q -t ext2 -d {tree} {image} {size}",
        "check that there is space"
    )?;
    step.done("made");
    Ok(image)
}
