// SPDX-License-Identifier: GPL-2.0
//! L1's QEMU and the console of its guest.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::console::say;

/// Directory of an s390x QEMU with its libraries, and of L2's kernel and initramfs
const FOLDER: &str = "/l2";
/// Interval of progress messages
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Kernel parameters that raise L2's timeouts
const PATIENCE: &str =
    "nvme_core.admin_timeout=250 nvme_core.io_timeout=250 rcupdate.rcu_cpu_stall_suppress=1";

/// Prefix of QEMU's error messages, and how many of them are shown
const COMPLAINT: &str = "qemu-system-s390x: ";
const SHOWN: usize = 10;
/// QEMU's message when it stops its guest for good
const STOPPED: &str = "Unrecoverable error detected";

/// The error if QEMU has stopped its guest.
#[derive(Debug)]
pub struct Stopped(String);

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "an error event stopped L2: {}", self.0)
    }
}

impl std::error::Error for Stopped {}

/// A running QEMU; killed when dropped.
pub struct Qemu {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    start: Instant,
    limit: Duration,
    complaints: usize,
}

impl Qemu {
    /// Starts QEMU with the functions at these addresses. `zpci` has further properties
    /// of their zpci devices.
    pub fn start(
        addresses: &[&str],
        iommufd: bool,
        zpci: &str,
        args: &str,
        limit: Duration,
    ) -> Result<Self> {
        let mut command = command(args);
        if iommufd {
            command.args(["-object", "iommufd,id=iommufd0"]);
        }
        let backend = if iommufd { ",iommufd=iommufd0" } else { "" };
        for (index, address) in addresses.iter().enumerate() {
            let id = index + 1;
            command.args(["-device", &format!("zpci,uid={id},fid={id},target=v{id}{zpci}")]);
            command.args(["-device", &format!("vfio-pci,id=v{id},host={address}{backend}")]);
        }
        let mut child = command.spawn().context("start L1's QEMU")?;
        let input = child.stdin.take().context("no pipe")?;
        let (sender, lines) = channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().context("no pipe")?),
            Box::new(child.stderr.take().context("no pipe")?),
        ];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut bytes = Vec::new();
                while reader.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0) {
                    let line = String::from_utf8_lossy(&bytes);
                    if sender.send(line.trim_end().to_owned()).is_err() {
                        return;
                    }
                    bytes.clear();
                }
            });
        }
        Ok(Self { child, input, lines, start: Instant::now(), limit, complaints: 0 })
    }

    /// The next line of L2's console; `None` at the end. QEMU's errors are only counted
    /// after the first few, because there can be one for each page.
    pub fn line(&mut self) -> Result<Option<String>> {
        loop {
            match self.lines.recv_timeout(SIGN_OF_LIFE) {
                Ok(line) if line.starts_with(COMPLAINT) => {
                    self.complaints += 1;
                    if self.complaints <= SHOWN {
                        say!("l2| {line}");
                    }
                    if line.contains(STOPPED) {
                        bail!(Stopped(line));
                    }
                }
                Ok(line) => {
                    say!("l2| {line}");
                    return Ok(Some(line));
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    say!("# L2 was started {} s ago", self.start.elapsed().as_secs());
                }
            }
            if self.start.elapsed() > self.limit {
                bail!("L2 was killed after {} s", self.limit.as_secs());
            }
        }
    }

    /// Sends a line to L2's console.
    pub fn answer(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        self.input.write_all(line.as_bytes()).context("write to L2's console")
    }

    /// How many errors QEMU has printed.
    pub fn complaints(&self) -> usize {
        self.complaints
    }

    /// Waits for QEMU to exit. Returns how long it ran.
    pub fn wait(mut self) -> Result<Duration> {
        let status = self.child.wait().context("wait for L1's QEMU")?;
        ensure!(status.success(), "L1's QEMU failed ({status})");
        Ok(self.start.elapsed())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// QEMU's command line; the program has its own loader and libraries, in one directory.
fn command(args: &str) -> Command {
    let at = |name: &str| format!("{FOLDER}/{name}");
    let mut command = Command::new(at("ld64.so.1"));
    command
        .args(["--library-path", FOLDER])
        .arg(at("qemu-system-s390x"))
        .args(["-M", "s390-ccw-virtio", "-cpu", "max", "-accel", "tcg", "-smp", "1", "-m", "128M"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-L", FOLDER])
        .args(["-serial", "stdio", "-monitor", "none"])
        .args(["-kernel", &at("image"), "-initrd", &at("root.cpio")])
        .args(["-append", &format!("console=ttysclp0 panic=-1 guest.mode=l2 {PATIENCE} {args}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}
