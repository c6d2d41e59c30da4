//! Listing directories.

use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::fs::{Bytes, DATA_MAX, Detail, ListedEntry, Name, Reply};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};

use super::*;
use crate::broker::exports::ExportId;
use crate::broker::handles::Handle;
use crate::broker::sys;

/// Bytes asked of the kernel at once.
const READ: usize = 32 * 1024;
/// Enough for one entry, whatever its name.
const READ_MIN: usize = 1024;

impl Broker {
    pub(super) fn open_directory(&mut self, id: NodeId) -> Result<Reply, Errno> {
        let handle = if id == ROOT {
            Handle::Root
        } else {
            let node = self.nodes.get(id)?;
            if node.kind() != libc::S_IFDIR {
                return Err(Errno::ENOTDIR);
            }
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let fd = sys::open_beneath(node.fd(), c".", flags, Mode::empty())?;
            Handle::Directory { fd, export: node.export(), position: Some(0) }
        };
        self.handles.add(handle).map(Reply::Opened)
    }

    pub(super) fn read_directory(
        &mut self,
        id: HandleId,
        offset: u64,
        size: u32,
        detail: Detail,
    ) -> Result<Reply, Errno> {
        let room = usize::try_from(size).unwrap_or(DATA_MAX).min(DATA_MAX);
        let (entries, directory) = match self.handles.get_mut(id)? {
            Handle::File { .. } => return Err(Errno::ENOTDIR),
            Handle::Root => return self.list_root(offset, room, detail).map(Reply::Listing),
            Handle::Directory { fd, export, position } => {
                if position.take() != Some(offset) {
                    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
                    lseek(&*fd, offset, Whence::SeekSet)?;
                }
                // What does not fit is read again, so not much more than fits is read.
                let length = match detail {
                    Detail::Names => room,
                    Detail::Lookups => room / 4,
                };
                let mut buffer = [0; READ];
                let buffer = &mut buffer[..length.clamp(READ_MIN, READ)];
                let count = sys::read_entries(fd.as_fd(), buffer)?;
                let (entries, rest) = fitting(&buffer[..count], room, detail);
                if rest.is_empty() {
                    *position = Some(entries.last().map_or(offset, |entry| entry.next));
                }
                if count > 0 && entries.is_empty() {
                    return Err(Errno::EINVAL);
                }
                (entries, (detail == Detail::Lookups).then(|| (fd.try_clone(), *export)))
            }
        };
        match directory {
            None => Ok(Reply::Listing(entries)),
            Some((fd, export)) => {
                let fd = fd.map_err(|_| Errno::ENFILE)?;
                Ok(Reply::Listing(self.with_look_ups(&fd, export, entries)))
            }
        }
    }

    fn with_look_ups(
        &mut self,
        directory: &OwnedFd,
        export: ExportId,
        mut entries: Vec<ListedEntry>,
    ) -> Vec<ListedEntry> {
        for listed in &mut entries {
            // Neither `.` nor `..` is a name. A name that is gone already is listed all the same, as by any kernel.
            let found = Name::new(&listed.name.0)
                .ok()
                .and_then(|name| sys::look_up(directory.as_fd(), &name).ok())
                .and_then(|fd| self.hold(export, fd).ok());
            listed.entry = found;
        }
        entries
    }

    /// Offset `n` is the n-th export.
    fn list_root(&mut self, offset: u64, room: usize, detail: Detail) -> Result<Vec<ListedEntry>, Errno> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let exports: Vec<(Vec<u8>, ExportId, OwnedFd)> = self
            .exports
            .iter()
            .skip(skip)
            .map(|(name, export)| Ok((name.to_vec(), export.id, export.root.try_clone()?)))
            .collect::<std::io::Result<_>>()
            .map_err(|_| Errno::ENFILE)?;
        let mut listing = Vec::new();
        let mut left = room;
        for (next, (name, export, root)) in (offset + 1..).zip(exports) {
            let Some(rest) = left.checked_sub(ListedEntry::fuse_length(name.len(), detail)) else { break };
            left = rest;
            let attributes = sys::attributes(root.as_fd())?;
            let entry = match detail {
                Detail::Names => None,
                Detail::Lookups => self.hold(export, root).ok(),
            };
            let kind = u8::try_from((attributes.mode & libc::S_IFMT) >> 12).unwrap_or(0);
            listing.push(ListedEntry { next, ino: attributes.ino, kind, name: Bytes(name), entry });
        }
        Ok(listing)
    }
}

/// The entries that fit, and what is left of the others.
fn fitting(mut raw: &[u8], room: usize, detail: Detail) -> (Vec<ListedEntry>, &[u8]) {
    let mut entries: Vec<ListedEntry> = Vec::new();
    let mut left = room;
    while let Some((entry, rest)) = split_entry(raw) {
        let Some(rest_room) = left.checked_sub(ListedEntry::fuse_length(entry.name.0.len(), detail)) else {
            break;
        };
        (left, raw) = (rest_room, rest);
        entries.push(entry);
    }
    (entries, raw)
}

/// `struct linux_dirent64`: inode, offset of the next entry, length of this one, type, name up to a NUL.
fn split_entry(raw: &[u8]) -> Option<(ListedEntry, &[u8])> {
    let ino = u64::from_ne_bytes(*raw.first_chunk()?);
    let next = u64::from_ne_bytes(*raw.get(8..)?.first_chunk()?);
    let length = usize::from(u16::from_ne_bytes(*raw.get(16..)?.first_chunk()?));
    let (entry, rest) = raw.split_at_checked(length)?;
    let kind = *entry.get(18)?;
    let name = entry.get(19..)?.split(|byte| *byte == 0).next()?.to_vec();
    Some((ListedEntry { next, ino, kind, name: Bytes(name), entry: None }, rest))
}
