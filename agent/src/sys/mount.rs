//! The mount API by file descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)) and pivot_root(2).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::fcntl::AT_FDCWD;

use super::{check, owned};

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR__ATIME`, the mask of the three access-time modes.
pub const ATTR_ATIME_MASK: u64 = 0x70;
/// `MOUNT_ATTR_NOATIME`.
pub const ATTR_NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`.
pub const ATTR_STRICTATIME: u64 = 0x20;
/// `MOUNT_ATTR_NODIRATIME`.
pub const ATTR_NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_IDMAP`.
const ATTR_IDMAP: u64 = 0x10_0000;
/// `MOUNT_ATTR_NOSYMFOLLOW`.
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const AT_EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr {
    /// Attributes to raise.
    pub set: u64,
    /// Attributes to lower.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// Descriptor of a user namespace for id-mapped mounts.
    pub userns_fd: u64,
}

/// Whether a call concerns one mount or also everything mounted below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// This mount alone.
    One,
    /// This mount and those below.
    Recursive,
}

impl Depth {
    fn flag(self) -> libc::c_uint {
        match self {
            Self::One => 0,
            Self::Recursive => AT_RECURSIVE,
        }
    }
}

/// A configuration context for a new instance of file system `kind`.
pub fn fsopen(kind: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: a NUL-terminated string and a flag (FSOPEN_CLOEXEC).
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) })
}

/// Sets option `key` to `value`; without a value it is a flag.
pub fn fsconfig(context: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> nix::Result<()> {
    let (command, value) = match value {
        Some(value) => (FSCONFIG_SET_STRING, value.as_ptr()),
        None => (FSCONFIG_SET_FLAG, ptr::null()),
    };
    // SAFETY: both strings are NUL-terminated and outlive the call.
    check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0)
    })?;
    Ok(())
}

/// Creates the configured instance and returns a detached mount of it with the attributes `attrs`.
pub fn fsmount(context: BorrowedFd<'_>, attrs: u64) -> nix::Result<OwnedFd> {
    // SAFETY: this command takes neither key nor value.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            ptr::null::<libc::c_char>(),
            ptr::null::<libc::c_char>(),
            0,
        )
    })?;
    // SAFETY: a descriptor and two integers; 1 is FSMOUNT_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, attrs) })
}

/// A detached copy of the mount that `fd` is in, rooted at `fd` itself: what a bind mount attaches.
pub fn clone_tree(fd: BorrowedFd<'_>, depth: Depth) -> nix::Result<OwnedFd> {
    open_tree(fd, c"", AT_EMPTY_PATH | depth.flag())
}

/// The same of the mount alone that a path leads to which the agent itself made or trusts.
pub fn clone_tree_at(path: &CStr) -> nix::Result<OwnedFd> {
    open_tree(AT_FDCWD, path, 0)
}

fn open_tree(directory: BorrowedFd<'_>, path: &CStr, flags: libc::c_uint) -> nix::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags;
    // SAFETY: a NUL-terminated path, empty only with AT_EMPTY_PATH.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the detached mount `mount` on top of the file or directory `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    move_mount(mount, target, c"", MOVE_MOUNT_T_EMPTY_PATH)
}

/// Attaches it on top of a path that the agent itself made or trusts.
pub fn attach_at(mount: BorrowedFd<'_>, target: &CStr) -> nix::Result<()> {
    move_mount(mount, AT_FDCWD, target, 0)
}

fn move_mount(
    mount: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_uint,
) -> nix::Result<()> {
    // SAFETY: two descriptors with NUL-terminated paths, empty only where the flags allow it.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            directory.as_raw_fd(),
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | flags,
        )
    })?;
    Ok(())
}

/// Changes the attributes of the mount that `fd` is the root of.
pub fn set_attributes(fd: BorrowedFd<'_>, depth: Depth, attr: &MountAttr) -> nix::Result<()> {
    // SAFETY: `attr` is the kernel's structure and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH | depth.flag(),
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Makes a detached mount show its files to belong to the ids that user namespace `user` maps theirs to.
pub fn map_ids(fd: BorrowedFd<'_>, depth: Depth, user: BorrowedFd<'_>) -> nix::Result<()> {
    let userns_fd = u64::from(user.as_raw_fd().cast_unsigned());
    set_attributes(fd, depth, &MountAttr { set: ATTR_IDMAP, userns_fd, ..MountAttr::default() })
}

/// mount(2), for the few things it says more simply than the API above.
pub fn mount(source: &CStr, target: &CStr, kind: Option<&CStr>, flags: u64) -> nix::Result<()> {
    mount_with(source, target, kind, flags, None)
}

/// The same with options of the file system, separated by commas.
pub fn mount_with(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    options: Option<&CStr>,
) -> nix::Result<()> {
    let kind = kind.map_or(ptr::null(), CStr::as_ptr);
    let options = options.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: NUL-terminated strings or null; the file systems that are mounted here take text as data.
    check(libc::c_long::from(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, options.cast())
    }))?;
    Ok(())
}

/// umount2(2).
pub fn unmount(target: &CStr, flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: a NUL-terminated string.
    check(libc::c_long::from(unsafe { libc::umount2(target.as_ptr(), flags) }))?;
    Ok(())
}

/// Makes `root` the root directory of this mount namespace and of this process, and drops the old one with everything in it.
pub fn pivot_into(root: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: a valid descriptor; NUL-terminated strings. pivot_root(".", ".") stacks the old root on the new one.
    unsafe {
        check(libc::c_long::from(libc::fchdir(root.as_raw_fd())))?;
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
    }
    unmount(c".", libc::MNT_DETACH)?;
    // SAFETY: a NUL-terminated string.
    check(libc::c_long::from(unsafe { libc::chdir(c"/".as_ptr()) }))?;
    Ok(())
}
