// SPDX-License-Identifier: GPL-2.0
//! Debian's packages, without touching the machine's own list of sources.
//!
//! A suite or an architecture that is not among the machine's sources is used
//! through a *private root*: a list of sources made from the machine's own
//! mirror, with index files in the cache.

use crate::prelude::*;

/// The archive's keys; a release of Debian ships those of its successor as well.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
/// The releases whose packages are known to fit.
pub const RELEASES: [&str; 2] = ["bookworm", "trixie"];
/// Downloads packages with all that they depend on.
pub const INSTALL: &str = "install --download-only --yes --no-install-recommends";
/// What to do when nothing can be downloaded.
const ADVICE: &str = "check the network and the machine's apt sources";

/// The machine's release, if it is one whose packages are known to fit.
pub fn codename() -> Option<String> {
    find_program(Path::new("apt-get"))?;
    codename_of(&fs::read_to_string("/etc/os-release").ok()?)
}

fn codename_of(os_release: &str) -> Option<String> {
    let has = |line: String| os_release.lines().any(|found| found == line);
    let is_this = |name: &&str| has(format!("VERSION_CODENAME={name}"));
    let name = RELEASES.into_iter().find(is_this)?;
    has("ID=debian".into()).then(|| name.to_owned())
}

/// Whether this process may install packages.
pub fn may_install() -> bool {
    codename().is_some() && rustix::process::geteuid().is_root() && text("NO_INSTALL").is_none()
}

/// The mirrors that the machine gets Debian from: the archive, and security updates.
/// apt knows every notation of its sources.
pub fn mirrors(step: &Step) -> Result<(String, String)> {
    let ask = || {
        let format = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)";
        step.output(
            &mut command!(
                step,
                "apt-get indextargets --format {format} 'Created-By: Packages'"
            ),
            "check the machine's apt sources",
        )
    };
    let mut text = ask()?;
    if mirror(&text, "Debian").is_none() {
        // apt lists only indexes that it has downloaded. It may fail for a foreign
        // source, which we do not need.
        step.attempt(&mut command!(step, "apt-get update"))?;
        text = ask()?;
    }
    let main = mirror(&text, "Debian")
        .context("apt knows no Debian archive with component main; check /etc/apt/sources.list")?;
    // A machine with the plain archive alone (a fresh debootstrap): every
    // mirror layout has the security archive beside the main one.
    let security = mirror(&text, "Debian-Security").unwrap_or_else(|| format!("{main}-security"));
    Ok((main, security))
}

/// An archive of Debian's in `ORIGIN|LABEL|COMPONENT|URI` lines.
fn mirror(text: &str, label: &str) -> Option<String> {
    let start = format!("Debian|{label}|main|");
    let uri = text.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(uri.trim_end_matches('/').to_owned())
}

pub struct Root<'a> {
    step: &'a Step<'a>,
    options: Vec<String>,
    folder: PathBuf,
}

impl<'a> Root<'a> {
    /// A root with the machine's release and its updates, to install from.
    pub fn of_machine(step: &'a Step) -> Result<Self> {
        let name = codename().context("this machine is no Debian 12 or 13")?;
        let suites = ["", "-updates", "-backports", "-security"];
        let suites = suites.map(|part| format!("{name}{part}"));
        Self::make(step, "machine", "deb", &suites, None)
    }

    /// A root with some suites, to download from.
    pub fn of_suites(step: &'a Step, suites: &[String], arch: &str) -> Result<Self> {
        let name = format!("{}-{arch}", suites.join("-"));
        Self::make(step, &name, "deb", suites, Some(arch))
    }

    /// A root with the sources of a release and its updates.
    pub fn of_sources(step: &'a Step, release: &str) -> Result<Self> {
        let suites = ["", "-updates", "-security"].map(|part| format!("{release}{part}"));
        let name = format!("{release}-source");
        Self::make(step, &name, "deb-src", &suites, Some("amd64"))
    }

    fn make(
        step: &'a Step,
        name: &str,
        kind: &str,
        suites: &[String],
        arch: Option<&str>,
    ) -> Result<Self> {
        let folder = step.cache.join("apt").join(name);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let signed = keyring.map(|path| format!("[signed-by={path}] "));
        let signed = signed.unwrap_or_default();
        let (main, security) = mirrors(step)?;
        let line = |suite: &String| {
            let is_security = suite.ends_with("-security");
            let uri = if is_security { &security } else { &main };
            format!("{kind} {signed}{uri} {suite} main\n")
        };
        let sources: String = suites.iter().map(line).collect();
        write_if_changed(&folder.join("sources.list"), sources)?;
        let at = |key: &str, part: &str| format!("{key}={}", folder.join(part));
        let mut options = vec![
            at("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            at("Dir::State::lists", "lists"),
            at("Dir::Cache", "cache"),
            // The cache may lie where apt's own user cannot read.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // Indexes that are not needed here.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        if let Some(arch) = arch {
            // Nothing is installed here, whatever the machine has.
            fs::write(folder.join("status"), "")?;
            options.push(at("Dir::State", ""));
            options.push(at("Dir::State::status", "status"));
            options.push("Dir::Etc::preferencesparts=/dev/null".into());
            options.push(format!("APT::Architecture={arch}"));
            options.push(format!("APT::Architectures={arch}"));
        }
        let root = Self {
            step,
            options,
            folder,
        };
        step.run(&mut root.command("apt-get", ["update"]), ADVICE)?;
        Ok(root)
    }

    fn command<'b>(&self, program: &str, arguments: impl IntoIterator<Item = &'b str>) -> Command {
        let options = self.options.iter().flat_map(|option| ["-o", option]);
        let mut command = command!(self.step, "{program} {options...}");
        command.args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Installs packages on the machine, from `suite` if one is named.
    pub fn install(&self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        let suite = suite.map(|name| ["-t", name]).into_iter().flatten();
        // As Debian's own installer does: syncing each of forty thousand small files takes
        // longer than all the rest.
        let how = "install --yes --no-install-recommends -o Dpkg::Use-Pty=0 \
            -o Dpkg::Options::=--force-unsafe-io";
        let arguments = how.split(' ').chain(suite).chain(packages.iter().copied());
        self.step.run(
            &mut self.command("apt-get", arguments),
            "read the log, repair apt, and run it again",
        )
    }

    /// The lines of `apt-cache` that begin with `start`, without it.
    pub fn ask(&self, arguments: &str, start: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache", arguments.split(' '));
        let text = self.step.output(&mut command, "read the log")?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(start));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Downloads by a command of apt-get into a folder, and returns the files.
    pub fn download(&self, arguments: &str, folder: &Path) -> Result<Vec<PathBuf>> {
        // Into another folder first: `folder` has complete files only.
        let partial = self.folder.join("download");
        make_anew(&partial.join("partial"))?;
        let archives = format!("Dir::Cache::archives={partial}");
        let all = ["-o", &archives].into_iter().chain(arguments.split(' '));
        let mut command = self.command("apt-get", all);
        self.step.run(command.current_dir(&partial), ADVICE)?;
        fs::create_dir_all(folder)?;
        let mut files = paths_in(&partial)?;
        files.retain(|path| path.is_file() && !path.ends_with("lock"));
        for path in &mut files {
            let to = folder.join(name_of(path));
            fs::rename(&*path, &to)?;
            *path = to;
        }
        fs::remove_dir_all(&partial)?;
        ensure!(!files.is_empty(), "apt-get {arguments} downloaded nothing");
        Ok(files)
    }

    /// Downloads packages and unpacks them into a folder, which appears when it is whole.
    pub fn unpack(&self, arguments: &str, folder: &Path) -> Result<()> {
        let partial = folder.with_extension("partial");
        let packages = self.folder.join("packages");
        make_anew(&partial)?;
        make_anew(&packages)?;
        for package in self.download(arguments, &packages)? {
            run!(
                self.step,
                "dpkg-deb -x {package} {partial}",
                "the package is broken: run it again"
            )?;
        }
        fs::remove_dir_all(&packages)?;
        let _ = fs::remove_dir_all(folder);
        Ok(fs::rename(&partial, folder)?)
    }
}

/// A folder with Debian's packages for the guest, unpacked.
pub fn for_guest(step: &Step, name: &str, packages: &str) -> Result<PathBuf> {
    let folder = step.project.cache.join("guest").join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    let Some(suite) = codename() else {
        bail!(
            "the guest's files come from Debian's s390x packages {packages}; \
             unpack them into {folder}"
        );
    };
    let root = Root::of_suites(step, &[suite], "s390x")?;
    root.unpack(&format!("download {packages}"), &folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_as_apt_names_them() {
        let text = "NodeSource|x|main|https://elsewhere/node\n\
                    Debian|Debian|contrib|http://contrib/debian/\n\
                    Debian|Debian|main|http://mirror/debian/\n\
                    Debian|Debian-Security|main|http://other/debian-security/\n";
        let find = |label| mirror(text, label);
        assert_eq!(find("Debian").unwrap(), "http://mirror/debian");
        assert_eq!(
            find("Debian-Security").unwrap(),
            "http://other/debian-security"
        );
        assert_eq!(find("x"), None);
    }

    #[test]
    fn only_known_releases_have_a_codename() {
        let debian = "ID=debian\nVERSION_CODENAME=trixie\n";
        assert_eq!(codename_of(debian).as_deref(), Some("trixie"));
        assert_eq!(codename_of("ID=fedora\nVERSION_CODENAME=\"\"\n"), None);
        assert_eq!(codename_of("ID=debian\nVERSION_CODENAME=buster\n"), None);
    }
}
