//! What an inode is, and who may do what with it.

use std::os::fd::AsFd;

use hull_protocol::fs::{Attributes, Change, FileSystem, Reply};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::fstatvfs;

use super::*;
use crate::broker::sys;

/// The root of the mount: a directory that nobody may change.
const ROOT_ATTRIBUTES: Attributes = Attributes {
    ino: ROOT.0,
    size: 0,
    blocks: 0,
    atime: hull_protocol::fs::Time { seconds: 0, nanoseconds: 0 },
    mtime: hull_protocol::fs::Time { seconds: 0, nanoseconds: 0 },
    ctime: hull_protocol::fs::Time { seconds: 0, nanoseconds: 0 },
    mode: libc::S_IFDIR | 0o555,
    nlink: 2,
    uid: 0,
    gid: 0,
    block_size: 4096,
};

impl Broker {
    pub(super) fn attributes(&self, node: NodeId) -> Result<Attributes, Errno> {
        if node == ROOT {
            return Ok(ROOT_ATTRIBUTES);
        }
        sys::attributes(self.nodes.get(node)?.fd())
    }

    pub(super) fn set_attributes(
        &self,
        id: NodeId,
        handle: Option<HandleId>,
        change: Change,
    ) -> Result<Reply, Errno> {
        let node = self.nodes.get(id)?;
        self.exports.check_writable(node.export())?;
        let proc = self.proc.as_fd();
        // The owner comes after the mode, so that a set-user-id bit never outlives the owner it was set for.
        if let Some(mode) = change.mode {
            if node.kind() == libc::S_IFLNK {
                return Err(Errno::EOPNOTSUPP);
            }
            sys::set_mode(proc, node.fd(), mode)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            sys::set_owner(node.fd(), change.uid, change.gid)?;
        }
        if let Some(size) = change.size {
            let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
            match handle {
                Some(handle) => {
                    let (fd, export) = self.handles.file(handle)?;
                    self.exports.check_writable(export)?;
                    nix::unistd::ftruncate(fd, size)?;
                }
                None => {
                    require_regular(node.kind())?;
                    let file = sys::reopen(proc, node.fd(), OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
                    nix::unistd::ftruncate(&file, size)?;
                }
            }
        }
        if change.atime.is_some() || change.mtime.is_some() {
            sys::set_times(proc, node.fd(), change.atime, change.mtime)?;
        }
        self.attributes(id).map(Reply::Attributes)
    }

    /// As the kernel would decide without supplementary groups: the guest's own check, which knows them, comes first.
    pub(super) fn access(&self, node: NodeId, mask: u32, caller: Caller) -> Result<Reply, Errno> {
        let attributes = self.attributes(node)?;
        let (read_write, execute) = (mask & 0o6, mask & 0o1);
        if mask & 0o2 != 0 {
            self.exports.check_writable(self.nodes.get(node)?.export())?;
        }
        let directory = attributes.mode & libc::S_IFMT == libc::S_IFDIR;
        let granted = match caller.uid {
            0 if directory || attributes.mode & 0o111 != 0 => 0o7,
            0 => 0o6,
            uid if uid == attributes.uid => attributes.mode >> 6,
            _ if caller.gid == attributes.gid => attributes.mode >> 3,
            _ => attributes.mode,
        };
        if (read_write | execute) & !granted == 0 { Ok(Reply::Done) } else { Err(Errno::EACCES) }
    }

    pub(super) fn file_system(&self, node: NodeId) -> Result<Reply, Errno> {
        if node == ROOT {
            let empty =
                FileSystem { block_size: 4096, fragment_size: 4096, name_max: 255, ..Default::default() };
            return Ok(Reply::FileSystem(empty));
        }
        let stat = fstatvfs(self.nodes.get(node)?.fd())?;
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(Reply::FileSystem(FileSystem {
            blocks: stat.blocks(),
            blocks_free: stat.blocks_free(),
            blocks_available: stat.blocks_available(),
            files: stat.files(),
            files_free: stat.files_free(),
            block_size: size(stat.block_size()),
            fragment_size: size(stat.fragment_size()),
            name_max: size(stat.name_max()),
        }))
    }
}

/// Only regular files are ever opened: opening a device, a pipe or a socket acts on the host.
pub(super) fn require_regular(kind: u32) -> Result<(), Errno> {
    match kind {
        libc::S_IFREG => Ok(()),
        libc::S_IFDIR => Err(Errno::EISDIR),
        libc::S_IFLNK => Err(Errno::ELOOP),
        _ => Err(Errno::EACCES),
    }
}
