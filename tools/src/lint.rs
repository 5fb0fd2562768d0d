// SPDX-License-Identifier: GPL-2.0
//! Formatting, clippy, checkpatch and documentation of what is in the checkout.

use crate::{
    deps,
    initramfs::{guest_cargo, is_for_guest, GUEST_ARGUMENTS, MODULES},
    integrate,
    kernel::{self, variable, Flavour, Kernel},
    project::Project,
    steps::{write_if_changed, Step},
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The edition of Rust code in the kernel.
const KERNEL_EDITION: &str = "2021";

/// What every file says.
const LICENSE: &str = "SPDX-License-Identifier: GPL-2.0";

/// The programs of the checkout: folders with a `Cargo.toml`.
pub fn crates(project: &Project) -> Vec<PathBuf> {
    [
        "tools",
        "tests/host",
        "tests/host/kernel",
        "tests/guest",
        "samples/vfio_identify",
    ]
    .map(|folder| project.root.join(folder))
    .into_iter()
    .filter(|folder| folder.join("Cargo.toml").is_file())
    .collect()
}

/// The files that the kernel builds: the driver's, and those of modules.
fn kernel_files(project: &Project) -> Result<Vec<PathBuf>> {
    let mut list: Vec<PathBuf> = integrate::driver_files(&project.root)?
        .into_iter()
        .map(|file| project.root.join(file))
        .collect();
    for folder in MODULES {
        let entries = fs::read_dir(project.root.join(folder))?;
        list.extend(entries.flatten().map(|entry| entry.path()));
    }
    Ok(list)
}

/// The Rust files that the kernel builds.
fn kernel_rust(project: &Project) -> Result<Vec<PathBuf>> {
    let mut list = kernel_files(project)?;
    list.retain(|path| path.extension().is_some_and(|kind| kind == "rs"));
    Ok(list)
}

/// The C files of the checkout: the glue, the guest's test modules, our selftests.
fn c_files(project: &Project) -> Result<Vec<PathBuf>> {
    let mut list = kernel_files(project)?;
    let selftests = fs::read_dir(project.root.join("tests/selftests"))?;
    list.extend(selftests.flatten().map(|entry| entry.path()));
    list.retain(|path| {
        let name = path.to_string_lossy();
        (name.ends_with(".c") || name.ends_with(".h")) && !name.ends_with(".mod.c")
    });
    list.sort();
    Ok(list)
}

/// The commands that format everything, or check that nothing is to be done.
fn format_commands(project: &Project, check: bool) -> Result<Vec<Command>> {
    let mut list = Vec::new();
    let files = kernel_rust(project)?;
    if !files.is_empty() {
        let mut command = project.command(project.rust_tool("rustfmt"));
        command.args(["--edition", KERNEL_EDITION]).args(files);
        if check {
            command.arg("--check");
        }
        list.push(command);
    }
    for folder in crates(project) {
        let mut command = project.command(project.rust_tool("cargo-fmt"));
        command.arg("fmt").arg("--manifest-path");
        command.arg(folder.join("Cargo.toml"));
        if check {
            command.arg("--check");
        }
        list.push(command);
    }
    Ok(list)
}

/// `make fmt`.
pub fn format(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let step = Step::start(project, "fmt", "formatting all Rust")?;
    for mut command in format_commands(project, false)? {
        step.run(&mut command, "correct what rustfmt says")?;
    }
    step.done("formatted");
    Ok(())
}

/// Checks the formatting; the parts that are as they should be, and all.
pub fn check_format(project: &Project, step: &Step) -> Result<(usize, usize)> {
    count(step, format_commands(project, true)?)
}

/// Looks for the license in the first lines of each source file; the files
/// that have it, and all.
pub fn check_licenses(project: &Project, step: &Step) -> Result<(usize, usize)> {
    let files = source_files(&project.root)?;
    let mut good = 0;
    for file in &files {
        let text = fs::read_to_string(file).unwrap_or_default();
        if text.lines().take(3).any(|line| line.contains(LICENSE)) {
            good += 1;
        } else {
            step.show(&format!("{}: no {LICENSE}", file.display()));
        }
    }
    Ok((good, files.len()))
}

/// The files of the checkout that people write.
fn source_files(root: &Path) -> Result<Vec<PathBuf>> {
    const KINDS: [&str; 12] = [
        "rs", "c", "h", "toml", "config", "sh", "rst", "py", "s", "Makefile", "Kbuild", "Kconfig",
    ];
    let mut list = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let kind = name.rsplit('.').next().unwrap_or_default();
            if path.is_dir() {
                if !["build", "target", ".git"].contains(&name.as_ref()) {
                    folders.push(path);
                }
            } else if KINDS.contains(&kind) && !name.ends_with(".mod.c") {
                list.push(path);
            }
        }
    }
    list.sort();
    Ok(list)
}

/// Clippy on the programs; those without a complaint, and all.
pub fn clippy_programs(project: &Project, step: &Step) -> Result<(usize, usize)> {
    let clippy = project.rust_tool("cargo-clippy");
    let commands: Vec<Command> = crates(project)
        .into_iter()
        .map(|folder| {
            let manifest = folder.join("Cargo.toml");
            let mut command;
            if is_for_guest(&folder) {
                command = guest_cargo(project, &clippy);
                command.args(["clippy", "--release", "--manifest-path"]);
                command.arg(manifest).args(GUEST_ARGUMENTS);
            } else {
                command = project.command(&clippy);
                command.env("CARGO_TARGET_DIR", target_folder(project, &folder));
                command.args(["clippy", "--locked", "--all-targets", "--manifest-path"]);
                command.arg(manifest);
            }
            command.args(["--", "--deny", "warnings"]);
            command
        })
        .collect();
    count(step, commands)
}

/// Where the objects of a program for the host go.
pub fn target_folder(project: &Project, folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default();
    project.build.join("target").join(name)
}

/// Clippy on the driver and on the modules in Rust; those without a complaint,
/// and all.
pub fn clippy_driver(project: &Project, kernel: &Kernel, step: &Step) -> Result<(usize, usize)> {
    let driver = integrate::driver_files(&project.root)?;
    let mut good = usize::from(clippy_module(
        project,
        kernel,
        step,
        &project.root,
        &driver,
    )?);
    let mut all = 1;
    for folder in MODULES.map(|folder| project.root.join(folder)) {
        let files: Vec<String> = ["Kbuild".to_owned()]
            .into_iter()
            .chain(rust_files(&folder)?)
            .collect();
        if files.len() > 1 {
            good += usize::from(clippy_module(project, kernel, step, &folder, &files)?);
            all += 1;
        }
    }
    Ok((good, all))
}

/// The names of the Rust files in a folder.
fn rust_files(folder: &Path) -> Result<Vec<String>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        list.extend(name.ends_with(".rs").then_some(name));
    }
    Ok(list)
}

/// Clippy on files of a folder: built as an external module of the kernel with
/// `CLIPPY=1`, which leaves the kernel's own crates as they are.
fn clippy_module(
    project: &Project,
    kernel: &Kernel,
    step: &Step,
    from: &Path,
    files: &[String],
) -> Result<bool> {
    let folder = project.build.join("clippy-driver");
    let _ = fs::remove_dir_all(&folder);
    for file in files {
        write_if_changed(&folder.join(file), &fs::read(from.join(file))?)?;
    }
    let before = fs::metadata(step.log())?.len();
    let good = step.check(
        kernel
            .make(project)
            .arg(variable("M", &folder))
            .args(["CLIPPY=1", "modules"]),
    )?;
    // The kernel's build lets warnings pass.
    let log = fs::read(step.log())?;
    let log = log.get(before as usize..).unwrap_or_default();
    let places = complaints(&String::from_utf8_lossy(log));
    step.show(&places.join("\n"));
    Ok(good && places.is_empty())
}

/// The warnings that have a place; the compiler also has some about its flags.
fn complaints(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let what = pair[0].strip_prefix("warning: ")?;
        let place = pair[1].trim_start().strip_prefix("--> ")?;
        Some(format!("{place}: {what}"))
    });
    pairs.collect()
}

/// checkpatch on each C file and each patch; those without a complaint, and all.
pub fn checkpatch(project: &Project, tree: &Path, step: &Step) -> Result<(usize, usize)> {
    let files = c_files(project)?.into_iter().map(|file| ("--file", file));
    // Whoever sends a patch signs it.
    let patches = integrate::patches(&project.root)?
        .into_iter()
        .map(|patch| ("--no-signoff", patch.path));
    let commands = files.chain(patches).map(|(kind, file)| {
        let mut command = checkpatch_command(project, tree);
        command.arg(kind).arg(file);
        command
    });
    count(step, commands.collect())
}

/// The same on patches as they are sent.
pub fn checkpatch_series(
    project: &Project,
    tree: &Path,
    step: &Step,
    series: Vec<PathBuf>,
) -> Result<(usize, usize)> {
    let commands = series.into_iter().map(|patch| {
        let mut command = checkpatch_command(project, tree);
        command.arg(patch);
        command
    });
    count(step, commands.collect())
}

fn checkpatch_command(project: &Project, tree: &Path) -> Command {
    let mut command = project.command("perl");
    command
        .current_dir(tree)
        .args(["scripts/checkpatch.pl", "--strict", "--terse"])
        // A new file needs no entry in the tree's MAINTAINERS; that of the
        // driver's folder comes with one patch of the series.
        // The parameters are those of the driver in C, documented in the
        // tree already; checkpatch looks only into the patch.
        // What a trace event exports is made by a macro, so that its export
        // follows no function.
        .args([
            "--ignore",
            "FILE_PATH_CHANGES,UNDOCUMENTED_SETUP,EXPORT_SYMBOL",
        ]);
    command
}

/// Runs all commands; those that succeed, and all.
fn count(step: &Step, commands: Vec<Command>) -> Result<(usize, usize)> {
    let all = commands.len();
    let mut good = 0;
    for mut command in commands {
        good += usize::from(step.check(&mut command)?);
    }
    Ok((good, all))
}

/// `make htmldocs`.
pub fn htmldocs(project: &Project) -> Result<()> {
    let step = Step::start(project, "htmldocs", "writing the pages")?;
    if !write_pages(project, &step)? {
        bail!("htmldocs: correct what sphinx says");
    }
    let page = project.build.join("htmldocs/index.html");
    step.done(&format!("written: {}", page.display()));
    Ok(())
}

/// The pages of `Documentation/` as HTML; a warning is an error.
pub fn write_pages(project: &Project, step: &Step) -> Result<bool> {
    let sphinx = deps::program(project, "sphinx-build", "python3-sphinx")?;
    step.check(
        project
            .command(sphinx)
            .args(["-W", "--keep-going", "-q", "-E", "-b", "html", "-d"])
            .arg(project.build.join("doctrees"))
            .arg(project.root.join("Documentation"))
            .arg(project.build.join("htmldocs")),
    )
}

/// `make rustdoc`.
pub fn rustdoc(project: &Project, flavour: &Flavour) -> Result<()> {
    let kernel = kernel::build(project, flavour)?;
    let step = Step::start(project, "rustdoc", "writing the driver's pages")?;
    if !write_rustdoc(project, &kernel, &step)? {
        bail!("rustdoc: correct what it says");
    }
    let page = project.build.join(RUSTDOC_PAGE);
    step.done(&format!("written: {}", page.display()));
    Ok(())
}

/// Where the driver's own pages begin.
const RUSTDOC_PAGE: &str = "rustdoc/s390_iommu/index.html";

/// The driver's pages, with the command line that built it; says whether there is
/// nothing to complain about.
pub fn write_rustdoc(project: &Project, kernel: &Kernel, step: &Step) -> Result<bool> {
    let made = kernel.objects.join("drivers/iommu/s390/.s390_iommu.o.cmd");
    let text = fs::read_to_string(&made)
        .with_context(|| format!("the driver was not built here: no {}", made.display()))?;
    let line =
        build_command(&text).context("the kernel's record of the build is not understood")?;
    let output = project.build.join("rustdoc");
    let rustdoc = project.rust_tool("rustdoc");
    let line = documentation_command(&line, &rustdoc, &output);
    let good = step.check(
        project
            .command("sh")
            .current_dir(&kernel.objects)
            // As the kernel does: its options are unstable.
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["-c", &line]),
    )?;
    let log = fs::read(step.log())?;
    let places = complaints(&String::from_utf8_lossy(&log));
    step.show(&places.join("\n"));
    let page = project.build.join(RUSTDOC_PAGE);
    if good && !page.is_file() {
        bail!("rustdoc wrote no {}", page.display());
    }
    Ok(good && places.is_empty())
}

/// The command in a `.cmd` file of kbuild.
fn build_command(text: &str) -> Option<String> {
    let line = text.lines().next()?.split_once(":= ")?.1;
    // What follows the compiler is kbuild's own bookkeeping.
    let line = line.split(" ; ").next()?;
    Some(line.replace("\\#", "#"))
}

/// Turns a call of rustc into one of rustdoc: what makes it another crate or
/// another target stays, what is about warnings and objects goes.
fn documentation_command(line: &str, rustdoc: &Path, output: &Path) -> String {
    const WITH_VALUE: [&str; 4] = ["--extern", "--crate-type", "-L", "--cfg"];
    const KEPT: [&str; 10] = [
        // Features that became stable since the kernel named them.
        "-Astable_features",
        "--edition",
        "--target",
        "--sysroot",
        "-Zallow-features",
        "-Zcrate-attr",
        "-Zunstable-options",
        "-Zpacked-stack",
        "-Ctarget-",
        "-Cpanic",
    ];
    let mut words = Vec::new();
    let mut all = line.split(' ').filter(|word| !word.is_empty());
    while let Some(word) = all.next() {
        let is_compiler = word.ends_with("/rustc") || word == "rustc";
        let is_setting = !word.starts_with('-') && word.contains('=');
        let is_source = word.ends_with(".rs") && !word.starts_with('-');
        if is_compiler {
            words.push(rustdoc.display().to_string());
        } else if WITH_VALUE.contains(&word) {
            words.push(format!("{word} {}", all.next().unwrap_or_default()));
        } else if is_setting
            || is_source
            || word.starts_with('@')
            || KEPT.iter().any(|start| word.starts_with(start))
        {
            words.push(word.to_owned());
        } else if ["-o", "--out-dir"].contains(&word) {
            all.next();
        }
    }
    words.push(format!(
        // Links to private items work where these have pages.
        "--document-private-items -Arustdoc::private_intra_doc_links --out-dir {}",
        output.display()
    ));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_no_source() {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            "Kbuild",
            "a.rs",
            "a.mod.c",
            "notes.txt",
            "build/b.rs",
            "x/target/c.rs",
            "x/d.rs",
        ] {
            write_if_changed(&folder.path().join(file), b"").unwrap();
        }
        let files = source_files(folder.path()).unwrap();
        let names: Vec<_> = files
            .iter()
            .map(|path| path.strip_prefix(folder.path()).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["Kbuild", "a.rs", "x/d.rs"]);
    }

    #[test]
    fn a_complaint_has_a_place() {
        let log = "warning: unstable feature: `backchain`\n  |\n\
                   warning: never used\n  --> a.rs:4:1\n   |\n\
                   warning: 2 warnings emitted\n";
        assert_eq!(complaints(log), ["a.rs:4:1: never used"]);
    }

    #[test]
    fn a_build_becomes_a_documentation() {
        let text = "savedcmd_x.o := OBJTREE=/o rustc --edition=2021 -Wclippy::all -Copt-level=2 \
                    --cfg a --extern kernel --out-dir y --emit=obj=x.o z/x.rs ; objtool x.o\n\n\
                    source_x := z\n";
        let line = build_command(text).unwrap();
        let line = documentation_command(&line, Path::new("/usr/bin/rustdoc"), Path::new("/out"));
        assert_eq!(
            line,
            "OBJTREE=/o /usr/bin/rustdoc --edition=2021 --cfg a --extern kernel z/x.rs \
             --document-private-items -Arustdoc::private_intra_doc_links --out-dir /out"
        );
    }
}
