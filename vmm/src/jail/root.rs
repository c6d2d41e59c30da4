//! An empty, read-only root directory, in a mount namespace that is the process's own.
//!
//! The new root is a tmpfs made by descriptor (`fsopen`, `fsmount`, Linux 5.2), so that no directory of the host serves
//! as a mount point and no path is resolved.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, fchdir, pivot_root};

use super::{JailError, refused};

/// Makes an empty directory the root, and lets go of the host's file system.
pub fn pivot_into_nothing() -> Result<(), JailError> {
    // Nothing of what follows may reach the host's own mounts.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(refused("keep its mounts private"))?;
    let empty = empty_file_system().map_err(refused("make an empty file system"))?;
    attach_over_root(&empty).map_err(refused("mount the empty root"))?;
    fchdir(&empty).map_err(refused("enter the empty root"))?;
    // The old root is stacked on the new one, where it can be let go of without a directory to hold it.
    pivot_root(".", ".").map_err(refused("pivot into the empty root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(refused("let go of the host's root"))?;
    chdir("/").map_err(refused("enter the empty root"))
}

/// A detached tmpfs that takes no file.
fn empty_file_system() -> nix::Result<OwnedFd> {
    // SAFETY: the name ends with zero.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    let configure = |command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: `key` and `value` are null or strings that end with zero, as the commands below want them.
        let done = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) };
        Errno::result(done).map(drop)
    };
    // One inode is the root directory itself.
    for (key, value) in [(c"mode", c"0555"), (c"nr_inodes", c"1"), (c"size", c"4k")] {
        configure(libc::FSCONFIG_SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    configure(libc::FSCONFIG_CMD_CREATE, ptr::null(), ptr::null())?;
    let locked =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: a descriptor and flags.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, locked) })
}

fn attach_over_root(file_system: &OwnedFd) -> nix::Result<()> {
    // SAFETY: both paths end with zero.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            file_system.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(done).map(drop)
}

/// Takes a descriptor that a system call has returned.
fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
