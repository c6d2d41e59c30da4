//! Extended attributes: those of users, on files and directories.
//!
//! The other namespaces are the host's own: a file capability, a label or an overlay's mark that a guest sets would be
//! believed by the host. They are neither shown nor set.

use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::fs::{Bytes, DATA_MAX, Name, Reply};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::*;
use crate::broker::sys;

const VISIBLE: &[u8] = b"user.";

impl Broker {
    pub(super) fn get_xattr(&self, node: NodeId, name: &Name, size: u32) -> Result<Reply, Errno> {
        if !name.as_bytes().starts_with(VISIBLE) {
            return Err(Errno::ENODATA);
        }
        let Some(file) = self.attribute_file(node)? else { return Err(Errno::ENODATA) };
        let mut value = vec![0; DATA_MAX];
        let length = sys::get_xattr(file.as_fd(), name, &mut value)?;
        value.truncate(length);
        sized(value, size)
    }

    pub(super) fn list_xattr(&self, node: NodeId, size: u32) -> Result<Reply, Errno> {
        let mut names = Vec::new();
        if let Some(file) = self.attribute_file(node)? {
            let mut all = vec![0; DATA_MAX];
            let length = sys::list_xattr(file.as_fd(), &mut all)?;
            let visible = all[..length].split_inclusive(|byte| *byte == 0);
            names.extend(visible.filter(|name| name.starts_with(VISIBLE)).flatten().copied());
        }
        sized(names, size)
    }

    pub(super) fn set_xattr(
        &self,
        node: NodeId,
        name: &Name,
        value: &[u8],
        flags: u32,
    ) -> Result<Reply, Errno> {
        let file = self.changeable_file(node, name)?;
        let flags = i32::try_from(flags).map_err(|_| Errno::EINVAL)?;
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 || value.len() > DATA_MAX {
            return Err(Errno::EINVAL);
        }
        sys::set_xattr(file.as_fd(), name, value, flags)?;
        Ok(Reply::Done)
    }

    pub(super) fn remove_xattr(&self, node: NodeId, name: &Name) -> Result<Reply, Errno> {
        let file = self.changeable_file(node, name)?;
        sys::remove_xattr(file.as_fd(), name)?;
        Ok(Reply::Done)
    }

    fn changeable_file(&self, node: NodeId, name: &Name) -> Result<OwnedFd, Errno> {
        self.exports.check_writable(self.nodes.get(node)?.export())?;
        if !name.as_bytes().starts_with(VISIBLE) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.attribute_file(node)?.ok_or(Errno::EPERM)
    }

    /// An open file to ask for attributes; `None` for what cannot have any.
    fn attribute_file(&self, node: NodeId) -> Result<Option<OwnedFd>, Errno> {
        if node == ROOT {
            return Ok(None);
        }
        let node = self.nodes.get(node)?;
        match node.kind() {
            libc::S_IFREG | libc::S_IFDIR => {
                sys::reopen(self.proc.as_fd(), node.fd(), OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// A size of zero asks how much there is.
fn sized(value: Vec<u8>, size: u32) -> Result<Reply, Errno> {
    match usize::try_from(size) {
        Ok(0) => Ok(Reply::Count(value.len() as u64)),
        Ok(size) if size < value.len() => Err(Errno::ERANGE),
        Ok(_) | Err(_) => Ok(Reply::Data(Bytes(value))),
    }
}
