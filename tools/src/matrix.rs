// SPDX-License-Identifier: GPL-2.0
//! `make matrix`: does the kernel build, without a warning of the driver's, in the
//! configurations that somebody may choose, and by another compiler?

use crate::{integrate::PLACE, prelude::*, series, source};

/// A configuration: what it is called, its fragments, and what no other one needs with its
/// package. With that of gcc it compiles the C.
type Row = (
    &'static str,
    &'static str,
    Option<(&'static str, &'static str)>,
);

const ROWS: [Row; 9] = [
    ("built in", "rust", None),
    ("a module", "module", None),
    ("off: the driver in C", "c", None),
    ("no debugfs, tracepoints, KUnit", "bare", None),
    ("a module of these", "bare,module", None),
    ("KVM, VFIO_PCI_ZDEV_KVM", "rust,kvm", None),
    ("MODVERSIONS", "module,modversions", Some(DWARF)),
    ("RANDOMIZE_IDENTITY_BASE", "rust,identity-base", None),
    ("C by gcc", "rust", Some(GCC)),
];
const DWARF: (&str, &str) = ("/usr/include/dwarf.h", "libdw-dev");
const GCC: (&str, &str) = (deps::GCC, "gcc-s390x-linux-gnu");

/// The table that is printed in the end.
#[derive(Default)]
struct Table {
    lines: Vec<String>,
    count: Count,
}

impl Table {
    /// Does a row's work, which says how many warnings there were.
    fn row(&mut self, name: &str, work: impl FnOnce() -> Result<usize>) {
        let start = Instant::now();
        let word = match work() {
            Ok(0) => "builds".to_owned(),
            Ok(count) => format!("{count} warnings"),
            Err(error) => {
                println!("error: {error:#}");
                "FAILS".to_owned()
            }
        };
        self.count += Count::one(word == "builds");
        let seconds = start.elapsed().as_secs();
        self.lines
            .push(format!("{name:<48} {word:<12} {seconds:>5} s"));
    }
}

/// Builds every row, or those with `ONLY=` in their names, one after the other in one
/// folder: what two have in common is built once. `ONLY=steps` builds the kernel after
/// each patch of the series.
pub fn run(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let only = text("ONLY").unwrap_or_default();
    let mut table = Table::default();
    if only == "steps" {
        steps(project, &mut table)?;
    }
    for (name, fragments, needed) in ROWS.iter().filter(|row| row.0.contains(&only)) {
        let gcc = *needed == Some(GCC);
        let folder = if gcc { "matrix-gcc" } else { "matrix" };
        let project = Project {
            kout: Some(project.cache.join("objects").join(folder)),
            gcc,
            ..project.clone()
        };
        if let Some((sign, package)) = needed {
            deps::program(&project, sign, package)?;
        }
        table.row(name, || {
            let kernel = kernel::build(&project, fragments)?;
            warnings(&project, &kernel)
        });
    }
    println!();
    table.lines.iter().for_each(|line| println!("{line}"));
    table.count.finish();
    Ok(())
}

/// Builds a tree as it was released, then after each patch; as soon as the driver can
/// be chosen, without it, with it, and as a module.
fn steps(project: &Project, table: &mut Table) -> Result<()> {
    let step = Step::start(
        project,
        "steps",
        "a tree as it was released, and the patches",
    )?;
    let patches = series::patches_for(&step)?;
    let source = source::unpacked(project, &project.cache.join("steps"))?;
    step.done(&format!("{} patches", patches.len()));
    let project = Project {
        kdir: Some(source.tree.clone()),
        as_it_is: true,
        kout: Some(project.cache.join("objects/steps")),
        ..project.clone()
    };
    table.row("as it was released", || build(&project, "c"));
    for patch in patches {
        let name = patch.name.trim_end_matches(".patch");
        let step = Step::start(&project, "patch", name)?;
        patch.apply(&source.tree)?;
        step.done("applied");
        let is_there =
            fs::read_to_string(source.tree.join("drivers/iommu/Kconfig"))?.contains(PLACE);
        let configs: &[_] = if is_there {
            &["c", "rust", "module"]
        } else {
            &["c"]
        };
        for config in configs {
            let name = name.chars().take(36).collect::<String>();
            table.row(&format!("{name} ({config})"), || build(&project, config));
        }
    }
    Ok(())
}

fn build(project: &Project, config: &str) -> Result<usize> {
    kernel::build(project, config).map(|_| 0)
}

/// Builds the folder of the driver with W=1, and counts its warnings.
fn warnings(project: &Project, kernel: &Kernel) -> Result<usize> {
    let step = Step::start(project, "warnings", "the driver's folder with W=1")?;
    // What is up to date is not compiled again.
    let _ = fs::remove_dir_all(kernel.objects.join(PLACE));
    let make = &kernel.make;
    run!(
        step,
        "make {make...} W=1 {PLACE}/",
        "correct what the compiler says"
    )?;
    let log = fs::read_to_string(step.log())?;
    // The compiler says this of its own target, for every crate.
    let ours = |line: &&str| line.starts_with("warning: ") && !line.contains("unstable feature");
    let summary =
        |line: &&str| !line.contains("warning emitted") && !line.contains("warnings emitted");
    let c = log.matches(": warning: ").count();
    let count = log.lines().filter(ours).filter(summary).count() + c;
    step.done(&format!("{count} warnings"));
    Ok(count)
}
