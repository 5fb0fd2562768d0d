// SPDX-License-Identifier: GPL-2.0
//! Verified transfers between two network cards that are connected to each other.
//!
//! One card, the *far* one, moves to its own network namespace. Otherwise the kernel
//! would route the data locally, without using the cards.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::block::KIB;
use crate::function::Function;
use crate::netlink;
use crate::pattern::{Stream, Sum};
use crate::say;
use crate::sysfs;

const NEAR: [u8; 4] = [10, 99, 0, 1];
const FAR: [u8; 4] = [10, 99, 0, 2];
const PORT: u16 = 7000;
const CHUNK: usize = 64 * KIB;
const HELLO: &[u8; 4] = b"far!";
const PATIENCE: Duration = Duration::from_secs(20);

/// The drivers of the emulated cards.
pub const DRIVERS: [&str; 2] = ["igb", "e1000e"];

/// The two configured cards.
pub struct Pair {
    near: String,
    far: FarSide,
}

/// The checksums and the time of a transfer.
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
    pub time: Duration,
}

/// Which side sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    FromFar,
    ToFar,
}

/// A job for the far side's thread, and a channel for its result.
struct Job {
    seed: u64,
    bytes: usize,
    direction: Direction,
    answer: Sender<Result<u64>>,
}

/// The thread in the far card's namespace. When it ends, it moves the card back to the
/// initial namespace.
struct FarSide {
    jobs: Option<Sender<Job>>,
    namespace: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// The far card's address as text, for programs.
pub fn far_address() -> String {
    std::net::Ipv4Addr::from(FAR).to_string()
}

/// The functions of both cards.
pub fn functions() -> Result<[Function; 2]> {
    let [near, far] = DRIVERS;
    Ok([Function::first_of(near)?, Function::first_of(far)?])
}

impl Pair {
    /// Configures both cards.
    pub fn connect() -> Result<Self> {
        Self::connect_from(&functions()?[0])
    }

    /// Configures another function in place of the near card.
    pub fn connect_from(near: &Function) -> Result<Self> {
        let [_, far] = functions()?;
        let (near, far) = (near.interface()?, far.interface()?);
        let far = FarSide::start(&far)?;
        netlink::address(&near, NEAR)?;
        netlink::up(&near)?;
        Ok(Self { near, far })
    }

    /// Transfers `bytes` over TCP and compares the checksums of both ends.
    pub fn transfer(&self, seed: u64, bytes: usize, direction: Direction) -> Result<Outcome> {
        let before = self.wire_bytes()?;
        let listener = TcpListener::bind(SocketAddr::from((NEAR, PORT)))?;
        let answer = self.far.submit(seed, bytes, direction)?;
        let (stream, start) = accept(&listener, &answer)?;
        let here = match direction {
            Direction::FromFar => receive(stream, bytes),
            Direction::ToFar => send(stream, seed, bytes),
        };
        let time = start.elapsed();
        let there = answer.recv_timeout(PATIENCE).context("the far side does not answer")??;
        let here = here?;
        ensure!(here == there, "checksum {here:016x} here, {there:016x} on the far side");
        let wire = self.wire_bytes()? - before;
        ensure!(wire >= bytes as u64, "only {wire} bytes went over the card");
        let (sent, received) =
            if direction == Direction::ToFar { (here, there) } else { (there, here) };
        Ok(Outcome { sent, received, time })
    }

    /// Starts a program on the far side. There must have been a transfer before, because
    /// the first one configures the far card.
    pub fn start_far(&self, command: &mut Command) -> Result<Child> {
        let namespace = self.far.namespace.as_fd();
        // A child inherits the namespace of the thread that creates it.
        let start = || -> Result<Child> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(command.spawn()?)
        };
        std::thread::scope(|scope| scope.spawn(start).join())
            .map_err(|_| anyhow!("the thread on the far side died"))?
    }

    /// The number of bytes that the near card has sent and received.
    fn wire_bytes(&self) -> Result<u64> {
        let value = |file: &str| -> Result<u64> {
            let path = format!("/sys/class/net/{}/statistics/{file}", self.near);
            Ok(sysfs::read(path)?.parse()?)
        };
        Ok(value("rx_bytes")? + value("tx_bytes")?)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Best effort: a card that stays up does not disturb later tests.
        let _ = netlink::down(&self.near);
    }
}

impl FarSide {
    fn start(interface: &str) -> Result<Self> {
        let (jobs, queue) = channel();
        let (ready, namespace) = channel();
        let name = interface.to_owned();
        let thread = std::thread::spawn(move || far_thread(&name, &ready, &queue));
        let namespace =
            namespace.recv_timeout(PATIENCE).context("the far side did not start")??;
        netlink::move_to(interface, namespace.as_fd())?;
        let far = Self { jobs: Some(jobs), namespace, thread: Some(thread) };
        Ok(far)
    }

    fn submit(
        &self,
        seed: u64,
        bytes: usize,
        direction: Direction,
    ) -> Result<Receiver<Result<u64>>> {
        let (answer, result) = channel();
        let job = Job { seed, bytes, direction, answer };
        let jobs = self.jobs.as_ref().expect("open until dropped");
        jobs.send(job).map_err(|_| anyhow!("the far side is gone"))?;
        Ok(result)
    }
}

impl Drop for FarSide {
    fn drop(&mut self) {
        // Closing the queue ends the thread.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Enters a new namespace, sends it to the near side, and runs jobs until the queue is
/// closed.
fn far_thread(interface: &str, ready: &Sender<Result<OwnedFd>>, queue: &Receiver<Job>) {
    let _ = ready.send(new_namespace());
    let mut configured = false;
    for job in queue {
        let result = if configured { Ok(()) } else { configure_far(interface) };
        configured = result.is_ok();
        let _ = job.answer.send(result.and_then(|()| far_job(&job)));
    }
    if configured {
        let _ = netlink::down(interface);
    }
    // Connections that are still closing keep the namespace alive, so do not rely on its
    // end to get the card back.
    let first = File::open("/proc/1/ns/net");
    let back = first.map(|first| netlink::move_to(interface, first.as_fd()));
    if !matches!(back, Ok(Ok(()))) {
        say!("# nic: {interface} stays in its namespace: {back:?}");
    }
}

fn new_namespace() -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace")?;
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

fn configure_far(interface: &str) -> Result<()> {
    netlink::address(interface, FAR)?;
    netlink::up(interface)
}

fn far_job(job: &Job) -> Result<u64> {
    let stream = connect()?;
    match job.direction {
        Direction::FromFar => send(stream, job.seed, job.bytes),
        Direction::ToFar => receive(stream, job.bytes),
    }
}

/// Connects as soon as both links are up, with short timeouts, because TCP would wait for
/// seconds after the first lost packet. Sends a greeting, because the near side may also
/// accept attempts that timed out here.
fn connect() -> Result<TcpStream> {
    let near = SocketAddr::from((NEAR, PORT));
    let connect = || TcpStream::connect_timeout(&near, Duration::from_millis(250)).ok();
    let mut stream = sysfs::wait_for("connection between the cards", PATIENCE, connect)?;
    stream.write_all(HELLO)?;
    Ok(stream)
}

/// Waits for the far side to connect, or to report an error.
fn accept(listener: &TcpListener, answer: &Receiver<Result<u64>>) -> Result<(TcpStream, Instant)> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + PATIENCE + Duration::from_secs(1);
    while Instant::now() < end {
        if let Some(stream) = accept_greeted(listener) {
            return Ok((stream, Instant::now()));
        }
        if let Ok(early) = answer.try_recv() {
            early.context("the far side failed")?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("the far side did not connect")
}

/// Accepts the next connection, if the far side still uses it.
fn accept_greeted(listener: &TcpListener) -> Option<TcpStream> {
    let (mut stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut hello = [0; HELLO.len()];
    stream.read_exact(&mut hello).ok()?;
    (hello == *HELLO).then_some(stream)
}

fn send(mut stream: TcpStream, seed: u64, bytes: usize) -> Result<u64> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut pattern, mut sum) = (Stream::new(seed), Sum::new());
    let mut chunk = vec![0; CHUNK];
    for _ in 0..bytes / CHUNK {
        pattern.fill(&mut chunk);
        sum.add(&chunk);
        stream.write_all(&chunk).context("send over TCP")?;
    }
    Ok(sum.value())
}

fn receive(mut stream: TcpStream, bytes: usize) -> Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut sum = Sum::new();
    let mut chunk = vec![0; CHUNK];
    for _ in 0..bytes / CHUNK {
        stream.read_exact(&mut chunk).context("receive over TCP")?;
        sum.add(&chunk);
    }
    Ok(sum.value())
}
