//! Consecutive pieces of files as one disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use hull_protocol::vmm::{DiskAccess, DiskExtent};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::SECTOR;

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
    /// The sum of lengths or offsets is more than a file offset holds, or there are too many extents.
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

/// A piece of a disk that lies in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which extent's file.
    pub file: u16,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// In bytes, not zero.
    pub length: u64,
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
        let numbered = u16::try_from(self.extents.len() + 1).is_ok();
        if i64::try_from(end).is_err() || i64::try_from(total).is_err() || !numbered {
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

    /// Anything that can be read or written as a disk, unchecked.
    #[cfg(test)]
    pub fn of_anything(fds: Vec<(OwnedFd, u64)>) -> Self {
        let mut this = Self::new();
        for (fd, length) in fds {
            this.extents.push(Extent { file: File::from(fd), start: this.length, offset: 0, length });
            this.length += length;
        }
        this
    }

    /// The disk's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The files, by extent.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.extents.iter().map(|extent| &extent.file)
    }

    /// The file of an extent.
    pub fn file(&self, index: u16) -> Option<&File> {
        self.extents.get(usize::from(index)).map(|extent| &extent.file)
    }

    /// Where a range of the disk lies, in order: one piece for each extent it touches. What is beyond the end of the
    /// disk is left out.
    pub fn pieces(&self, position: u64, length: u64) -> impl Iterator<Item = Piece> {
        let first = self.extents.partition_point(|extent| extent.start + extent.length <= position);
        let end = position.saturating_add(length);
        let touched =
            (0_u16..).zip(&self.extents).skip(first).take_while(move |(_, extent)| extent.start < end);
        touched.filter_map(move |(file, extent)| {
            let from = position.max(extent.start);
            let length =
                end.min(extent.start + extent.length).checked_sub(from).filter(|length| *length > 0)?;
            Some(Piece { file, offset: extent.offset + (from - extent.start), length })
        })
    }
}

/// An offset or a length as system calls take it.
pub fn file_offset(value: u64) -> io::Result<i64> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The pieces of a range cover what of it is on the disk, once and in order.
        #[test]
        fn pieces_cover_a_range_once(
            lengths in prop::collection::vec((0..5_u64, 1..6_u64), 1..8), position in 0..30_u64, length in prop_oneof![0..30_u64, Just(u64::MAX)],
        ) {
            let file = crate::virtio::testing::file_with(&[0; 20 * 512]);
            let mut extents = Extents::new();
            for (offset, length) in &lengths {
                let extent = DiskExtent { offset: offset * SECTOR, length: length * SECTOR };
                extents.push(file.try_clone().unwrap().into(), extent, DiskAccess::ReadOnly).unwrap();
            }
            let sectors: Vec<(u16, u64)> = (0..).zip(&lengths)
                .flat_map(|(file, (offset, length))| (0..*length).map(move |at| (file, offset + at)))
                .collect();
            let from = usize::try_from(position).unwrap().min(sectors.len());
            let end = usize::try_from(position.saturating_add(length)).unwrap_or(usize::MAX).min(sectors.len());
            let pieces: Vec<Piece> = extents.pieces(position * SECTOR, length.saturating_mul(SECTOR)).collect();
            prop_assert!(pieces.windows(2).all(|pair| pair[0].file < pair[1].file));
            let covered = pieces.iter().flat_map(|piece| {
                (0..piece.length / SECTOR).map(move |at| (piece.file, piece.offset / SECTOR + at))
            });
            prop_assert!(covered.eq(sectors[from..end].iter().copied()));
        }
    }
}
