// SPDX-License-Identifier: GPL-2.0
//! `make run` and `make guest`.

use crate::{
    initramfs::{self, Extra},
    ktap::Outcome,
    machine,
    prelude::*,
    qemu::{THREADED, USUAL},
};

/// The boots of `make run`: a label, and what the kernel's command line gets.
const PHASES: [(&str, &str); 2] = [("lazy", ""), ("strict", "iommu.strict=1")];
/// A boot with its transfers takes a fraction of this.
const LIMIT: Duration = Duration::from_secs(300);

pub struct Machine {
    pub qemu: PathBuf,
    pub version: Version,
    /// A copy of the kernel, which the next build does not change.
    pub image: PathBuf,
    pub initrd: PathBuf,
}

impl Machine {
    /// Builds all of it. The cache is free for others when this returns.
    pub fn prepare(project: &Project, flavour: &str) -> Result<Self> {
        Self::with_files(project, &kernel::build(project, flavour)?, &[])
    }

    /// The same of a kernel, with more files in the guest's root.
    pub fn with_files(project: &Project, kernel: &Kernel, extra: &[Extra]) -> Result<Self> {
        let image = project.build.join(format!("bzImage-{}", kernel.label()));
        fs::copy(&kernel.image, &image)?;
        Ok(Self {
            version: kernel.version,
            image,
            initrd: initramfs::build(project, kernel, extra)?,
            qemu: deps::qemu(project)?,
        })
    }

    /// With the emulator of `make machine`. Debian's loses interrupts where several
    /// functions are at work at once (`integration/qemu/0010-summary.patch`).
    pub fn corrected(self, project: &Project) -> Result<Self> {
        let qemu = machine::build(project)?;
        Ok(Self { qemu, ..self })
    }

    /// With more archives in the guest's root.
    pub fn with_archives(
        self,
        project: &Project,
        name: &str,
        archives: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self> {
        let initrd = project.build.join(format!("initrd-{name}"));
        let archives = archives.into_iter().chain([self.initrd]);
        initramfs::join(&initrd, archives)?;
        Ok(Self { initrd, ..self })
    }

    pub fn boot<'a>(&'a self, name: &'a str, append: String, limit: Duration) -> Boot<'a> {
        Boot {
            name,
            qemu: &self.qemu,
            image: &self.image,
            initrd: &self.initrd,
            append,
            limit,
            plugged: USUAL,
            storm: None,
            generators: 0,
            root: None,
            cpu: "max",
            clock: THREADED,
            processors: 2,
            memory: 2,
            arguments: "",
            devices: "",
        }
    }
}

/// `make run`: real transfers in both modes of the DMA API, and a verdict.
pub fn run(project: &Project) -> Result<()> {
    let start = Instant::now();
    let machine = Machine::prepare(project, &project.flavour)?;
    let mut faults = Vec::new();
    for (phase, more) in PHASES {
        let name = format!("run-{phase}");
        let step = Step::start(project, &name, "booting the guest")?;
        let append = format!("guest.mode=run guest.phase={phase} {more}");
        let report = machine.boot(&name, append, LIMIT).run(project, |line| {
            if is_interesting(line) {
                println!("    | {line}");
            }
        })?;
        let points = report.points.iter();
        let failed = points.filter(|point| point.outcome == Outcome::Failed);
        let names = failed.map(|point| point.name.clone());
        let all = names.chain(report.faults(false));
        faults.extend(all.map(|fault| format!("{phase}: {fault}")));
        let console = project.console(&name);
        step.done(&format!("the whole console is in {console}"));
    }
    let seconds = start.elapsed().as_secs_f64();
    if !faults.is_empty() {
        println!("run: FAIL — {} ({seconds:.1} s)", faults.join("; "));
        bail!("the run failed; read the consoles in {}", project.logs);
    }
    println!(
        "run: PASS — Linux {} with this driver, transfers verified in lazy and strict mode \
         ({seconds:.1} s)",
        machine.version
    );
    Ok(())
}

/// Whether a line of the console is shown to the caller: what the guest's
/// program prints, and what the kernel says of itself and its IOMMU.
fn is_interesting(line: &str) -> bool {
    const SIGNS: [&str; 9] = [
        "Linux version",
        "iommu",
        "zpci:",
        "WARNING",
        "BUG",
        "Oops",
        "panic",
        "Call Trace",
        "Unable to handle",
    ];
    // The cards are connected only to each other.
    if line.trim().is_empty() || line.contains("is not connected to host network") {
        return false;
    }
    let time = line.strip_prefix('[').map(str::trim_start);
    let is_kernel = time.is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit()));
    !is_kernel || SIGNS.iter().any(|sign| line.contains(sign))
}

/// `make guest`: a shell; Ctrl-A X ends it.
pub fn shell(project: &Project) -> Result<()> {
    let machine = Machine::prepare(project, &project.flavour)?;
    println!("guest: Ctrl-A X ends the machine, Ctrl-A C is QEMU's monitor");
    let append = format!("guest.mode=shell {}", more_arguments());
    machine.boot("shell", append, LIMIT).shell(project)
}
