//! `tmpcopyup`: what an image has where a tmpfs is mounted, copied into it. Nothing here follows a link, and the tmpfs bounds how
//! much is copied. Allocates nothing.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use crate::sys::path;

/// How deep a tree may be: each level has a buffer on the stack.
const DEPTH_MAX: usize = 64;

/// Copies what is in directory `from` into directory `to`, which is empty.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    // What may be a descriptor of its name alone is opened for reading.
    let from = path::open_at(from, c".", libc::O_RDONLY | libc::O_DIRECTORY)?;
    let to = path::open_at(to, c".", libc::O_RDONLY | libc::O_DIRECTORY)?;
    copy_directory(from.as_fd(), to.as_fd(), DEPTH_MAX)?;
    let stat = path::stat(from.as_fd())?;
    path::change_owner(to.as_fd(), c"", stat.st_uid, Some(stat.st_gid))
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> nix::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
    let mut buffer = [0; 4096];
    loop {
        let mut entries = path::read_directory(from, &mut buffer)?;
        if entries.is_empty() {
            return Ok(());
        }
        while let Some(name) = path::next_entry(&mut entries) {
            if name != c"." && name != c".." {
                copy_entry(from, to, name, depth)?;
            }
        }
    }
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> nix::Result<()> {
    let found = path::open_at(from, name, libc::O_PATH | libc::O_NOFOLLOW)?;
    let stat = path::stat(found.as_fd())?;
    let mode = stat.st_mode & 0o7777;
    let nofollow = |flags| flags | libc::O_NOFOLLOW;
    match path::kind(&stat) {
        libc::S_IFLNK => {
            let mut target = [0; libc::PATH_MAX as usize + 1];
            let length = path::read_link(found.as_fd(), c"", &mut target[..libc::PATH_MAX as usize])?;
            let target = CStr::from_bytes_with_nul(&target[..=length]).map_err(|_| Errno::EINVAL)?;
            path::make_symlink(target, to, name)?;
            return path::change_owner(to, name, stat.st_uid, Some(stat.st_gid));
        }
        libc::S_IFDIR => path::make_dir(to, name, 0o700)?,
        libc::S_IFREG => path::make_node(to, name, libc::S_IFREG | 0o600, 0)?,
        // A server makes its socket anew.
        libc::S_IFSOCK => return Ok(()),
        kind => {
            path::make_node(to, name, kind | mode, stat.st_rdev)?;
            return path::change_owner(to, name, stat.st_uid, Some(stat.st_gid));
        }
    }
    let copied = if path::kind(&stat) == libc::S_IFDIR {
        let flags = nofollow(libc::O_RDONLY | libc::O_DIRECTORY);
        let (from, copied) = (path::open_at(from, name, flags)?, path::open_at(to, name, flags)?);
        copy_directory(from.as_fd(), copied.as_fd(), depth)?;
        copied
    } else {
        let source = path::open_at(from, name, nofollow(libc::O_RDONLY | libc::O_NONBLOCK))?;
        let copied = path::open_at(to, name, nofollow(libc::O_WRONLY))?;
        path::copy_file(source.as_fd(), copied.as_fd())?;
        copied
    };
    path::change_owner(copied.as_fd(), c"", stat.st_uid, Some(stat.st_gid))?;
    // After the owner, whose change takes set-user-id away.
    path::change_mode(copied.as_fd(), mode)
}
