//! Parts of a disk as disks of their own, without a table on it that would say so.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `BLKPG` and its operation (linux/blkpg.h).
const BLKPG: libc::Ioctl = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;

/// A part of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// From 1 to 255; it follows the disk's name in that of the new one.
    pub number: u8,
    /// In bytes, as the length is: whole blocks of the disk.
    pub start: u64,
    /// More than none.
    pub length: u64,
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Request {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    partition: *const Described,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct Described {
    start: i64,
    length: i64,
    number: libc::c_int,
    /// Not used by the kernel.
    names: [u8; 128],
}

/// Has the kernel make the part of `disk` a disk.
pub fn add_partition(disk: BorrowedFd<'_>, partition: Partition) -> nix::Result<()> {
    let bytes = |number: u64| i64::try_from(number).map_err(|_| nix::errno::Errno::EFBIG);
    let described = Described {
        start: bytes(partition.start)?,
        length: bytes(partition.length)?,
        number: libc::c_int::from(partition.number),
        names: [0; 128],
    };
    let request = Request {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        // What the kernel copies, which it does not check.
        length: libc::c_int::try_from(size_of::<Described>()).unwrap_or_default(),
        partition: &raw const described,
    };
    // SAFETY: BLKPG reads the request and the partition that it points to, and both outlive the call.
    check(libc::c_long::from(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const request) }))?;
    Ok(())
}
