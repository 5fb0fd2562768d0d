// SPDX-License-Identifier: GPL-2.0
//! `guest.bench=throughput`: throughput of devices with standard programs, fio on the
//! NVMe drive and iperf3 between the two network cards.
//!
//! A result is a line `bench: throughput NAME KIB IOS RPCITS NANOSECONDS`: KiB/s, the number
//! of requests of the drive or of maps and unmaps of the cards, the number of refreshes, and
//! the time during which processors were not idle. With `guest.counted=1`, each load has a
//! fixed size, and the clock of the machine counts instructions.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::block::KIB;
use crate::cmdline::Cmdline;
use crate::console::say;
use crate::counters::Counters;
use crate::function::Function;
use crate::nic::{self, Direction, Pair};
use crate::sysfs;
use crate::tracing::Counted;

/// Directory of the programs with their libraries
const FOLDER: &str = "/load";
/// How long each program runs, in seconds
const SECONDS: &str = "2";
/// The size of a counted load: requests of the drive, MiB of a stream, packets
const COUNTED_REQUESTS: u64 = 8192;
const COUNTED_MIB: &str = "64M";
const COUNTED_PACKETS: &str = "16384";
/// How long a server takes until it listens
const LISTENS: Duration = Duration::from_millis(500);

/// fio's jobs: pattern, block size in KiB, queue depth
const REQUESTS: [(&str, u64, u32); 8] = [
    ("randread", 4, 1),
    ("randread", 4, 32),
    ("randwrite", 4, 1),
    ("randwrite", 4, 32),
    ("read", 128, 1),
    ("read", 128, 32),
    ("write", 128, 1),
    ("write", 128, 32),
];

/// iperf3's streams, from the point of view of the near card: name, arguments of the client,
/// and those for the size of a counted load
const STREAMS: [(&str, &[&str], [&str; 2]); 3] = [
    ("tcp-sent", &[], ["--bytes", COUNTED_MIB]),
    ("tcp-received", &["--reverse"], ["--bytes", COUNTED_MIB]),
    // Packets of 64 bytes, as many as the cards can send
    (
        "udp-64-sent",
        &["--udp", "--bitrate", "0", "--length", "64"],
        ["--blockcount", COUNTED_PACKETS],
    ),
];

pub fn run(cmdline: &Cmdline) -> Result<()> {
    let counted = cmdline.value("guest.counted") == Some("1");
    let nvme = Function::first_of("nvme")?;
    for request in REQUESTS {
        requests(&nvme, request, counted)?;
    }
    let pair = Pair::connect()?;
    // The first transfer configures the far card.
    pair.transfer(1, 64 * KIB, Direction::ToFar)?;
    for (name, args, size) in STREAMS {
        let size = if counted { size } else { ["--time", SECONDS] };
        stream(&pair, name, args, size)?;
    }
    Ok(())
}

/// The refreshes of some functions, and the time of all processors but for their idle time.
struct Start<'a> {
    functions: &'a [Function],
    refreshes: u64,
    nanoseconds: u64,
}

impl<'a> Start<'a> {
    fn of(functions: &'a [Function]) -> Result<Self> {
        let refreshes = refreshes(functions)?;
        Ok(Self { functions, refreshes, nanoseconds: busy()? })
    }

    /// What was needed since then: refreshes and nanoseconds.
    fn end(self) -> Result<(u64, u64)> {
        let nanoseconds = busy()? - self.nanoseconds;
        Ok((refreshes(self.functions)? - self.refreshes, nanoseconds))
    }
}

/// How long processors were not idle, in nanoseconds.
fn busy() -> Result<u64> {
    let text = sysfs::read("/sys/fs/cgroup/cpu.stat")?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    let microseconds: u64 = usage.context("cpu.stat: no usage_usec")?.parse()?;
    Ok(microseconds * 1000)
}

/// The command for a program, with its own loader and libraries.
fn program(name: &str) -> Command {
    let mut command = Command::new(format!("{FOLDER}/ld64.so.1"));
    command.args(["--library-path", FOLDER, &format!("{FOLDER}/{name}")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: Output, what: &str) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {} {text} {errors}", output.status);
    Ok(text)
}

/// The number of refreshes of these functions.
fn refreshes(functions: &[Function]) -> Result<u64> {
    functions.iter().try_fold(0, |sum, function| {
        let read = Counters::read(function)?;
        Ok(sum + read.global + read.sync_map + read.sync)
    })
}

fn requests(nvme: &Function, (order, size, depth): (&str, u64, u32), counted: bool) -> Result<()> {
    // Without io_uring in the kernel, libaio gives the same requests.
    let engine = match std::fs::exists("/proc/sys/kernel/io_uring_disabled")? {
        true => "io_uring",
        false => "libaio",
    };
    let limit = match counted {
        true => vec![format!("--io_size={}k", COUNTED_REQUESTS * size)],
        false => vec!["--time_based".to_owned(), format!("--runtime={SECONDS}")],
    };
    let start = Start::of(std::slice::from_ref(nvme))?;
    let output = program("fio")
        .args(["--name=bench", "--direct=1", "--thread", "--minimal", "--size=128m"])
        .args(limit)
        .arg("--norandommap")
        .arg(format!("--filename={}", nvme.disk()?.display()))
        .arg(format!("--ioengine={engine}"))
        .args([format!("--rw={order}"), format!("--bs={size}k"), format!("--iodepth={depth}")])
        .output()
        .context("start fio")?;
    let (refreshes, busy) = start.end()?;
    let line = text(output, "fio")?;
    // Terse format, version 3: KiB and KiB/s of reads, then of writes
    let fields: Vec<&str> = line.trim().split(';').collect();
    let first = if order.ends_with("read") { 5 } else { 46 };
    let field = |at: usize| -> Result<u64> {
        fields.get(at).and_then(|field| field.parse().ok()).with_context(|| line.clone())
    };
    let (moved, rate) = (field(first)?, field(first + 1)?);
    ensure!(moved > 0, "fio transferred nothing: {line}");
    say!("bench: throughput {order}-{size}k-{depth} {rate} {} {refreshes} {busy}", moved / size);
    Ok(())
}

fn stream(pair: &Pair, name: &str, args: &[&str], size: [&str; 2]) -> Result<()> {
    let cards = nic::functions()?;
    let server: Child = pair.start_far(program("iperf3").args(["--server", "--one-off"]))?;
    std::thread::sleep(LISTENS);
    // How many pages a call maps depends on the packets.
    let calls = [Counted::start("iommu/map")?, Counted::start("iommu/unmap")?];
    let start = Start::of(&cards)?;
    let output = program("iperf3")
        .args(["--client", &nic::far_address(), "--format", "k"])
        .args(args)
        .args(size)
        .output()
        .context("start iperf3")?;
    let (refreshes, busy) = start.end()?;
    let calls = calls.iter().try_fold(0, |sum, calls| anyhow::Ok(sum + calls.count()?))?;
    let lines = text(output, "iperf3")?;
    text(server.wait_with_output()?, "iperf3's server")?;
    // "[ 5] 0.00-2.00 sec 100 KBytes 410 Kbits/sec ... receiver"
    let line = lines.lines().rfind(|line| line.trim_end().ends_with("receiver"));
    let line = line.with_context(|| lines.clone())?;
    let mut fields = line.split_whitespace().rev().skip_while(|field| *field != "Kbits/sec");
    let rate: Option<f64> = fields.nth(1).and_then(|field| field.parse().ok());
    let rate = rate.with_context(|| line.to_owned())? as u64 / 8;
    ensure!(rate > 0, "iperf3 transferred nothing: {line}");
    say!("bench: throughput {name} {rate} {calls} {refreshes} {busy}");
    Ok(())
}
