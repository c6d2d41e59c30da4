//! One request, one answer. What each does is in the module of its kind.

use std::os::fd::BorrowedFd;

use hull_protocol::fs::{Caller, HandleId, NodeId, ROOT, Reply, Request, VERSION};
use nix::errno::Errno;

use super::Broker;

mod attributes;
mod directories;
mod files;
mod names;
mod xattrs;

impl Broker {
    /// Carries out a request. `None` is the answer to what has none.
    pub fn answer(&mut self, request: Request) -> Option<Reply> {
        if let Request::Forget { node, count } = request {
            self.nodes.forget(node, count);
            return None;
        }
        Some(self.carry_out(request).unwrap_or_else(|errno| Reply::Error(errno as i32)))
    }

    /// The descriptor that goes with a reply.
    pub fn descriptor(&self, reply: &Reply) -> Option<BorrowedFd<'_>> {
        match reply {
            Reply::Opened(handle) | Reply::Created(_, handle) => {
                self.handles.file(*handle).ok().map(|(fd, _)| fd)
            }
            Reply::Error(_)
            | Reply::Done
            | Reply::Entry(_)
            | Reply::Attributes(_)
            | Reply::Data(_)
            | Reply::Count(_)
            | Reply::Listing(_)
            | Reply::FileSystem(_)
            | Reply::Revoked(_) => None,
        }
    }

    fn carry_out(&mut self, request: Request) -> Result<Reply, Errno> {
        match request {
            Request::Init { version } => self.init(version),
            Request::Lookup { parent, name } => self.look_up(parent, &name),
            Request::Forget { .. } => Ok(Reply::Done),
            Request::GetAttributes { node } => self.attributes(node).map(Reply::Attributes),
            Request::SetAttributes { node, handle, change } => self.set_attributes(node, handle, change),
            Request::Access { node, mask, caller } => self.access(node, mask, caller),
            Request::ReadLink { node } => self.read_link(node),
            Request::Make { parent, name, what, caller } => self.make(parent, &name, &what, caller),
            Request::Create { parent, name, flags, mode, caller } => {
                self.create(parent, name.as_ref(), flags, mode, caller)
            }
            Request::Remove { parent, name, kind } => self.remove(parent, &name, kind),
            Request::Rename { parent, name, new_parent, new_name, flags } => {
                self.rename((parent, &name), (new_parent, &new_name), flags)
            }
            Request::Link { node, new_parent, new_name } => self.link(node, new_parent, &new_name),
            Request::Open { node, flags } => self.open(node, flags),
            Request::OpenDirectory { node } => self.open_directory(node),
            Request::ReadDirectory { handle, offset, size, detail } => {
                self.read_directory(handle, offset, size, detail)
            }
            Request::Release { handle } => self.handles.remove(handle).map(|()| Reply::Done),
            Request::Sync { handle, extent } => self.sync(handle, extent),
            Request::FileSystem { node } => self.file_system(node),
            Request::SetXattr { node, name, value, flags } => self.set_xattr(node, &name, &value.0, flags),
            Request::GetXattr { node, name, size } => self.get_xattr(node, &name, size),
            Request::ListXattr { node, size } => self.list_xattr(node, size),
            Request::RemoveXattr { node, name } => self.remove_xattr(node, &name),
            Request::Allocate { handle, mode, offset, length } => self.allocate(handle, mode, offset, length),
            Request::Seek { handle, offset, whence } => self.seek(handle, offset, whence),
            Request::Copy { from, to, length } => self.copy(from, to, length),
        }
    }

    /// A new mount, or the end of one: nothing is held.
    fn init(&mut self, version: u32) -> Result<Reply, Errno> {
        if version != VERSION {
            return Err(Errno::EPROTO);
        }
        self.nodes.clear();
        self.handles.clear();
        Ok(Reply::Done)
    }
}
