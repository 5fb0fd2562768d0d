// SPDX-License-Identifier: GPL-2.0
//! Plugs and unplugs devices of a running guest, as the guest asks for it, and has
//! instructions for them refused.
//!
//! The guest prints a line on its console, `guest: want plug NAME`, `guest: want
//! unplug NAME` or `guest: want fault NAME OP:SKIP:COUNT:CC:STATUS`
//! (`integration/qemu`), and reads a line there when it was done. A number of seconds may
//! follow a fault: then the fault ends after this time, even if the guest waits for that in
//! an interrupt. The answer to `guest: want left NAME` is what is left of a fault. The name
//! is a device of [`DEVICES`]. `guest: want memory BYTES` asks for that much memory on top of
//! what it started with, from the `virtio-mem` called [`MEMORY`]. QEMU gets its commands over
//! QMP, on a socket that it inherits: no path can be too long, and none is left behind.

use crate::{
    ktap::printed,
    prelude::*,
    qemu::{Device, DEVICES},
};
use qapi::{qmp, Any, Dictionary, Qmp, Stream};
use std::{
    io::{BufReader, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// How long QEMU may take to answer, and a guest to release a device.
const LIMIT: Duration = Duration::from_secs(60);

/// The connection to one QEMU.
pub struct Hotplug {
    qmp: Qmp<Stream<BufReader<UnixStream>, UnixStream>>,
    is_greeted: bool,
}

impl Hotplug {
    /// Adds the monitor to a command line. The other value must live until the
    /// command has started.
    pub fn add_to(command: &mut Command) -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair().context("no sockets for QEMU's monitor")?;
        ours.set_read_timeout(Some(LIMIT))?;
        let theirs = OwnedFd::from(theirs);
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        command
            .arg("-chardev")
            .arg(format!("socket,id=qmp,fd={}", theirs.as_raw_fd()))
            .args(["-mon", "chardev=qmp,mode=control"]);
        let qmp = Qmp::new(Stream::new(BufReader::new(ours.try_clone()?), ours));
        let is_greeted = false;
        Ok((Self { qmp, is_greeted }, theirs))
    }

    /// Does what a line of the console asks for; most ask for nothing. The
    /// answer goes to the guest's keyboard.
    pub fn obey(&mut self, line: &str, mut keyboard: impl Write) -> Result<()> {
        let Some(wish) = printed(line).strip_prefix("guest: want ") else {
            return Ok(());
        };
        self.greet()?;
        let done = |()| "done".to_owned();
        let answer = match wish.split(' ').collect::<Vec<_>>()[..] {
            ["plug", name] => self.plug(find(name)?).map(done),
            ["unplug", name] => self.unplug(find(name)?).map(done),
            ["left", name] => self.left(find(name)?),
            ["fault", name, what] => self.fault(find(name)?, what).map(done),
            ["fault", name, what, seconds] => {
                let (device, seconds) = (find(name)?, seconds.parse()?);
                self.fault(device, what)?;
                writeln!(keyboard, "done").context("the guest does not listen")?;
                std::thread::sleep(Duration::from_secs(seconds));
                return self.fault(device, NO_FAULT);
            }
            ["memory", bytes] => {
                let bytes: u64 = bytes.parse()?;
                self.set(MEMORY.to_owned(), SIZE, bytes.into()).map(done)
            }
            _ => bail!("no guest can want {wish:?}"),
        }
        .with_context(|| format!("QEMU does not do what the guest wants, {wish:?}"))?;
        writeln!(keyboard, "{answer}").context("the guest does not listen")
    }

    fn greet(&mut self) -> Result<()> {
        if !self.is_greeted {
            self.qmp.handshake()?;
            self.is_greeted = true;
        }
        Ok(())
    }

    /// Unplugs a device if it is there, plugs it otherwise. It is no error if the
    /// guest has not released it yet.
    pub fn storm(&mut self, id: &str) -> Result<()> {
        self.greet()?;
        if self.has(id)? {
            let id = id.to_owned();
            drop(self.qmp.execute(&qmp::device_del { id }));
        } else {
            self.plug(find(id)?)?;
        }
        Ok(())
    }

    /// Ends that, with the device plugged.
    pub fn end_storm(&mut self, id: &str) -> Result<()> {
        self.greet()?;
        let device = find(id)?;
        if self.has(id)? {
            self.unplug(device)?;
        }
        self.plug(device)
    }

    fn plug(&mut self, device: &Device) -> Result<()> {
        let mut arguments = Dictionary::new();
        let properties = device.properties.split(',');
        for (name, value) in properties.filter_map(|text| text.split_once('=')) {
            let value = match value {
                "on" => true.into(),
                text => text.into(),
            };
            arguments.insert(name.into(), value);
        }
        let command = qmp::device_add {
            driver: device.model.into(),
            id: Some(device.id.into()),
            bus: None,
            arguments,
        };
        self.qmp.execute(&command)?;
        Ok(())
    }

    /// Returns when the device is gone, so that it can be plugged again. Its event
    /// is no proof: QEMU sends it only when it drops its own last reference.
    fn unplug(&mut self, device: &Device) -> Result<()> {
        let id = device.id.to_owned();
        self.qmp.execute(&qmp::device_del { id })?;
        let end = Instant::now() + LIMIT;
        while self.has(device.id)? {
            if Instant::now() > end {
                bail!("the guest holds it after {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn set(&mut self, path: String, property: &str, value: Any) -> Result<()> {
        let property = property.to_owned();
        self.qmp.execute(&qmp::qom_set {
            path,
            property,
            value,
        })?;
        Ok(())
    }

    fn fault(&mut self, device: &Device, what: &str) -> Result<()> {
        self.set(zpci_path(device), FAULT, what.into())
    }

    /// What is left of it, in the same notation.
    fn left(&mut self, device: &Device) -> Result<String> {
        let left = self.qmp.execute(&qmp::qom_get {
            path: zpci_path(device),
            property: FAULT.to_owned(),
        })?;
        Ok(left.as_str().context("a fault is a text")?.to_owned())
    }

    /// Whether the machine has a device of this id.
    fn has(&mut self, id: &str) -> Result<bool> {
        let path = "/machine/peripheral".to_owned();
        let children = self.qmp.execute(&qmp::qom_list { path })?;
        Ok(children.iter().any(|child| child.name == id))
    }
}

fn find(id: &str) -> Result<&'static Device> {
    let device = DEVICES.iter().find(|device| device.id == id);
    device.with_context(|| format!("there is no device {id}"))
}

/// The property of a zPCI function that has its instructions refused.
const FAULT: &str = "x-fault";
const NO_FAULT: &str = "0:0:0:0:0";
/// The device that provides memory later.
const MEMORY: &str = "/machine/peripheral/memory-later";
const SIZE: &str = "requested-size";

/// What is refused is a property of the device's zPCI function, which has to have a name
/// for this: that of the device behind `zpci-`.
fn zpci_path(device: &Device) -> String {
    format!("/machine/peripheral/zpci-{}", device.id)
}
