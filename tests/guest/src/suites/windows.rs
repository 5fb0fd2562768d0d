// SPDX-License-Identifier: GPL-2.0
//! Two drives with different windows in one domain: a domain of a test module, and those
//! of iommufd and of VFIO's container.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::libc::c_ulong;

use super::modules;
use crate::block::{MIB, Transfer};
use crate::cmdline::Cmdline;
use crate::function::Function;
use crate::iommufd::{Range, Space, TYPE, call, call_with, open};
use crate::ktap::Suite;

const SET_IOMMU: c_ulong = TYPE + 102;
const GROUP_SET_CONTAINER: c_ulong = TYPE + 104;
const GROUP_GET_DEVICE_FD: c_ulong = TYPE + 106;
const IOMMU_GET_INFO: c_ulong = TYPE + 112;

pub fn run(suite: &mut Suite, cmdline: &Cmdline) -> Result<()> {
    let drives = Function::of_driver("nvme");
    ensure!(drives.len() == 2, "the machine has {} drives, not two", drives.len());
    modules::run(suite, cmdline, "windows")?;
    let window = |drive: &Function| -> Result<Range> {
        let start = cmdline.start_dma(&drive.address).unwrap_or(0x1_0000_0000);
        Ok((start, cmdline.end_dma(&drive.address).context("this suite needs guest.ends=")?))
    };
    let windows = [window(&drives[0])?, window(&drives[1])?];
    let common = (windows[0].0.max(windows[1].0), windows[0].1.min(windows[1].1));
    for drive in &drives {
        drive.unbind()?;
        drive.set_override("vfio-pci")?;
        drive.probe()?;
    }
    suite.test("iommufd offers what both reach, and no more", || iommufd(&drives, windows, common));
    suite.test("VFIO's container offers what both reach", || container(&drives, windows, common));
    for drive in &drives {
        drive.unbind()?;
        drive.set_override("")?;
        drive.probe()?;
    }
    suite.test("both drives work afterwards", || {
        for (drive, seed) in drives.iter().zip(820..) {
            Transfer::new(seed, 2 * MIB).verify(&drive.disk()?)?;
        }
        Ok(())
    });
    Ok(())
}

fn expect(what: &str, found: &[Range], expected: Range) -> Result<()> {
    ensure!(found == [expected], "{what}: {found:x?}, expected {expected:x?}");
    Ok(())
}

/// With the first drive alone its window can be mapped, with both drives only their
/// common range. A map outside it is refused.
fn iommufd(drives: &[Function], windows: [Range; 2], common: Range) -> Result<()> {
    let space = Space::new()?;
    let mut devices = Vec::new();
    for (drive, expected) in drives.iter().zip([windows[0], common]) {
        devices.push(space.attach(drive)?);
        expect("iommufd", &space.ranges()?, expected)?;
    }
    let page = crate::block::Buffer::new(4096, 0);
    space.map(&page, common.0)?;
    space.map(&page, common.1 - 4095)?;
    for iova in [common.0 - 4096, common.1 + 1] {
        ensure!(space.map(&page, iova).is_err(), "a map at {iova:#x} succeeded");
    }
    Ok(())
}

fn container(drives: &[Function], windows: [Range; 2], common: Range) -> Result<()> {
    const TYPE1V2: c_ulong = 3;
    let container = open("/dev/vfio/vfio")?;
    let mut files = Vec::new();
    for (drive, expected) in drives.iter().zip([windows[0], common]) {
        let group = open(Path::new("/dev/vfio").join(drive.group().context("no group")?))?;
        let mut fd: RawFd = container.as_raw_fd();
        call(&group, GROUP_SET_CONTAINER, &mut fd)?;
        if files.is_empty() {
            call_with(&container, SET_IOMMU, TYPE1V2)?;
        }
        let address = std::ffi::CString::new(drive.address.as_str())?;
        let device = call(&group, GROUP_GET_DEVICE_FD, address.as_ptr().cast_mut())?;
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        files.push((group, unsafe { File::from_raw_fd(device) }));
        expect("the container", &offered(&container)?, expected)?;
    }
    Ok(())
}

/// The ranges that the capability VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE lists.
fn offered(container: &File) -> Result<Vec<Range>> {
    const IOVA_RANGE: u16 = 1;
    /// Offset of `cap_offset`, after the size, the flags and the page sizes
    const FIRST: usize = 16;
    let mut info = [0_u64; 64];
    info[0] = (size_of_val(&info) as u64) << 32;
    call(container, IOMMU_GET_INFO, info.as_mut_ptr())?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_be_bytes()).collect();
    let half = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four"));
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let mut at = half(FIRST) as usize;
    // Header: ID and version, offset of the next capability; then the number of ranges
    // and padding.
    while at != 0 && half(at) >> 16 != u32::from(IOVA_RANGE) {
        at = half(at + 4) as usize;
    }
    ensure!(at != 0, "the container lists no IOVA ranges");
    let ranges = (0..half(at + 8) as usize).map(|i| at + 16 + 16 * i);
    Ok(ranges.map(|at| (word(at), word(at + 8))).collect())
}
