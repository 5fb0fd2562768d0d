// SPDX-License-Identifier: GPL-2.0
//! The emulated machine: an s390x guest with real (emulated) PCI devices.

use crate::{hotplug::Hotplug, ktap::Report, prelude::*};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
};

const DRIVE: u64 = 256 << 20;

/// A device that a guest can have.
pub struct Device {
    /// What it is called here, by QEMU and by the guest's wishes.
    pub id: &'static str,
    pub model: &'static str,
    /// The model's properties, `name=value,...`.
    pub properties: &'static str,
}

const fn device(id: &'static str, model: &'static str, properties: &'static str) -> Device {
    Device {
        id,
        model,
        properties,
    }
}

/// All of them. QEMU does not always forget a drive that is unplugged at once after it was
/// found; it does nothing any more, but would keep its successor from an image that it
/// does not share. The boot ROMs of the two cards are not in the package.
pub const DEVICES: [Device; 5] = [
    device("nvme", "nvme", "drive=d0,serial=x0,share-rw=on"),
    device("igb", "igb", "romfile=,netdev=n0"),
    device("e1000e", "e1000e", "romfile=,netdev=n1"),
    // Its DMA goes through the IOMMU, other than that of the generators.
    device(
        "virtio",
        "virtio-rng-pci-non-transitional",
        "iommu_platform=on",
    ),
    device("nvme1", "nvme", "drive=d1,serial=x1,share-rw=on"),
];

/// What most boots have from the start.
pub const USUAL: &str = "nvme igb e1000e";
/// The devices of boots that need two of a kind.
pub const EVERYTHING: &str = "nvme igb e1000e nvme1";

/// As fast as possible.
pub const THREADED: &str = "-accel tcg,thread=multi";
/// All processors in one thread, where many of them stop and start: with a thread for each,
/// QEMU may deadlock. A processor that executes SIGP waits until another one has done what
/// it orders, while that one waits until all are between instructions.
pub const ONE_THREAD: &str = "-accel tcg,thread=single";
/// The guest's clock counts instructions, one a nanosecond, on one processor. Nothing that
/// the guest can see depends on when it runs: time of day and random numbers are the same
/// at every boot.
pub const COUNTING: &str =
    "-accel tcg -icount shift=0,sleep=off -rtc base=2026-01-01,clock=vm -seed 1";
/// The same, but an idle guest waits for its devices in the host's time.
pub const COUNTING_WORK: &str = "-accel tcg -icount shift=0 -rtc base=2026-01-01,clock=vm -seed 1";

/// How often a device comes or goes while the kernel starts.
const STORM: Duration = Duration::from_millis(50);
/// The first line of the guest's program.
const START: &str = "guest: start";

pub struct Boot<'a> {
    /// For the names of its files.
    pub name: &'a str,
    pub qemu: &'a Path,
    pub image: &'a Path,
    pub initrd: &'a Path,
    /// The kernel's command line after the console.
    pub append: String,
    pub limit: Duration,
    /// The devices that are there from the start, by their ids, in the order of
    /// [`DEVICES`]. The guest may have all of them plugged and unplugged.
    pub plugged: &'a str,
    /// A device that comes and goes while the kernel starts; the guest's program
    /// finds it plugged.
    pub storm: Option<&'a str>,
    /// What is on the first NVMe drive; nothing by default.
    pub root: Option<&'a Path>,
    pub cpu: &'static str,
    /// How many random number generators there are before the second drive. They
    /// do no DMA through the IOMMU, so that tests may attach them anywhere.
    pub generators: usize,
    /// How processors and the guest's clock run: [`THREADED`], [`ONE_THREAD`],
    /// [`COUNTING`] or [`COUNTING_WORK`].
    pub clock: &'static str,
    pub processors: u8,
    /// How much memory, in GiB. The host gives what the guest touches.
    pub memory: u32,
    /// More arguments of QEMU: before all devices, and devices behind the others.
    pub arguments: &'a str,
    pub devices: &'a str,
}

impl Boot<'_> {
    /// Boots, hands each line to `see`, and waits for the end.
    ///
    /// # Errors
    ///
    /// QEMU cannot be started, failed, or took longer than the limit. What the
    /// guest itself says of its success is in the report.
    pub fn run(&self, project: &Project, see: impl FnMut(&str)) -> Result<Report> {
        let (report, ()) = self.run_and(project, see, |_| Ok(()))?;
        Ok(report)
    }

    /// The same, and looks at the files of the drives before they are removed.
    pub fn run_and<T>(
        &self,
        project: &Project,
        mut see: impl FnMut(&str),
        look: impl FnOnce(&[PathBuf]) -> Result<T>,
    ) -> Result<(Report, T)> {
        let drives = self.fresh_drives(project)?;
        let path = project.console(self.name);
        let mut log = File::create(&path)?;
        let mut command = self.command(project, &drives);
        command
            .args(["-serial", "stdio", "-monitor", "none"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (mut hotplug, monitor) = Hotplug::add_to(&mut command)?;
        let mut child = Guard(
            command
                .spawn()
                .with_context(|| format!("cannot start {}", self.qemu))?,
        );
        drop(monitor);
        let mut keyboard = child.0.stdin.take().context("no pipe")?;
        let lines = read_lines(&mut child.0)?;
        let end = Instant::now() + self.limit;
        let mut console = Vec::new();
        let mut storm = self.storm;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match lines.recv_timeout(if storm.is_some() { STORM } else { left }) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    see(&line);
                    if line.starts_with(START) {
                        storm.take().map_or(Ok(()), |id| hotplug.end_storm(id))?;
                    }
                    hotplug.obey(&line, &mut keyboard)?;
                    console.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {
                    storm.map_or(Ok(()), |id| hotplug.storm(id))?;
                }
                Err(RecvTimeoutError::Timeout) => bail!(
                    "{}: the guest did not end within {} s and was stopped; its console is in {}",
                    self.name,
                    self.limit.as_secs(),
                    path
                ),
            }
        }
        let status = child.0.wait()?;
        let data = look(&drives);
        remove(&drives);
        let report = Report::parse(console.iter().map(String::as_str));
        if !status.success() && report.panic.is_none() {
            let last = console.last().map_or("it printed nothing", String::as_str);
            bail!("{}: QEMU failed ({status}): {last}", self.name);
        }
        Ok((report, data?))
    }

    /// Boots with the caller's terminal as the console.
    pub fn shell(&self, project: &Project) -> Result<()> {
        let drives = self.fresh_drives(project)?;
        let mut command = self.command(project, &drives);
        command
            .args(["-serial", "mon:stdio"])
            .stdin(Stdio::inherit());
        let status = command
            .status()
            .with_context(|| format!("cannot start {}", self.qemu))?;
        remove(&drives);
        ensure!(status.success(), "QEMU failed ({status})");
        Ok(())
    }

    /// Empty drives: an old pattern would look like a success.
    fn fresh_drives(&self, project: &Project) -> Result<[PathBuf; 2]> {
        let name = |index| project.build.join(format!("{}.nvme{index}", self.name));
        let paths = [name(0), name(1)];
        remove(&paths);
        for path in &paths {
            File::create(path)?.set_len(DRIVE)?;
        }
        if let Some(root) = self.root {
            fs::copy(root, &paths[0])?;
        }
        Ok(paths)
    }

    fn command(&self, project: &Project, [first, second]: &[PathBuf; 2]) -> Command {
        let is_plugged = |device: &&Device| self.plugged.split(' ').any(|id| id == device.id);
        let mut devices = Vec::new();
        for device in DEVICES.iter().filter(|device| is_plugged(device)) {
            if device.id == "nvme1" {
                let generator = "virtio-rng-pci,disable-legacy=on".to_owned();
                devices.extend(vec![generator; self.generators]);
            }
            let (model, id) = (device.model, device.id);
            devices.push(format!("{model},id={id},{}", device.properties));
        }
        let devices = devices.iter().flat_map(|device| ["-device", device]);
        let devices = devices.chain(self.devices.split_whitespace());
        let arguments = self.arguments.split_whitespace();
        let clock = self.clock.split(' ');
        let (qemu, image, initrd) = (self.qemu, self.image, self.initrd);
        let (cpu, processors) = (self.cpu, self.processors.to_string());
        let memory = self.memory.to_string();
        let append = format!("console=ttysclp0 panic=-1 {}", self.append);
        // If this process is killed, the kernel stops QEMU. A -drive would go with its device.
        // Two cards back to back.
        command!(
            project,
            "setpriv --pdeathsig TERM {qemu} -M s390-ccw-virtio,memory-backend=memory -cpu {cpu}
                -object memory-backend-ram,id=memory,size={memory}G,reserve=off
                -m {memory}G {clock...} -smp {processors} -nodefaults -display none -no-reboot
                -kernel {image} -initrd {initrd} -append {append}
                -blockdev driver=raw,node-name=d0,file.driver=file,file.filename={first}
                -blockdev driver=raw,node-name=d1,file.driver=file,file.filename={second}
                -netdev hubport,id=n0,hubid=0 -netdev hubport,id=n1,hubid=0
                {arguments...} {devices...}"
        )
    }
}

fn remove(paths: &[PathBuf]) {
    for path in paths {
        let _ = fs::remove_file(path);
    }
}

/// Stops QEMU however this ends.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read_lines(child: &mut Child) -> Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    let follow = |stream: Box<dyn std::io::Read + Send>| {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                let line = String::from_utf8_lossy(&bytes);
                let line = line.trim_end_matches(['\r', '\n']).to_owned();
                if sender.send(line).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
    };
    follow(Box::new(child.stdout.take().context("no pipe")?));
    follow(Box::new(child.stderr.take().context("no pipe")?));
    Ok(receiver)
}
