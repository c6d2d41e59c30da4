//! A bounded reader of EROFS disks made by this crate, for the few files that the host has to look at (such as
//! `/etc/passwd`) and for checking what was written. Every address, size and offset is checked: a damaged disk is an
//! error, never a panic, an endless loop or a large allocation.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::BLOCK_SIZE;
use super::directory::decode_block;
use super::format::{DiskInode, INODE_SLOT, Layout, Superblock, decode_superblock, mode};
use super::resolve::SYMLINKS_MAX;
use super::tree::Name;
#[cfg(test)]
use super::{tree::Xattr, xattr};

const BLOCK: usize = BLOCK_SIZE as usize;
/// The longest link target that this crate writes.
const TARGET_MAX: u64 = 4096;
/// Components of a path with all its links resolved; far above what [`SYMLINKS_MAX`] links of PATH_MAX can need.
const COMPONENTS_MAX: usize = 100_000;

/// A disk of one or several concatenated parts.
#[derive(Debug)]
pub struct Disk {
    parts: Vec<Part>,
    superblock: Superblock,
}

#[derive(Debug)]
struct Part {
    file: File,
    /// Byte at which the part starts on the disk.
    start: u64,
    length: u64,
}

/// A disk that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("cannot read the image disk: {0}")]
    Io(#[from] io::Error),
    /// The disk is damaged, or was not made by this program.
    #[error("the image disk is damaged: {0}")]
    Corrupt(&'static str),
    /// More symbolic links than Linux follows.
    #[error("too many symbolic links")]
    SymlinkLoop,
    /// The path leads to something that is no regular file.
    #[error("not a regular file")]
    NotRegular,
    /// The file exceeds the caller's limit.
    #[error("the file has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The caller's limit.
        limit: usize,
    },
}

/// An inode that was found on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) nid: u64,
    pub(crate) inode: DiskInode,
}

impl Found {
    pub(crate) fn file_type(&self) -> u16 {
        self.inode.mode & mode::TYPE
    }
}

impl Disk {
    /// Opens `[index | blob 0 | ...]` from its parts (or a single blob).
    ///
    /// # Errors
    /// [`ReadError::Corrupt`] when there is no valid superblock.
    pub fn open(parts: Vec<File>) -> Result<Disk, ReadError> {
        let mut start = 0_u64;
        let mut placed = Vec::with_capacity(parts.len());
        for file in parts {
            let length = file.metadata()?.len();
            placed.push(Part { file, start, length });
            start = start.checked_add(length).ok_or(ReadError::Corrupt("length"))?;
        }
        let mut block = [0; BLOCK];
        read_parts(&placed, 0, &mut block)?;
        let superblock = decode_superblock(&block).ok_or(ReadError::Corrupt("no valid superblock"))?;
        Ok(Disk { parts: placed, superblock })
    }

    /// The content of a regular file; `None` when the path does not exist. Symbolic links are resolved inside the
    /// image.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read_file(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(found) = self.resolve(path.as_bytes())? else { return Ok(None) };
        if found.file_type() != mode::REGULAR {
            return Err(ReadError::NotRegular);
        }
        self.content(&found, limit as u64).map(Some)
    }

    pub(crate) fn root(&self) -> Result<Found, ReadError> {
        self.inode(self.superblock.root_nid.into())
    }

    pub(crate) fn inode(&self, nid: u64) -> Result<Found, ReadError> {
        let at = self.inode_offset(nid)?;
        let mut bytes = [0; DiskInode::EXTENDED_SIZE];
        // Metadata ends at a block, so a compact inode always has another slot behind it, or is padded.
        let (compact, rest) = bytes.split_at_mut(DiskInode::COMPACT_SIZE);
        self.read_at(at, compact)?;
        if compact[0] & 1 == 1 {
            self.read_at(at + DiskInode::COMPACT_SIZE as u64, rest)?;
        }
        let inode =
            DiskInode::decode(&bytes, self.superblock.build_time).ok_or(ReadError::Corrupt("inode"))?;
        Ok(Found { nid, inode })
    }

    /// The entries of a directory, `.` and `..` included.
    #[cfg(test)]
    pub(crate) fn entries(&self, directory: &Found) -> Result<Vec<(Name, u64)>, ReadError> {
        let mut entries = Vec::new();
        let mut offset = 0;
        while let Some(block) = self.block(directory, offset)? {
            entries.extend(decode_block(&block).ok_or(ReadError::Corrupt("directory"))?);
            offset += BLOCK as u64;
        }
        Ok(entries)
    }

    /// The inode of `name` in `directory`.
    pub(crate) fn lookup(&self, directory: &Found, name: &[u8]) -> Result<Option<Found>, ReadError> {
        let mut offset = 0;
        while let Some(block) = self.block(directory, offset)? {
            let entries = decode_block(&block).ok_or(ReadError::Corrupt("directory"))?;
            if let Some((_, nid)) = entries.iter().find(|(known, _)| **known == *name) {
                return self.inode(*nid).map(Some);
            }
            offset += BLOCK as u64;
        }
        Ok(None)
    }

    #[cfg(test)]
    pub(crate) fn xattrs(&self, found: &Found) -> Result<Vec<Xattr>, ReadError> {
        let mut area = vec![0; found.inode.xattr_bytes];
        self.read_at(self.inode_offset(found.nid)? + found.inode.encoded_size() as u64, &mut area)?;
        xattr::decode(&area).ok_or(ReadError::Corrupt("extended attributes"))
    }

    /// The whole content of a file, directory or link.
    pub(crate) fn content(&self, found: &Found, limit: u64) -> Result<Vec<u8>, ReadError> {
        let size = found.inode.size;
        if size > limit {
            return Err(ReadError::TooLarge { size, limit: usize::try_from(limit).unwrap_or(usize::MAX) });
        }
        if size > self.length() {
            return Err(ReadError::Corrupt("file larger than the disk"));
        }
        let mut out = vec![0; usize::try_from(size).map_err(|_| ReadError::Corrupt("size"))?];
        self.read_content(found, 0, &mut out)?;
        Ok(out)
    }

    /// Follows `path` from the root, links included.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Option<Found>, ReadError> {
        let mut trail = vec![self.root()?];
        let mut pending: Vec<Name> = path.split(|byte| *byte == b'/').rev().map(Into::into).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let Some(here) = trail.last() else { return Err(ReadError::Corrupt("root")) };
            if here.file_type() != mode::DIRECTORY {
                return Ok(None);
            }
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    trail.truncate((trail.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let Some(child) = self.lookup(here, &name)? else { return Ok(None) };
            if child.file_type() == mode::SYMLINK {
                links += 1;
                if links > SYMLINKS_MAX {
                    return Err(ReadError::SymlinkLoop);
                }
                let target = self.content(&child, TARGET_MAX)?;
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                pending.extend(target.split(|byte| *byte == b'/').rev().map(Name::from));
            } else {
                trail.push(child);
            }
            if pending.len() + trail.len() > COMPONENTS_MAX {
                return Err(ReadError::SymlinkLoop);
            }
        }
        Ok(trail.pop())
    }

    /// One block of content, shorter at the end; `None` behind the end.
    fn block(&self, found: &Found, offset: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let left = found.inode.size.saturating_sub(offset);
        if left == 0 {
            return Ok(None);
        }
        let mut block = vec![0; usize::try_from(left).unwrap_or(BLOCK).min(BLOCK)];
        self.read_content(found, offset, &mut block)?;
        Ok(Some(block))
    }

    /// Reads content from `offset` (a multiple of the block size) on; the caller stays within the size.
    fn read_content(&self, found: &Found, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let inode = &found.inode;
        let blocks_end = match inode.layout {
            Layout::Plain => u64::MAX,
            Layout::Inline => inode.size / BLOCK as u64 * BLOCK as u64,
        };
        let in_blocks =
            usize::try_from(blocks_end.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (blocks, tail) = out.split_at_mut(in_blocks);
        if !blocks.is_empty() {
            let start = u64::from(inode.address) * BLOCK as u64;
            self.read_at(start.checked_add(offset).ok_or(ReadError::Corrupt("address"))?, blocks)?;
        }
        if !tail.is_empty() {
            let behind = inode.encoded_size() + inode.xattr_bytes;
            self.read_at(self.inode_offset(found.nid)? + behind as u64, tail)?;
        }
        Ok(())
    }

    fn inode_offset(&self, nid: u64) -> Result<u64, ReadError> {
        let start = u64::from(self.superblock.meta_block) * BLOCK as u64;
        let offset = nid.checked_mul(INODE_SLOT).and_then(|offset| offset.checked_add(start));
        offset.filter(|offset| *offset < self.length()).ok_or(ReadError::Corrupt("inode number"))
    }

    fn length(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.start + part.length)
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> Result<(), ReadError> {
        read_parts(&self.parts, position, out)
    }
}

/// Reads across the parts.
fn read_parts(parts: &[Part], mut position: u64, mut out: &mut [u8]) -> Result<(), ReadError> {
    while !out.is_empty() {
        let part = parts.iter().find(|part| (part.start..part.start + part.length).contains(&position));
        let part = part.ok_or(ReadError::Corrupt("address outside the disk"))?;
        let inside = position - part.start;
        let count = usize::try_from(part.length - inside).unwrap_or(usize::MAX).min(out.len());
        let (now, later) = out.split_at_mut(count);
        part.file.read_exact_at(now, inside)?;
        position += count as u64;
        out = later;
    }
    Ok(())
}
