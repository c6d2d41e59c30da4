//! Consecutive pieces of files as one disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;

use hull_protocol::vmm::{DiskAccess, DiskExtent};
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};

use super::SECTOR;
use crate::virtio::segments::Segments;

/// Why an extent cannot be part of a disk.
#[derive(Debug, thiserror::Error)]
pub enum ExtentError {
    /// Offset or length is not in whole sectors, or the length is zero.
    #[error("offset {offset} or length {length} is not a whole number of 512-byte sectors, or nothing")]
    Sectors {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u64,
    },
    /// It ends behind the end of its file.
    #[error("it ends at byte {end} of a file of {size}")]
    BeyondFile {
        /// Where it ends.
        end: u64,
        /// How long the file is.
        size: u64,
    },
    /// The sum of lengths or offsets is more than a file offset holds.
    #[error("it makes the disk too large")]
    TooLarge,
    /// Neither a regular file nor a block device.
    #[error("it is neither a regular file nor a block device")]
    NotAFile,
    /// Opened without the access that the disk needs, or for appending, which would put every write at the end.
    #[error("its descriptor was not opened for what the disk needs: {0}")]
    Descriptor(&'static str),
    /// The descriptor cannot be examined.
    #[error("it cannot be examined")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
struct Extent {
    file: File,
    /// Where it starts on the disk, in bytes.
    start: u64,
    /// Where it starts in the file, in bytes.
    offset: u64,
    /// In bytes.
    length: u64,
}

/// The extents of a disk, in order and without gaps.
#[derive(Debug)]
pub struct Extents {
    extents: Vec<Extent>,
    length: u64,
}

/// What to do with a range besides reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// The content does not matter any more.
    Discard,
    /// It must read as zeroes; its blocks may be given back.
    ZeroAndUnmap,
    /// It must read as zeroes and stay allocated.
    Zero,
}

impl Extents {
    /// An empty disk.
    pub fn new() -> Self {
        Self { extents: Vec::new(), length: 0 }
    }

    /// Appends a piece.
    pub fn push(&mut self, fd: OwnedFd, extent: DiskExtent, access: DiskAccess) -> Result<(), ExtentError> {
        let DiskExtent { offset, length } = extent;
        if !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) || length == 0 {
            return Err(ExtentError::Sectors { offset, length });
        }
        let end = offset.checked_add(length).ok_or(ExtentError::TooLarge)?;
        let total = self.length.checked_add(length).ok_or(ExtentError::TooLarge)?;
        if i64::try_from(end).is_err() || i64::try_from(total).is_err() {
            return Err(ExtentError::TooLarge);
        }
        check_access(&fd, access)?;
        let file = File::from(fd);
        let size = size(&file)?;
        if end > size {
            return Err(ExtentError::BeyondFile { end, size });
        }
        self.extents.push(Extent { file, start: self.length, offset, length });
        self.length = total;
        Ok(())
    }

    /// The disk's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether the disk is one file, whose ranges can be erased as a whole.
    pub fn is_single(&self) -> bool {
        self.extents.len() == 1
    }

    /// Reads from byte `position` on until `buffer` is full.
    pub fn read(&self, buffer: Segments<'_, '_>, position: u64) -> io::Result<()> {
        self.transfer(buffer, position, |part, file, offset| part.read_at(file.as_fd(), offset))
    }

    /// Writes all of `buffer` from byte `position` on.
    pub fn write(&self, buffer: Segments<'_, '_>, position: u64) -> io::Result<()> {
        self.transfer(buffer, position, |part, file, offset| part.write_at(file.as_fd(), offset))
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) -> io::Result<()> {
        self.extents.iter().try_for_each(|extent| extent.file.sync_data())
    }

    /// Erases a range that the caller has checked to be on the disk.
    pub fn erase(&self, position: u64, length: u64, how: Erase) -> io::Result<()> {
        let [extent] = self.extents.as_slice() else { return Err(io::ErrorKind::Unsupported.into()) };
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE
            | match how {
                Erase::Discard | Erase::ZeroAndUnmap => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
                Erase::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            };
        let offset = file_offset(extent.offset + position)?;
        Ok(fallocate(&extent.file, flags, offset, file_offset(length)?)?)
    }

    fn transfer(
        &self,
        mut buffer: Segments<'_, '_>,
        mut position: u64,
        step: impl Fn(Segments<'_, '_>, &File, i64) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let index = self.extents.partition_point(|extent| extent.start + extent.length <= position);
            let Some(extent) = self.extents.get(index) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let inside = position - extent.start;
            let room = usize::try_from(extent.length - inside).unwrap_or(usize::MAX);
            let count = step(buffer.split_at(room).0, &extent.file, file_offset(extent.offset + inside)?)?;
            if count == 0 {
                // The file has become shorter since it was checked.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer = buffer.after(count);
            position += count as u64;
        }
        Ok(())
    }
}

fn file_offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn check_access(fd: &OwnedFd, access: DiskAccess) -> Result<(), ExtentError> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).map_err(io::Error::from)?);
    if flags.contains(OFlag::O_PATH) {
        return Err(ExtentError::Descriptor("it only names the file (O_PATH)"));
    }
    match (access, flags & OFlag::O_ACCMODE) {
        (_, OFlag::O_WRONLY) => Err(ExtentError::Descriptor("it cannot be read")),
        (DiskAccess::ReadWrite, OFlag::O_RDONLY) => {
            Err(ExtentError::Descriptor("the disk is read-write, it is read-only"))
        }
        (DiskAccess::ReadWrite, _) if flags.contains(OFlag::O_APPEND) => {
            Err(ExtentError::Descriptor("it is open for appending"))
        }
        _ => Ok(()),
    }
}

fn size(file: &File) -> Result<u64, ExtentError> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else if metadata.file_type().is_block_device() {
        // The position is shared with whoever gave us the descriptor, but nobody uses it: all access is positioned.
        let mut file = file;
        Ok(file.seek(SeekFrom::End(0))?)
    } else {
        Err(ExtentError::NotAFile)
    }
}
