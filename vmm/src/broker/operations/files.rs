//! Open files.

use std::os::fd::AsFd;

use hull_protocol::fs::{Reply, SyncExtent};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, copy_file_range, fallocate};
use nix::unistd::{Whence, fdatasync, fsync, lseek};

use super::attributes::require_regular;
use super::*;
use crate::broker::handles::Handle;
use crate::broker::sys;

/// What of `open(2)`'s flags the guest decides. `O_APPEND` is the monitor's business with each write, and `O_DIRECT`
/// would ask for an alignment that guest memory does not have.
const FLAGS: OFlag = OFlag::O_ACCMODE.union(OFlag::O_TRUNC).union(OFlag::O_SYNC).union(OFlag::O_DSYNC);

/// What is understood of `fallocate(2)`'s modes.
const ALLOCATE: FallocateFlags = FallocateFlags::FALLOC_FL_KEEP_SIZE
    .union(FallocateFlags::FALLOC_FL_PUNCH_HOLE)
    .union(FallocateFlags::FALLOC_FL_ZERO_RANGE);

/// The most bytes that one request copies: the broker has other things to do.
const COPY_MAX: u64 = 64 << 20;

/// The guest's flags for `open(2)`, cut to those that it decides.
pub(super) fn open_flags(flags: u32) -> Result<OFlag, Errno> {
    let flags = OFlag::from_bits_retain(i32::try_from(flags).map_err(|_| Errno::EINVAL)?) & FLAGS;
    match flags & OFlag::O_ACCMODE {
        OFlag::O_RDONLY | OFlag::O_WRONLY | OFlag::O_RDWR => Ok(flags | OFlag::O_NONBLOCK),
        _ => Err(Errno::EINVAL),
    }
}

/// Whether opening with these flags can change the file.
pub(super) fn opens_for_change(flags: OFlag) -> bool {
    flags & OFlag::O_ACCMODE != OFlag::O_RDONLY || flags.contains(OFlag::O_TRUNC)
}

impl Broker {
    pub(super) fn open(&mut self, id: NodeId, flags: u32) -> Result<Reply, Errno> {
        if id == ROOT {
            return Err(Errno::EISDIR);
        }
        let node = self.nodes.get(id)?;
        require_regular(node.kind())?;
        let flags = open_flags(flags)?;
        if opens_for_change(flags) {
            self.exports.check_writable(node.export())?;
        }
        self.handles.check_room()?;
        let fd = sys::reopen(self.proc.as_fd(), node.fd(), flags)?;
        self.handles.add(Handle::File { fd, export: node.export() }).map(Reply::Opened)
    }

    pub(super) fn sync(&mut self, handle: HandleId, extent: SyncExtent) -> Result<Reply, Errno> {
        match (self.handles.get_mut(handle)?, extent) {
            (Handle::File { fd, .. } | Handle::Directory { fd, .. }, SyncExtent::All) => fsync(&*fd)?,
            (Handle::File { fd, .. } | Handle::Directory { fd, .. }, SyncExtent::Data) => fdatasync(&*fd)?,
            (Handle::Root, _) => {}
        }
        Ok(Reply::Done)
    }

    pub(super) fn allocate(
        &self,
        handle: HandleId,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<Reply, Errno> {
        let (fd, export) = self.handles.file(handle)?;
        self.exports.check_writable(export)?;
        let mode = i32::try_from(mode).ok().and_then(FallocateFlags::from_bits).ok_or(Errno::EOPNOTSUPP)?;
        if !ALLOCATE.contains(mode) {
            return Err(Errno::EOPNOTSUPP);
        }
        fallocate(fd, mode, position(offset)?, position(length)?)?;
        Ok(Reply::Done)
    }

    pub(super) fn seek(&self, handle: HandleId, offset: u64, whence: u32) -> Result<Reply, Errno> {
        let (fd, _) = self.handles.file(handle)?;
        let whence = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => Whence::SeekData,
            Ok(libc::SEEK_HOLE) => Whence::SeekHole,
            // The guest's kernel knows its own positions.
            Ok(_) | Err(_) => return Err(Errno::EINVAL),
        };
        let found = lseek(fd, i64::try_from(offset).map_err(|_| Errno::ENXIO)?, whence)?;
        u64::try_from(found).map(Reply::Count).map_err(|_| Errno::EIO)
    }

    pub(super) fn copy(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        length: u64,
    ) -> Result<Reply, Errno> {
        let (source, _) = self.handles.file(from.0)?;
        let (target, export) = self.handles.file(to.0)?;
        self.exports.check_writable(export)?;
        let (mut at, mut to) = (position(from.1)?, position(to.1)?);
        let length = usize::try_from(length.min(COPY_MAX)).map_err(|_| Errno::EINVAL)?;
        let count = copy_file_range(source, Some(&mut at), target, Some(&mut to), length)?;
        Ok(Reply::Count(count as u64))
    }
}

fn position(offset: u64) -> Result<i64, Errno> {
    i64::try_from(offset).map_err(|_| Errno::EFBIG)
}
