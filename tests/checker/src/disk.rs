//! A disk, reached by a node of one's own.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use crate::probe::{check, mknod, open};

/// `BLKROSET`: whether the kernel takes the disk for read-only.
const BLKROSET: libc::Ioctl = 0x125d;

/// Reads a byte.
pub fn read(disk: &str) -> io::Result<()> {
    open(&node(disk)?, libc::O_RDONLY)
}

/// Tells the kernel that the disk can be written, and writes over its first sector, which no file system uses.
pub fn write(disk: &str) -> io::Result<()> {
    let path = node(disk)?;
    let readable = fs::File::open(&path)?;
    let no = 0i32;
    // SAFETY: an open descriptor, and an integer that outlives the call.
    check(unsafe { libc::ioctl(readable.as_raw_fd(), BLKROSET, &raw const no) }.into())?;
    let mut file = fs::OpenOptions::new().write(true).open(&path)?;
    file.write_all(&[0; 512])?;
    file.sync_all()
}

/// A node for it, by the number that sysfs tells.
fn node(disk: &str) -> io::Result<String> {
    let number = fs::read_to_string(format!("/sys/block/{disk}/dev"))?;
    let path = format!("/tmp/{disk}");
    match mknod(&format!("{path}=b,{}", number.trim().replace(':', ","))) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
        made => made.map(|()| path),
    }
}
