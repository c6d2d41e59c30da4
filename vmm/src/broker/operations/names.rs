//! Whatever takes a name: the look-up, and making, removing, renaming and linking.
//!
//! What is made gets the guest's owner *after* it was made (`fchownat(2)` of a descriptor), while nobody else may open
//! it, instead of changing the broker's own user id for each request (`setfsuid(2)`): the guest's kernel has checked
//! the caller's permissions already, with supplementary groups that are not known here; a failure half-way leaves no
//! process with the wrong identity; and no capability to become somebody else is needed.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hull_protocol::fs::{Bytes, Entry, Make, Name, Removal, Reply, TARGET_MAX};
use nix::errno::Errno;
use nix::fcntl::{OFlag, RenameFlags, readlinkat, renameat2};
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, geteuid, symlinkat, unlinkat};

use super::attributes::require_regular;
use super::files::{open_flags, opens_for_change};
use super::*;
use crate::broker::exports::ExportId;
use crate::broker::handles::Handle;
use crate::broker::sys;

impl Broker {
    pub(super) fn look_up(&mut self, parent: NodeId, name: &Name) -> Result<Reply, Errno> {
        if parent == ROOT {
            let export = self.exports.find(name).ok_or(Errno::ENOENT)?;
            let (id, root) = (export.id, export.root.try_clone().map_err(|_| Errno::ENFILE)?);
            return self.hold(id, root).map(Reply::Entry);
        }
        let node = self.nodes.get(parent)?;
        let (fd, export) = (sys::look_up(node.fd(), name)?, node.export());
        self.hold(export, fd).map(Reply::Entry)
    }

    /// The monitor holds this inode once more.
    pub(super) fn hold(&mut self, export: ExportId, fd: OwnedFd) -> Result<Entry, Errno> {
        let (device, attributes) = sys::identity(fd.as_fd())?;
        let node = self.nodes.hold(export, fd, device, &attributes)?;
        Ok(Entry { node, attributes })
    }

    /// A directory in which names may be changed, and its export.
    fn changeable(&self, directory: NodeId) -> Result<(BorrowedFd<'_>, ExportId), Errno> {
        let node = self.nodes.get(directory)?;
        self.exports.check_writable(node.export())?;
        Ok((node.fd(), node.export()))
    }

    pub(super) fn read_link(&self, node: NodeId) -> Result<Reply, Errno> {
        use std::os::unix::ffi::OsStringExt;
        if node == ROOT {
            return Err(Errno::EINVAL);
        }
        let target = readlinkat(self.nodes.get(node)?.fd(), c"")?;
        Ok(Reply::Data(Bytes(target.into_vec())))
    }

    pub(super) fn make(
        &mut self,
        parent: NodeId,
        name: &Name,
        what: &Make,
        caller: Caller,
    ) -> Result<Reply, Errno> {
        let (directory, export) = self.changeable(parent)?;
        let fd = match what {
            Make::Node { mode } if mode & libc::S_IFMT == libc::S_IFREG => {
                let file = self.make_file(directory, name, OFlag::O_WRONLY, *mode, caller)?;
                sys::reopen(self.proc.as_fd(), file.as_fd(), OFlag::O_PATH)?
            }
            // Pipes and sockets are the guest's kernel's: here they are names, which are never opened.
            Make::Node { mode } if matches!(mode & libc::S_IFMT, libc::S_IFIFO | libc::S_IFSOCK) => {
                self.make_special(directory, name, *mode, caller)?
            }
            // A device would be the host's.
            Make::Node { .. } => return Err(Errno::EPERM),
            Make::Directory { mode } => self.make_directory(directory, name, *mode, caller)?,
            Make::Symlink { target } => make_symlink(directory, name, &target.0, caller)?,
        };
        self.hold(export, fd).map(Reply::Entry)
    }

    pub(super) fn create(
        &mut self,
        parent: NodeId,
        name: Option<&Name>,
        flags: u32,
        mode: u32,
        caller: Caller,
    ) -> Result<Reply, Errno> {
        let exclusive = flags & libc::O_EXCL.cast_unsigned() != 0;
        let open = open_flags(flags)?;
        self.handles.check_room()?;
        let (directory, export) = self.changeable(parent)?;
        let proc = self.proc.as_fd();
        let made = match name {
            Some(name) => self.make_file(directory, name, open, mode, caller),
            None => self.make_unnamed(directory, open, mode, caller),
        };
        let file = match (made, name) {
            // Somebody on the host was faster than the guest knows.
            (Err(Errno::EEXIST), Some(name)) if !exclusive => {
                let found = sys::look_up(directory, name)?;
                require_regular(sys::attributes(found.as_fd())?.mode & libc::S_IFMT)?;
                sys::reopen(proc, found.as_fd(), open)?
            }
            (made, _) => made?,
        };
        let inode = sys::reopen(proc, file.as_fd(), OFlag::O_PATH)?;
        let entry = self.hold(export, inode)?;
        let handle = self.handles.add(Handle::File { fd: file, export })?;
        Ok(Reply::Created(entry, handle))
    }

    /// A new file, which nobody can open before it is its owner's.
    fn make_file(
        &self,
        directory: BorrowedFd<'_>,
        name: &Name,
        open: OFlag,
        mode: u32,
        caller: Caller,
    ) -> Result<OwnedFd, Errno> {
        let flags = open | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = sys::open_beneath(directory, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        self.hand_over(directory, file.as_fd(), mode, caller).inspect_err(|_| {
            // The first error is the one to report.
            let _ = unlinkat(directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        })?;
        Ok(file)
    }

    fn make_unnamed(
        &self,
        directory: BorrowedFd<'_>,
        open: OFlag,
        mode: u32,
        caller: Caller,
    ) -> Result<OwnedFd, Errno> {
        if !opens_for_change(open) {
            return Err(Errno::EINVAL);
        }
        let flags = (open - OFlag::O_TRUNC) | OFlag::O_TMPFILE;
        let file = sys::open_beneath(directory, c".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        self.hand_over(directory, file.as_fd(), mode, caller)?;
        Ok(file)
    }

    fn make_directory(
        &self,
        parent: BorrowedFd<'_>,
        name: &Name,
        mode: u32,
        caller: Caller,
    ) -> Result<OwnedFd, Errno> {
        mkdirat(parent, name.as_c_str(), Mode::S_IRWXU)?;
        let made =
            sys::open_beneath(parent, name.as_c_str(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        let attributes = check_ours(&made, libc::S_IFDIR)?;
        // What is in a directory with this bit has it too.
        let mode = mode | attributes.mode & libc::S_ISGID;
        self.hand_over(parent, made.as_fd(), mode, caller).inspect_err(|_| {
            // The first error is the one to report.
            let _ = unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir);
        })?;
        Ok(made)
    }

    /// A pipe or a socket.
    fn make_special(
        &self,
        parent: BorrowedFd<'_>,
        name: &Name,
        mode: u32,
        caller: Caller,
    ) -> Result<OwnedFd, Errno> {
        let kind = mode & libc::S_IFMT;
        mknodat(parent, name.as_c_str(), SFlag::from_bits_truncate(kind), Mode::S_IRUSR | Mode::S_IWUSR, 0)?;
        let made = sys::look_up(parent, name)?;
        check_ours(&made, kind)?;
        self.hand_over(parent, made.as_fd(), mode, caller).inspect_err(|_| {
            // The first error is the one to report.
            let _ = unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        })?;
        Ok(made)
    }

    /// Gives a new inode its owner and its mode.
    fn hand_over(
        &self,
        parent: BorrowedFd<'_>,
        made: BorrowedFd<'_>,
        mode: u32,
        caller: Caller,
    ) -> Result<(), Errno> {
        set_new_owner(parent, made, caller)?;
        sys::set_mode(self.proc.as_fd(), made, mode)
    }

    pub(super) fn remove(&mut self, parent: NodeId, name: &Name, kind: Removal) -> Result<Reply, Errno> {
        let (directory, _) = self.changeable(parent)?;
        let flags = match kind {
            Removal::Directory => UnlinkatFlags::RemoveDir,
            Removal::NoDirectory => UnlinkatFlags::NoRemoveDir,
        };
        unlinkat(directory, name.as_c_str(), flags)?;
        Ok(Reply::Done)
    }

    pub(super) fn rename(
        &mut self,
        from: (NodeId, &Name),
        to: (NodeId, &Name),
        flags: u32,
    ) -> Result<Reply, Errno> {
        let (from_directory, from_export) = self.changeable(from.0)?;
        let (to_directory, to_export) = self.changeable(to.0)?;
        if from_export != to_export {
            return Err(Errno::EXDEV);
        }
        // Not `RENAME_WHITEOUT`, which makes a device node.
        let flags = match flags {
            0 => RenameFlags::empty(),
            libc::RENAME_NOREPLACE => RenameFlags::RENAME_NOREPLACE,
            libc::RENAME_EXCHANGE => RenameFlags::RENAME_EXCHANGE,
            _ => return Err(Errno::EINVAL),
        };
        renameat2(from_directory, from.1.as_c_str(), to_directory, to.1.as_c_str(), flags)?;
        Ok(Reply::Done)
    }

    pub(super) fn link(&mut self, node: NodeId, parent: NodeId, name: &Name) -> Result<Reply, Errno> {
        let (directory, export) = self.changeable(parent)?;
        let inode = self.nodes.get(node)?;
        if inode.export() != export {
            return Err(Errno::EXDEV);
        }
        sys::link(self.proc.as_fd(), inode.fd(), directory, name)?;
        let fd = inode.fd().try_clone_to_owned().map_err(|_| Errno::ENFILE)?;
        self.hold(export, fd).map(Reply::Entry)
    }
}

fn make_symlink(
    parent: BorrowedFd<'_>,
    name: &Name,
    target: &[u8],
    caller: Caller,
) -> Result<OwnedFd, Errno> {
    if target.is_empty() || target.len() > TARGET_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let target = CString::new(target).map_err(|_| Errno::EINVAL)?;
    symlinkat(target.as_c_str(), parent, name.as_c_str())?;
    let made = sys::look_up(parent, name)?;
    check_ours(&made, libc::S_IFLNK)?;
    set_new_owner(parent, made.as_fd(), caller)?;
    Ok(made)
}

/// In a directory with the set-group-id bit, what is new keeps the directory's group.
fn set_new_owner(parent: BorrowedFd<'_>, made: BorrowedFd<'_>, caller: Caller) -> Result<(), Errno> {
    let inherits = sys::attributes(parent)?.mode & libc::S_ISGID != 0;
    sys::set_owner(made, Some(caller.uid), (!inherits).then_some(caller.gid))
}

/// What is no regular file is made by name and then found by name: between the two, somebody on the host may have put
/// another there, and that must not be given away.
fn check_ours(made: &OwnedFd, kind: u32) -> Result<hull_protocol::fs::Attributes, Errno> {
    let attributes = sys::attributes(made.as_fd())?;
    let permissions = attributes.mode & 0o777;
    let as_made = kind == libc::S_IFLNK || permissions & !0o700 == 0;
    if attributes.mode & libc::S_IFMT != kind || attributes.uid != geteuid().as_raw() || !as_made {
        return Err(Errno::EBUSY);
    }
    Ok(attributes)
}
