//! Files and block devices as virtio-blk disks.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hull_protocol::vmm::{DiskAccess, DiskConfig, DiskDiscard, DiskExtent, RateLimits};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::RootfsError;

/// Blocks of a disk.
pub const BLOCK: u64 = 4096;

/// Sectors, of which every disk consists (virtio 1.3 §5.2).
const SECTOR: u64 = 512;

/// A disk with its open files.
#[derive(Debug)]
pub struct Disk {
    /// What the monitor is told.
    pub config: DiskConfig,
    /// One descriptor for each extent.
    pub fds: Vec<OwnedFd>,
}

impl Disk {
    /// Opens the pieces of a disk.
    pub fn open(serial: &str, access: DiskAccess, pieces: &[PathBuf]) -> Result<Self, RootfsError> {
        let mut fds = Vec::with_capacity(pieces.len());
        let mut extents = Vec::with_capacity(pieces.len());
        for path in pieces {
            let (file, length) = open_piece(path, access)
                .map_err(|source| RootfsError::Open { path: path.clone(), source })?;
            if length == 0 || length % BLOCK != 0 {
                return Err(RootfsError::Length { path: path.clone(), length });
            }
            extents.push(DiskExtent { offset: 0, length });
            fds.push(file.into());
        }
        Ok(Self::new(serial, access, extents, fds))
    }

    /// A block device that is open.
    pub fn of_device(serial: &str, access: DiskAccess, mut device: File) -> io::Result<Self> {
        let length = device.seek(SeekFrom::End(0))?;
        if length == 0 || length % SECTOR != 0 {
            return Err(io::Error::other(format!("it is empty, or has odd sectors: {length} bytes")));
        }
        let extents = vec![DiskExtent { offset: 0, length }];
        Ok(Self::new(serial, access, extents, vec![device.into()]))
    }

    fn new(serial: &str, access: DiskAccess, extents: Vec<DiskExtent>, fds: Vec<OwnedFd>) -> Self {
        let (discard, limits) = (DiskDiscard::On, RateLimits::default());
        let config = DiskConfig { serial: serial.to_owned(), access, extents, discard, limits };
        Self { config, fds }
    }

    /// How long each run of so many pieces is, in bytes.
    pub fn lengths(&self, runs: impl Iterator<Item = usize>) -> Vec<u64> {
        let mut pieces = self.config.extents.iter().map(|extent| extent.length);
        runs.map(|run| pieces.by_ref().take(run).sum()).collect()
    }

    /// The same, no faster than this.
    pub fn limited(mut self, limits: RateLimits) -> Self {
        self.config.limits = limits;
        self
    }
}

fn open_piece(path: &Path, access: DiskAccess) -> io::Result<(File, u64)> {
    // O_NONBLOCK: a fifo in the place of a file must not hang the pod.
    let mut file = OpenOptions::new()
        .read(true)
        .write(access == DiskAccess::ReadWrite)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"));
    }
    // On a block device the flag would make requests fail that have to wait.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?) - OFlag::O_NONBLOCK;
    fcntl(&file, FcntlArg::F_SETFL(flags))?;
    let length = file.seek(SeekFrom::End(0))?;
    Ok((file, length))
}
