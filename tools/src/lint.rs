// SPDX-License-Identifier: GPL-2.0
//! Formatting, clippy, checkpatch and documentation of what is in the checkout.

use crate::{
    initramfs::{guest_cargo, is_for_guest, GUEST_ARGUMENTS, MODULES},
    integrate,
    prelude::*,
};

const KERNEL_EDITION: &str = "2021";
const LICENSE: &str = "SPDX-License-Identifier: GPL-2.0";
/// Source files, by the ends of their names.
const SOURCES: [&str; 12] = [
    "rs", "c", "h", "toml", "config", "sh", "rst", "py", "s", "Makefile", "Kbuild", "Kconfig",
];
/// The folders of generated files.
const MADE: [&str; 3] = ["build", "target", ".git"];
const PROGRAMS: &str = "tools tests/host tests/host/kernel tests/guest samples/vfio_identify";
/// Warnings of checkpatch that do not count. A new file needs no entry in the tree's MAINTAINERS;
/// that of the driver's folder comes with one patch of the series. The parameters are those
/// of the driver in C, documented in the tree already; checkpatch looks only into the patch.
/// A macro makes the symbol that a trace event exports, so its export follows no function.
const IGNORED: &str = "FILE_PATH_CHANGES,UNDOCUMENTED_SETUP,EXPORT_SYMBOL";
/// Where the driver's own pages begin.
const RUSTDOC_PAGE: &str = "rustdoc/s390_iommu/index.html";

/// The files that the kernel builds, of some kinds: the driver's, and those of modules.
fn kernel_files(project: &Project, kinds: &[&str]) -> Result<Vec<PathBuf>> {
    let driver = integrate::driver_files(&project.root)?.into_iter();
    let mut list: Vec<_> = driver.map(|file| project.root.join(file)).collect();
    for folder in MODULES {
        list.extend(paths_in(&project.root.join(folder))?);
    }
    list.retain(|path| has_kind(path, kinds));
    Ok(list)
}

/// The commands that format everything, or check that nothing is to be done.
fn format_commands(project: &Project, check: bool) -> Result<Vec<Command>> {
    let how = check.then_some("--check");
    let (rustfmt, fmt) = (project.rust_tool("rustfmt"), project.rust_tool("cargo-fmt"));
    let (root, files) = (&project.root, kernel_files(project, &["rs"])?);
    let kernel = command!(
        project,
        "{rustfmt} --edition {KERNEL_EDITION} {files...} {how...}"
    );
    let programs = PROGRAMS.split(' ').map(|folder| {
        command!(
            project,
            "{fmt} fmt --manifest-path {root}/{folder}/Cargo.toml {how...}"
        )
    });
    Ok([kernel].into_iter().chain(programs).collect())
}

pub fn format(project: &Project) -> Result<()> {
    deps::ensure(project)?;
    let step = Step::start(project, "fmt", "formatting all Rust")?;
    for mut command in format_commands(project, false)? {
        step.run(&mut command, "correct what rustfmt says")?;
    }
    step.done("formatted");
    Ok(())
}

pub fn check_format(step: &Step) -> Result<Count> {
    count(step, format_commands(step, true)?)
}

fn count(step: &Step, commands: impl IntoIterator<Item = Command>) -> Result<Count> {
    let commands = commands.into_iter();
    commands
        .map(|mut command| step.check(&mut command))
        .collect()
}

/// Looks for the license in the first lines of each source file.
pub fn check_licenses(step: &Step) -> Result<Count> {
    let has_license = |file: &Path| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let good = text.lines().take(3).any(|line| line.contains(LICENSE));
        if !good {
            step.show(&format!("{file}: no {LICENSE}"));
        }
        good
    };
    let files = source_files(&step.root)?;
    Ok(files.iter().map(|file| has_license(file)).collect())
}

fn source_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for path in paths_in(root)? {
        if !path.is_dir() {
            list.extend(has_kind(&path, &SOURCES).then_some(path));
        } else if !MADE.contains(&&*name_of(&path)) {
            list.extend(source_files(&path)?);
        }
    }
    Ok(list)
}

pub fn clippy_programs(step: &Step) -> Result<Count> {
    let clippy = step.rust_tool("cargo-clippy");
    let commands = PROGRAMS.split(' ').map(|folder| {
        let folder = step.root.join(folder);
        let mut command;
        if is_for_guest(&folder) {
            command = guest_cargo(step, &clippy);
            command.args(["clippy", "--release"]).args(GUEST_ARGUMENTS);
        } else {
            // The profile that builds them, so what runs while they compile is shared.
            command = command!(step, "{clippy} clippy --release --locked --all-targets");
            command.env("CARGO_TARGET_DIR", target_folder(step, &folder));
        }
        command
            .arg("--manifest-path")
            .arg(folder.join("Cargo.toml"));
        command.args(["--", "--deny", "warnings"]);
        command
    });
    count(step, commands)
}

/// Where the objects of a program for the host go.
pub fn target_folder(project: &Project, folder: &Path) -> PathBuf {
    project.build.join("target").join(name_of(folder))
}

/// Clippy on the driver and on the modules in Rust.
pub fn clippy_driver(kernel: &Kernel, step: &Step) -> Result<Count> {
    let root = &step.root;
    let driver = integrate::driver_files(root)?;
    let mut results = vec![clippy_module(kernel, step, root, &driver)?];
    for folder in MODULES.map(|folder| root.join(folder)) {
        let rust = paths_of_kind(&folder, "rs")?;
        let mut files: Vec<_> = rust.iter().map(|path| name_of(path)).collect();
        if !files.is_empty() {
            files.push("Kbuild".to_owned());
            results.push(clippy_module(kernel, step, &folder, &files)?);
        }
    }
    Ok(results.into_iter().collect())
}

/// Clippy on files of a folder: built as an external module of the kernel with
/// `CLIPPY=1`, which leaves the kernel's own crates as they are.
fn clippy_module(kernel: &Kernel, step: &Step, from: &Path, files: &[String]) -> Result<bool> {
    let folder = step.build.join("clippy-driver");
    make_anew(&folder)?;
    for file in files {
        write_if_changed(&folder.join(file), fs::read(from.join(file))?)?;
    }
    let make = &kernel.make;
    let mut command = command!(step, "make {make...} M={folder} CLIPPY=1 modules");
    check_complaints(step, &mut command)
}

/// Runs a command that succeeds despite warnings of the compiler; here they are failures.
fn check_complaints(step: &Step, command: &mut Command) -> Result<bool> {
    let (good, output) = step.attempt(command)?;
    let places = complaints(&output);
    if !good {
        step.show_end(&output);
    }
    step.show(&places.join("\n"));
    Ok(good && places.is_empty())
}

/// The warnings with a source line; those about the compiler's flags have none.
fn complaints(log: &str) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let what = pair[0].strip_prefix("warning: ")?;
        let place = pair[1].trim_start().strip_prefix("--> ")?;
        Some(format!("{place}: {what}"))
    });
    pairs.collect()
}

/// checkpatch on each C file (the glue, the guest's test modules, our selftests) and on
/// each patch.
pub fn checkpatch(kernel: &Kernel, step: &Step) -> Result<Count> {
    let mut files = kernel_files(step, &["c", "h"])?;
    files.extend(integrate::selftest_files(&step.root)?);
    files.retain(|path| has_kind(path, &["c", "h"]));
    let patches = integrate::patches(&step.root)?;
    let files = files.iter().map(|file| (Some("--file"), file));
    // The sender of a patch signs it off.
    let patches = patches.iter().map(|patch| &patch.path);
    let patches = patches.map(|path| (Some("--no-signoff"), path));
    checkpatch_on(step, &kernel.source.tree, files.chain(patches))
}

/// sparse on the C that is built in: the glue, and what the patches change.
pub fn sparse(kernel: &Kernel, step: &Step) -> Result<Count> {
    let ours = integrate::driver_files(&step.root)?.into_iter();
    let mut files: BTreeSet<String> = ours
        .map(|file| format!("{}/{file}", integrate::PLACE))
        .collect();
    for patch in integrate::patches(&step.root)? {
        files.extend(patch.files().iter().map(|(file, _)| (*file).to_owned()));
    }
    let sources = files.iter().filter_map(|file| file.strip_suffix(".c"));
    let (make, objects) = (&kernel.make, sources.map(|file| format!("{file}.o")));
    // Debian's sparse does not know this operator, which the kernel uses.
    let (good, output) = step.attempt(&mut command!(
        step,
        "make {make...} --silent C=2 'CHECK=sparse -D__typeof_unqual__=__typeof__' {objects...}"
    ))?;
    step.show_end(&output);
    Ok(Count::one(good && output.is_empty()))
}

/// checkpatch on files, each with an option.
pub fn checkpatch_on<'a>(
    step: &Step,
    tree: &Path,
    files: impl Iterator<Item = (Option<&'static str>, &'a PathBuf)>,
) -> Result<Count> {
    let commands = files.map(|(option, file)| {
        let mut command = command!(
            step,
            "perl scripts/checkpatch.pl --strict --terse --ignore {IGNORED} {option...} {file}"
        );
        command.current_dir(tree);
        command
    });
    count(step, commands)
}

/// The pages of this project, and how they are written.
pub const PAGES: &str = "Documentation";

pub fn htmldocs(project: &Project) -> Result<()> {
    let step = Step::start(project, "htmldocs", "writing the pages")?;
    if !write_pages(&step, &project.root.join(PAGES), "htmldocs")? {
        bail!("htmldocs: correct what sphinx says");
    }
    let page = project.build.join("htmldocs/index.html");
    step.done(&format!("written: {page}"));
    Ok(())
}

/// The pages of a folder as HTML, below `build/`; a warning is an error.
pub fn write_pages(step: &Step, pages: &Path, output: &str) -> Result<bool> {
    let sphinx = deps::program(step, "sphinx-build", "python3-sphinx")?;
    let (root, build) = (&step.root, &step.build);
    step.check(&mut command!(
        step,
        "{sphinx} -W --keep-going -q -E -b html -d {build}/doctrees -c {root}/{PAGES}
            {pages} {build}/{output}"
    ))
}

pub fn rustdoc(project: &Project) -> Result<()> {
    let kernel = kernel::build(project, &project.flavour)?;
    let step = Step::start(project, "rustdoc", "writing the driver's pages")?;
    if check_rustdoc(&kernel, &step)?.failed > 0 {
        bail!("rustdoc: correct what it says");
    }
    let page = project.build.join(RUSTDOC_PAGE);
    step.done(&format!("written: {page}"));
    Ok(())
}

/// The driver's pages, with the command line that built it; passes if rustdoc
/// warns of nothing.
pub fn check_rustdoc(kernel: &Kernel, step: &Step) -> Result<Count> {
    let made = kernel.objects.join("drivers/iommu/s390/.s390_iommu.o.cmd");
    let text = fs::read_to_string(&made).context("the driver was not built here")?;
    let (rustdoc, output) = (step.rust_tool("rustdoc"), step.build.join("rustdoc"));
    let line = documentation_command(&text, rustdoc.as_str(), output.as_str());
    let line = line.context("the kernel's record of the build is not understood")?;
    let mut command = command!(step, "sh -c {line}");
    // As the kernel does: its options are unstable.
    command.env("RUSTC_BOOTSTRAP", "1");
    let good = check_complaints(step, command.current_dir(&kernel.objects))?;
    let page = step.build.join(RUSTDOC_PAGE);
    if good && !page.is_file() {
        bail!("rustdoc wrote no {page}");
    }
    Ok(Count::one(good))
}

/// Turns the call of rustc in a `.cmd` file of kbuild into one of rustdoc, without the
/// options for warnings and objects.
fn documentation_command(text: &str, rustdoc: &str, output: &str) -> Option<String> {
    const LEFT_OUT: [&str; 4] = ["-W", "-D", "--emit=", "--remap-"];
    let line = text.lines().next()?.split_once(":= ")?.1;
    // What follows the compiler is kbuild's own bookkeeping.
    let line = line.split(" ; ").next()?.replace("\\#", "#");
    let mut args: Vec<&str> = line.split_whitespace().collect();
    let compiler = args.iter().position(|arg| arg.ends_with("rustc"))?;
    args[compiler] = rustdoc;
    let folder = args.iter().position(|arg| *arg == "--out-dir")? + 1;
    args[folder] = output;
    args.retain(|arg| !LEFT_OUT.iter().any(|start| arg.starts_with(start)));
    // Links to private items work where these have pages.
    args.extend([
        "--document-private-items",
        "-Arustdoc::private_intra_doc_links",
    ]);
    Some(args.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_is_no_source() {
        let folder = camino_tempfile::tempdir().unwrap();
        let (sources, others) = (
            ["Kbuild", "a.rs", "x/d.rs"],
            ["a.mod.c", "notes.txt", "build/b.rs", "x/target/c.rs"],
        );
        for file in sources.iter().chain(&others) {
            write_if_changed(&folder.path().join(file), "").unwrap();
        }
        let files = source_files(folder.path()).unwrap();
        assert_eq!(files, sources.map(|file| folder.path().join(file)));
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
        assert_eq!(
            documentation_command(text, "/bin/rustdoc", "/out").unwrap(),
            "OBJTREE=/o /bin/rustdoc --edition=2021 -Copt-level=2 --cfg a --extern kernel \
             --out-dir /out z/x.rs --document-private-items -Arustdoc::private_intra_doc_links"
        );
    }
}
