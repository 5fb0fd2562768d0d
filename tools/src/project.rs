// SPDX-License-Identifier: GPL-2.0
//! Where things are: the checkout, its build folder, the cache, and what the
//! caller named in the environment.

use crate::prelude::*;
use std::{env, ffi::OsString, process::Stdio};
use xshell::{Cmd, Shell};

/// A command as typed in a shell: `command!(step, "cp {from} {to}")`. `{list...}` stands for
/// several arguments. See [`Project::dress`].
macro_rules! command {
    ($of:expr, $typed:literal) => {
        $of.dress(xshell::cmd!($of.shell, $typed))
    };
}
pub(crate) use command;

/// Debian's own LLVM that the kernel is built with.
pub const LLVM: &str = "-22";
/// Variables of the caller that no build may see.
const FOREIGN: &str = "MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES ARCH CROSS_COMPILE KDIR KOUT \
    LLVM CONFIG GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET RUSTUP_TOOLCHAIN \
    LD_LIBRARY_PATH";

/// The folders of this checkout and the caller's settings.
#[derive(Clone)]
pub struct Project {
    pub root: PathBuf,
    /// What is built for this checkout alone; may be deleted at any time.
    pub build: PathBuf,
    pub logs: PathBuf,
    /// Downloads, kernel trees and objects, shared by checkouts.
    pub cache: PathBuf,
    /// `CARGO=`, by default the one of Debian's `cargo-web`.
    pub cargo: PathBuf,
    /// `RUSTC=`, by default the one of Debian's `rustc-web`.
    pub rustc: PathBuf,
    /// `LLVM=` in the kernel's notation: a suffix (`-22`) or a folder (`/opt/llvm/bin/`).
    pub llvm: String,
    /// Whether gcc compiles the C of the kernel (`make matrix`), and not clang.
    pub gcc: bool,
    pub bindgen: Option<PathBuf>,
    pub qemu: Option<PathBuf>,
    /// `CONFIG=`: the fragments of the kernel, see [`crate::kernel::build`].
    pub flavour: String,
    /// `KDIR=`: the caller's kernel tree.
    pub kdir: Option<PathBuf>,
    /// Whether that tree is built as it is, without the driver put in (`make matrix`).
    pub as_it_is: bool,
    /// `KOUT=`: the caller's objects folder.
    pub kout: Option<PathBuf>,
    /// `UPDATE=1`: look for a newer kernel source though one is there.
    pub update: bool,
    /// `JOBS=`, by default the number of processors.
    pub jobs: usize,
    /// For [`command`].
    pub shell: Shell,
}

/// A variable of the environment; an empty one counts as not set.
pub fn text(name: &str) -> Option<String> {
    let value = env::var_os(name)?.to_string_lossy().into_owned();
    (!value.is_empty()).then_some(value)
}

/// `APPEND=`: the caller's arguments for the kernel's command line.
pub fn more_arguments() -> String {
    text("APPEND").unwrap_or_default()
}

/// Whether a variable is set, and not to 0.
pub fn is_set(name: &str) -> bool {
    text(name).is_some_and(|value| value != "0")
}

/// A program that the caller names: a path, or a name to look for in `PATH`.
fn tool_variable(name: &str) -> Result<Option<PathBuf>> {
    let find = |value: String| {
        find_program(Path::new(&value))
            .with_context(|| format!("{name}={value} is no program; give the path of one"))
    };
    text(name).map(find).transpose()
}

pub fn find_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.canonicalize_utf8().ok().filter(|path| path.is_file());
    }
    let folders = env::var_os("PATH")?;
    let folders = env::split_paths(&folders).filter_map(|folder| PathBuf::try_from(folder).ok());
    let mut paths = folders.map(|folder| folder.join(name));
    paths.find(|path| path.is_file())
}

/// The real path of an existing folder.
fn real(folder: impl AsRef<Path>) -> Result<PathBuf> {
    Ok(fs::canonicalize(folder.as_ref())?.try_into()?)
}

impl Project {
    /// Reads the environment and makes the folders.
    pub fn open(flavour: &str) -> Result<Self> {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = tools.parent().context("tools/ has no parent")?.to_owned();
        let build = root.join("build");
        let logs = build.join("logs");
        fs::create_dir_all(&logs)?;
        let cache = cache_folder()?;
        fs::create_dir_all(&cache)
            .context("cannot make the cache; name another with S390_IOMMU_CACHE=")?;
        let kout = text("KOUT").map(|folder| {
            fs::create_dir_all(&folder).context("cannot make KOUT=")?;
            real(folder)
        });
        let jobs = text("JOBS").map(|text| {
            let number = text.parse();
            number.with_context(|| format!("JOBS={text} is no number"))
        });
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        let kdir = text("KDIR").map(real).transpose();
        let program = |name, usual: &str| text(name).unwrap_or(usual.into()).into();
        Ok(Self {
            cache: real(cache)?,
            cargo: program("CARGO", "/usr/bin/cargo"),
            rustc: program("RUSTC", "/usr/bin/rustc"),
            llvm: text("LLVM").unwrap_or(LLVM.into()),
            gcc: false,
            bindgen: tool_variable("BINDGEN")?,
            qemu: tool_variable("QEMU")?,
            flavour: flavour_of(&root, flavour)?,
            kdir: kdir.context("KDIR= is not there")?,
            as_it_is: false,
            kout: kout.transpose()?,
            update: text("UPDATE").is_some(),
            jobs: jobs.transpose()?.unwrap_or_else(processors),
            shell: Shell::new()?,
            root,
            build,
            logs,
        })
    }

    /// For a command that builds two kernels.
    pub fn ensure_no_kout(&self, command: &str) -> Result<()> {
        let advice = "two kernels do not fit into one KOUT=; leave it out";
        ensure!(self.kout.is_none(), "{command}: {advice}");
        Ok(())
    }

    /// Locks the cache for this process, until the lock is dropped.
    pub fn lock(&self) -> Result<File> {
        self.lock_file("lock")
    }

    pub fn lock_file(&self, name: &str) -> Result<File> {
        use rustix::fs::{flock, FlockOperation};
        let path = self.cache.join(name);
        let file = File::create(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("waiting: another run holds {path}");
            flock(&file, FlockOperation::LockExclusive)?;
        }
        Ok(file)
    }

    /// Where the console of a boot is kept.
    pub fn console(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.console.log"))
    }

    pub fn llvm_tool(&self, name: &str) -> PathBuf {
        match &*self.llvm {
            folder if folder.ends_with('/') => format!("{folder}{name}").into(),
            suffix if suffix.starts_with('-') => format!("{name}{suffix}").into(),
            _ => name.into(),
        }
    }

    /// A tool of the same Rust toolchain as `RUSTC=`.
    pub fn rust_tool(&self, name: &str) -> PathBuf {
        self.rustc.with_file_name(name)
    }

    /// A command for building: with the toolchain that was checked, and without the
    /// variables of the `make` that called us.
    pub fn dress(&self, typed: Cmd) -> Command {
        // Not in the folder of the shell: commands run where this process does.
        let typed = Command::from(typed);
        let mut command = Command::new(typed.get_program());
        command.args(typed.get_args());
        for name in FOREIGN.split_whitespace() {
            command.env_remove(name);
        }
        command
            .env("CARGO", &self.cargo)
            .env("RUSTC", &self.rustc)
            .env("RUSTDOC", self.rust_tool("rustdoc"))
            .env("RUSTFMT", self.rust_tool("rustfmt"))
            .env("PATH", self.path())
            .env("LC_ALL", "C.UTF-8")
            .env("CCACHE_DIR", self.cache.join("ccache"))
            // The same input gives the same kernel.
            .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
            .env("KBUILD_BUILD_USER", "s390-iommu")
            .env("KBUILD_BUILD_HOST", "build")
            .stdin(Stdio::null());
        if let Some(folder) = self.libclang() {
            command.env("LIBCLANG_PATH", folder);
        }
        command
    }

    /// The folder of the libclang that belongs to Debian's LLVM, unless the caller names one.
    pub fn libclang(&self) -> Option<PathBuf> {
        let version = self.llvm.strip_prefix('-')?;
        let folder = format!("/usr/lib/llvm-{version}/lib");
        text("LIBCLANG_PATH").is_none().then(|| folder.into())
    }

    /// `PATH` with the folder of the Rust toolchain in front, so that nothing
    /// picks up another one by name.
    fn path(&self) -> OsString {
        let rust = self
            .rustc
            .parent()
            .map(|folder| folder.as_std_path().to_owned());
        let rest = env::var_os("PATH").unwrap_or_default();
        let folders = rust.into_iter().chain(env::split_paths(&rest));
        let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into);
        env::join_paths(folders.chain(system)).unwrap_or(rest)
    }
}

/// The configuration to build: `CONFIG=a,b` names files of `tools/config/`, `MODULE=1` is the
/// driver as a module instead of built in.
fn flavour_of(root: &Path, default: &str) -> Result<String> {
    let driver = if is_set("MODULE") { "module" } else { "rust" };
    let default = default.replace("rust", driver);
    let flavour = text("CONFIG").unwrap_or(default).replace(' ', ",");
    for name in flavour.split(',') {
        let path = root.join(format!("tools/config/{name}.config"));
        if name == "base" || !path.is_file() {
            bail!("CONFIG={flavour}: there is no {path}");
        }
    }
    Ok(flavour)
}

fn cache_folder() -> Result<PathBuf> {
    if let Some(path) = text("S390_IOMMU_CACHE") {
        return Ok(path.into());
    }
    let base = text("XDG_CACHE_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&text("HOME")?).join(".cache")));
    let base = base.context("HOME is not set; name a cache with S390_IOMMU_CACHE=")?;
    Ok(base.join("s390-iommu"))
}
