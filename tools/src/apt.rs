// SPDX-License-Identifier: GPL-2.0
//! Debian's packages, without touching the machine's own list of sources.
//!
//! A suite or an architecture that is not among the machine's sources is used
//! through a *private root*: a list of sources made from the machine's own
//! mirror, with index files in the cache.

use crate::{
    project::{find_program, variable, Project},
    steps::{write_if_changed, Step},
};
use anyhow::{bail, Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The archive's own keys; a release of Debian ships those of its successor.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// The releases whose packages are known to fit.
const RELEASES: [&str; 2] = ["bookworm", "trixie"];

/// The machine's release, if it is one whose packages are known to fit.
pub fn codename() -> Option<String> {
    find_program(Path::new("apt-get"))?;
    codename_of(&fs::read_to_string("/etc/os-release").ok()?)
}

fn codename_of(os_release: &str) -> Option<String> {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|text| text.trim_matches('"').to_owned())
    };
    value("VERSION_CODENAME").filter(|name| {
        value("ID").as_deref() == Some("debian") && RELEASES.contains(&name.as_str())
    })
}

/// The mirrors that the machine gets Debian from.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirrors {
    /// The archive.
    pub main: String,
    /// The archive of security updates, which is another one.
    pub security: String,
}

impl Mirrors {
    /// Asks apt for the sources in use; it knows every notation of them.
    pub fn of_this_machine(project: &Project, step: &Step) -> Result<Self> {
        let ask = || -> Result<String> {
            step.output(
                project.command("apt-get").args([
                    "indextargets",
                    "--format",
                    "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)",
                    "Created-By: Packages",
                ]),
                "check the machine's apt sources",
            )
        };
        if let Some(mirrors) = Self::parse(&ask()?) {
            return Ok(mirrors);
        }
        // apt tells of indexes that were downloaded. A foreign source that
        // does not answer is none of our business.
        step.status(project.command("apt-get").arg("update"))?;
        Self::parse(&ask()?)
            .context("apt knows no Debian archive with component main; check /etc/apt/sources.list")
    }

    /// Reads `ORIGIN|LABEL|COMPONENT|URI` lines.
    fn parse(text: &str) -> Option<Self> {
        let find = |wanted: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.split('|');
                let (origin, label) = (fields.next()?, fields.next()?);
                let (component, uri) = (fields.next()?, fields.next()?);
                (origin == "Debian" && label == wanted && component == "main")
                    .then(|| uri.trim_end_matches('/').to_owned())
            })
        };
        let main = find("Debian")?;
        // A machine with the plain archive alone (a fresh debootstrap): every
        // mirror layout has the security archive beside the main one.
        let security = find("Debian-Security").unwrap_or_else(|| format!("{main}-security"));
        Some(Self { main, security })
    }
}

fn stanza(kind: &str, uri: &str, suites: &[String], keyring: Option<&Path>) -> String {
    let mut text = format!(
        "Types: {kind}\nURIs: {uri}\nSuites: {}\nComponents: main\n",
        suites.join(" ")
    );
    if let Some(path) = keyring {
        text += &format!("Signed-By: {}\n", path.display());
    }
    text
}

/// A private apt root.
pub struct Root {
    options: Vec<String>,
    folder: PathBuf,
}

impl Root {
    /// A root with the machine's release and its updates, to install from.
    pub fn of_machine(project: &Project, step: &Step) -> Result<Self> {
        let name = codename().context("this machine is no Debian 12 or 13")?;
        let mirrors = Mirrors::of_this_machine(project, step)?;
        let main = ["", "-updates", "-backports"].map(|part| format!("{name}{part}"));
        let security = [format!("{name}-security")];
        let text = format!(
            "{}\n{}",
            stanza("deb", &mirrors.main, &main, keyring()),
            stanza("deb", &mirrors.security, &security, keyring())
        );
        Self::make(project, step, "machine", &text, None)
    }

    /// A root with one suite, to download from.
    pub fn of_suite(project: &Project, step: &Step, suite: &str, arch: &str) -> Result<Self> {
        Self::of_suites(project, step, &[suite.to_owned()], arch)
    }

    /// A root with some suites, to download from.
    pub fn of_suites(
        project: &Project,
        step: &Step,
        suites: &[String],
        arch: &str,
    ) -> Result<Self> {
        let mirrors = Mirrors::of_this_machine(project, step)?;
        let text = stanza("deb", &mirrors.main, suites, keyring());
        let name = format!("{}-{arch}", suites.join("-"));
        Self::make(project, step, &name, &text, Some(arch))
    }

    /// A root with the sources of a release and its updates.
    pub fn of_sources(project: &Project, step: &Step, release: &str) -> Result<Self> {
        let mirrors = Mirrors::of_this_machine(project, step)?;
        let main = ["", "-updates"].map(|part| format!("{release}{part}"));
        let security = [format!("{release}-security")];
        let text = format!(
            "{}\n{}",
            stanza("deb-src", &mirrors.main, &main, keyring()),
            stanza("deb-src", &mirrors.security, &security, keyring())
        );
        let name = format!("{release}-source");
        Self::make(project, step, &name, &text, Some("amd64"))
    }

    fn make(
        project: &Project,
        step: &Step,
        name: &str,
        sources: &str,
        arch: Option<&str>,
    ) -> Result<Self> {
        let folder = project.cache.join("apt").join(name);
        let sources_file = folder.join("sources.d/debian.sources");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        write_if_changed(&sources_file, sources.as_bytes())?;
        let at = |key: &str, part: &str| format!("{key}={}", folder.join(part).display());
        let mut options = vec![
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            at("Dir::Etc::sourceparts", "sources.d"),
            at("Dir::State::lists", "lists"),
            at("Dir::Cache", "cache"),
            // The cache may lie where apt's own user cannot read.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // Indexes that nobody reads here.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        if let Some(arch) = arch {
            options.push("Dir::Etc::preferencesparts=/dev/null".into());
            options.push(format!("APT::Architecture={arch}"));
            options.push(format!("APT::Architectures={arch}"));
        }
        let root = Self { options, folder };
        step.run(
            root.command(project, "apt-get").arg("update"),
            "check the network and the machine's apt sources",
        )?;
        Ok(root)
    }

    fn command(&self, project: &Project, program: &str) -> Command {
        let mut command = project.command(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Installs packages on the machine, from `suite` if one is named.
    pub fn install(
        &self,
        project: &Project,
        step: &Step,
        packages: &[&str],
        suite: Option<&str>,
    ) -> Result<()> {
        let mut command = self.command(project, "apt-get");
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        command
            .args(["install", "--yes", "--no-install-recommends"])
            .args(["-o", "Dpkg::Use-Pty=0"])
            // As Debian's own installer does: syncing each of forty thousand
            // small files takes longer than all the rest.
            .args(["-o", "Dpkg::Options::=--force-unsafe-io"])
            .args(packages);
        step.run(&mut command, "read the log, repair apt, and run it again")
    }

    /// The names of packages that begin so.
    pub fn names(&self, project: &Project, step: &Step, prefix: &str) -> Result<Vec<String>> {
        let text = step.output(
            self.command(project, "apt-cache")
                .args(["pkgnames", prefix]),
            "read the log",
        )?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The version of a package that would be downloaded.
    pub fn version(&self, project: &Project, step: &Step, package: &str) -> Result<String> {
        let text = step.output(
            self.command(project, "apt-cache")
                .args(["show", "--no-all-versions", package]),
            "read the log",
        )?;
        text.lines()
            .find_map(|line| line.strip_prefix("Version: "))
            .map(str::to_owned)
            .with_context(|| format!("apt knows no version of {package}"))
    }

    /// The versions of a source package.
    pub fn source_versions(
        &self,
        project: &Project,
        step: &Step,
        package: &str,
    ) -> Result<Vec<String>> {
        let text = step.output(
            self.command(project, "apt-cache")
                .args(["showsrc", "--only-source", package]),
            "read the log",
        )?;
        let versions = text
            .lines()
            .filter_map(|line| line.strip_prefix("Version: "));
        Ok(versions.map(str::to_owned).collect())
    }

    /// Downloads a package with all that it depends on, as if nothing were
    /// installed, and unpacks it all into a folder.
    pub fn unpack(
        &self,
        project: &Project,
        step: &Step,
        package: &str,
        suite: &str,
        folder: &Path,
    ) -> Result<()> {
        let state = self.folder.join("state");
        let archives = self.folder.join("cache/archives");
        // Nothing is installed here, whatever the machine has.
        let status = state.join("status");
        fs::create_dir_all(&state)?;
        fs::write(&status, "")?;
        let _ = fs::remove_dir_all(&archives);
        fs::create_dir_all(archives.join("partial"))?;
        step.run(
            self.command(project, "apt-get")
                .args(["-o", &format!("Dir::State={}", state.display())])
                .args(["-o", &format!("Dir::State::status={}", status.display())])
                .args([
                    "-o",
                    &format!("Dir::State::lists={}/lists", self.folder.display()),
                ])
                .args([
                    "install",
                    "--download-only",
                    "--yes",
                    "--no-install-recommends",
                ])
                .args(["-t", suite, package]),
            "check the network and the machine's apt sources",
        )?;
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "deb") {
                step.run(
                    project.command("dpkg-deb").arg("-x").arg(&path).arg(folder),
                    "the package is broken: remove the cache's apt folder and run it again",
                )?;
            }
        }
        let _ = fs::remove_dir_all(&archives);
        Ok(())
    }

    /// Downloads a package into a folder and returns the file.
    pub fn download(
        &self,
        project: &Project,
        step: &Step,
        package: &str,
        folder: &Path,
    ) -> Result<PathBuf> {
        self.download_by(project, step, &["download", package], folder)
    }

    /// Downloads the upstream archive of a source package, `NAME=VERSION`, into a
    /// folder and returns the file. Nothing else: not every mirror has the rest.
    pub fn download_source(
        &self,
        project: &Project,
        step: &Step,
        package: &str,
        folder: &Path,
    ) -> Result<PathBuf> {
        let command = ["source", "--download-only", "--tar-only", package];
        self.download_by(project, step, &command, folder)
    }

    fn download_by(
        &self,
        project: &Project,
        step: &Step,
        command: &[&str],
        folder: &Path,
    ) -> Result<PathBuf> {
        // Into a folder of its own first: what is in `folder` is whole.
        let partial = self.folder.join("download");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial)?;
        fs::create_dir_all(folder)?;
        step.run(
            self.command(project, "apt-get")
                .current_dir(&partial)
                .args(command),
            "check the network and the machine's apt sources",
        )?;
        let Some(entry) = fs::read_dir(&partial)?.next() else {
            bail!("apt-get {} downloaded nothing", command.join(" "));
        };
        let from = entry?.path();
        let to = folder.join(from.file_name().context("a file without a name")?);
        fs::rename(&from, &to)?;
        Ok(to)
    }
}

/// Unpacks packages into a folder, which appears when it is whole.
pub fn unpack(project: &Project, step: &Step, packages: &[PathBuf], folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    for package in packages {
        step.run(
            project
                .command("dpkg-deb")
                .arg("-x")
                .arg(package)
                .arg(&partial),
            "the package is broken: remove it and run it again",
        )?;
    }
    let _ = fs::remove_dir_all(folder);
    fs::rename(&partial, folder)?;
    Ok(())
}

fn keyring() -> Option<&'static Path> {
    KEYRINGS.iter().map(Path::new).find(|path| path.exists())
}

/// Whether this process may install packages.
pub fn may_install() -> bool {
    codename().is_some() && is_root() && variable("NO_INSTALL").is_none()
}

fn is_root() -> bool {
    // The owner of our own /proc entry is who we are.
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_of_a_full_machine() {
        let text = "NodeSource|x|main|https://elsewhere/node\n\
                    Debian|Debian|contrib|http://mirror/debian/\n\
                    Debian|Debian|main|http://mirror/debian/\n\
                    Debian|Debian-Security|main|http://other/debian-security/\n";
        assert_eq!(
            Mirrors::parse(text),
            Some(Mirrors {
                main: "http://mirror/debian".into(),
                security: "http://other/debian-security".into(),
            })
        );
    }

    #[test]
    fn security_is_beside_main() {
        let mirrors = Mirrors::parse("Debian|Debian|main|http://mirror/debian/\n").unwrap();
        assert_eq!(mirrors.security, "http://mirror/debian-security");
    }

    #[test]
    fn no_debian_no_mirrors() {
        assert_eq!(Mirrors::parse("Google|x|main|https://elsewhere/"), None);
        assert_eq!(Mirrors::parse(""), None);
    }

    #[test]
    fn only_known_releases_have_a_codename() {
        let debian = "ID=debian\nVERSION_CODENAME=trixie\n";
        assert_eq!(codename_of(debian).as_deref(), Some("trixie"));
        assert_eq!(codename_of("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
        assert_eq!(codename_of("ID=debian\nVERSION_CODENAME=buster\n"), None);
    }

    #[test]
    fn stanza_names_its_keys() {
        let suites = ["trixie".to_owned(), "trixie-updates".to_owned()];
        let text = stanza("deb", "http://m", &suites, Some(Path::new("/k.gpg")));
        assert!(text.contains("Suites: trixie trixie-updates\n"));
        assert!(text.ends_with("Signed-By: /k.gpg\n"));
    }
}
