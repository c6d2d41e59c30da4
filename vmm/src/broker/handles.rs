//! Open files and directories.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hull_protocol::fs::HandleId;
use nix::errno::Errno;

use super::exports::ExportId;

/// The most open files and directories at once; more are refused with `ENFILE`.
pub const HANDLES_MAX: usize = 1 << 14;

/// Something open.
#[derive(Debug)]
pub enum Handle {
    /// A regular file. The monitor has the same open file.
    File {
        /// The file.
        fd: OwnedFd,
        /// The export it belongs to.
        export: ExportId,
    },
    /// A directory.
    Directory {
        /// The directory.
        fd: OwnedFd,
        /// The export it belongs to.
        export: ExportId,
        /// Where the kernel would go on reading, as the file system counts; `None` where it has read further than
        /// the guest.
        position: Option<u64>,
    },
    /// The root of the mount, which is no directory of the host.
    Root,
}

/// All that is open. Ids are never used twice.
#[derive(Debug, Default)]
pub struct Handles {
    by_id: HashMap<HandleId, Handle>,
    last: u64,
}

impl Handles {
    /// `ENFILE` when there is no room for another.
    pub fn check_room(&self) -> Result<(), Errno> {
        if self.by_id.len() < HANDLES_MAX { Ok(()) } else { Err(Errno::ENFILE) }
    }

    /// Keeps a handle.
    pub fn add(&mut self, handle: Handle) -> Result<HandleId, Errno> {
        self.check_room()?;
        self.last += 1;
        let id = HandleId(self.last);
        self.by_id.insert(id, handle);
        Ok(id)
    }

    /// An open file and its export.
    pub fn file(&self, id: HandleId) -> Result<(BorrowedFd<'_>, ExportId), Errno> {
        match self.by_id.get(&id) {
            Some(Handle::File { fd, export }) => Ok((fd.as_fd(), *export)),
            Some(Handle::Directory { .. } | Handle::Root) | None => Err(Errno::EBADF),
        }
    }

    /// Whatever is open by this id.
    pub fn get_mut(&mut self, id: HandleId) -> Result<&mut Handle, Errno> {
        self.by_id.get_mut(&id).ok_or(Errno::EBADF)
    }

    /// Closes.
    pub fn remove(&mut self, id: HandleId) -> Result<(), Errno> {
        self.by_id.remove(&id).map(drop).ok_or(Errno::EBADF)
    }

    /// Closes everything.
    pub fn clear(&mut self) {
        self.by_id.clear();
    }

    /// Closes everything of an export. Answers the files among it, which somebody else has open as well.
    pub fn remove_export(&mut self, removed: ExportId) -> Vec<HandleId> {
        let mut files = Vec::new();
        self.by_id.retain(|id, handle| match handle {
            Handle::File { export, .. } if *export == removed => {
                files.push(*id);
                false
            }
            Handle::Directory { export, .. } => *export != removed,
            Handle::File { .. } | Handle::Root => true,
        });
        files
    }
}
