// SPDX-License-Identifier: GPL-2.0
//! `guest.bench=throughput`: what devices move in a second, by programs that everybody
//! knows: fio on the NVMe, iperf3 between the two network cards.
//!
//! A figure is a line `bench: throughput NAME KIB IOS RPCITS`: KiB a second, how many
//! requests of a drive or mapped pages of cards, and how many refreshes these took.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::block::KIB;
use crate::console::say;
use crate::counters::Counters;
use crate::function::Function;
use crate::nic::{self, Direction, Pair};

/// Where the host's tools put the programs with their libraries.
const FOLDER: &str = "/load";
/// How long each of them works, in seconds.
const SECONDS: &str = "2";
/// Until a server listens.
const LISTENS: Duration = Duration::from_millis(500);

/// fio's requests: their order, their size in KiB, how many at a time.
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

/// iperf3's streams, from the side of the near card: a name, and words for the client.
const STREAMS: [(&str, &[&str]); 3] = [
    ("tcp-sent", &[]),
    ("tcp-received", &["--reverse"]),
    // As many as the cards carry, of 64 bytes
    ("udp-64-sent", &["--udp", "--bitrate", "0", "--length", "64"]),
];

pub fn run() -> Result<()> {
    let nvme = Function::first_of("nvme")?;
    for request in REQUESTS {
        requests(&nvme, request)?;
    }
    let pair = Pair::connect()?;
    // The first one sets the far card up.
    pair.transfer(1, 64 * KIB, Direction::ToFar)?;
    STREAMS.iter().try_for_each(|(name, words)| stream(&pair, name, words))
}

/// A program, by the loader and with the libraries that it was made for.
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

/// The pages that some functions had mapped, and their refreshes.
fn work(functions: &[Function]) -> Result<(u64, u64)> {
    functions.iter().try_fold((0, 0), |(mapped, refreshes), function| {
        let read = Counters::read(function)?;
        Ok((mapped + read.mapped, refreshes + read.global + read.sync_map + read.sync))
    })
}

fn requests(nvme: &Function, (order, size, depth): (&str, u64, u32)) -> Result<()> {
    // Where the kernel has no io_uring, what the device sees is the same by libaio.
    let engine = match std::fs::exists("/proc/sys/kernel/io_uring_disabled")? {
        true => "io_uring",
        false => "libaio",
    };
    let (_, before) = work(std::slice::from_ref(nvme))?;
    let output = program("fio")
        .args(["--name=bench", "--direct=1", "--thread", "--minimal", "--size=128m"])
        .args(["--time_based", &format!("--runtime={SECONDS}"), "--norandommap"])
        .arg(format!("--filename={}", nvme.disk()?.display()))
        .arg(format!("--ioengine={engine}"))
        .args([format!("--rw={order}"), format!("--bs={size}k"), format!("--iodepth={depth}")])
        .output()
        .context("start fio")?;
    let line = text(output, "fio")?;
    let refreshes = work(std::slice::from_ref(nvme))?.1 - before;
    // The terse format, version 3: KiB and KiB a second of reads, then of writes.
    let fields: Vec<&str> = line.trim().split(';').collect();
    let first = if order.ends_with("read") { 5 } else { 46 };
    let field = |at: usize| -> Result<u64> {
        fields.get(at).and_then(|field| field.parse().ok()).with_context(|| line.clone())
    };
    let (moved, rate) = (field(first)?, field(first + 1)?);
    ensure!(moved > 0, "fio moved nothing: {line}");
    say!("bench: throughput {order}-{size}k-{depth} {rate} {} {refreshes}", moved / size);
    Ok(())
}

fn stream(pair: &Pair, name: &str, words: &[&str]) -> Result<()> {
    let cards = nic::functions()?;
    let server: Child = pair.start_far(program("iperf3").args(["--server", "--one-off"]))?;
    std::thread::sleep(LISTENS);
    let (mapped_before, before) = work(&cards)?;
    let output = program("iperf3")
        .args(["--client", &nic::far_address(), "--time", SECONDS, "--format", "k"])
        .args(words)
        .output()
        .context("start iperf3")?;
    let (mapped, refreshes) = work(&cards)?;
    let (mapped, refreshes) = (mapped - mapped_before, refreshes - before);
    let lines = text(output, "iperf3")?;
    text(server.wait_with_output()?, "iperf3's server")?;
    // "[ 5] 0.00-2.00 sec 100 KBytes 410 Kbits/sec ... receiver"
    let line = lines.lines().rfind(|line| line.trim_end().ends_with("receiver"));
    let line = line.with_context(|| lines.clone())?;
    let mut words = line.split_whitespace().rev().skip_while(|word| *word != "Kbits/sec");
    let rate: Option<f64> = words.nth(1).and_then(|word| word.parse().ok());
    let rate = rate.with_context(|| line.to_owned())? as u64 / 8;
    ensure!(rate > 0, "iperf3 moved nothing: {line}");
    say!("bench: throughput {name} {rate} {mapped} {refreshes}");
    Ok(())
}
