//! The system calls of the broker, each in the one form in which it is safe.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use hull_protocol::fs::{Attributes, Name, SetTime, Time};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, fstatat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

/// Opens one component of a directory, and nothing else: no link of any kind is followed.
pub fn open_beneath(
    directory: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlag,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let how = OpenHow::new().flags(flags).mode(mode).resolve(resolve);
    // A rename somewhere on the way makes the kernel ask for another try; a component without `..` has no way.
    for _ in 0..8 {
        match openat2(directory, name, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// The inode of a name, whatever it is.
pub fn look_up(directory: BorrowedFd<'_>, name: &Name) -> Result<OwnedFd, Errno> {
    open_beneath(directory, name.as_c_str(), OFlag::O_PATH, Mode::empty())
}

/// The name of a descriptor of ours in `/proc/self/fd`.
fn magic_name(fd: BorrowedFd<'_>) -> CString {
    CString::new(fd.as_raw_fd().to_string()).unwrap_or_default()
}

/// Opens the inode of a descriptor anew. The caller has checked what kind of inode it is.
pub fn reopen(proc: BorrowedFd<'_>, fd: BorrowedFd<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    openat(proc, magic_name(fd).as_c_str(), flags, Mode::empty())
}

/// `stat(2)` of a descriptor of any kind.
pub fn attributes(fd: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    identity(fd).map(|(_, attributes)| attributes)
}

/// The device number and the attributes.
pub fn identity(fd: BorrowedFd<'_>) -> Result<(u64, Attributes), Errno> {
    let stat = fstatat(fd, c"", AtFlags::AT_EMPTY_PATH)?;
    let time =
        |seconds, nanoseconds: i64| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
    let attributes = Attributes {
        ino: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        block_size: u32::try_from(stat.st_blksize).unwrap_or(4096),
    };
    Ok((stat.st_dev, attributes))
}

/// Sets permission bits of any inode but a symbolic link.
pub fn set_mode(proc: BorrowedFd<'_>, fd: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    fchmodat(proc, magic_name(fd).as_c_str(), mode, FchmodatFlags::FollowSymlink)
}

/// Sets the owner of any inode.
pub fn set_owner(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)
}

/// Sets times of any inode; `None` leaves one as it is.
pub fn set_times(
    proc: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    atime: Option<SetTime>,
    mtime: Option<SetTime>,
) -> Result<(), Errno> {
    let time = |time: Option<SetTime>| match time {
        None => Ok(TimeSpec::UTIME_OMIT),
        Some(SetTime::Now) => Ok(TimeSpec::UTIME_NOW),
        // More nanoseconds than a second has would be the kernel's words for the two above.
        Some(SetTime::At(at)) if at.nanoseconds < 1_000_000_000 => {
            Ok(TimeSpec::new(at.seconds, i64::from(at.nanoseconds)))
        }
        Some(SetTime::At(_)) => Err(Errno::EINVAL),
    };
    let name = magic_name(fd);
    utimensat(proc, name.as_c_str(), &time(atime)?, &time(mtime)?, UtimensatFlags::FollowSymlink)
}

/// Gives an inode one more name.
pub fn link(
    proc: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &Name,
) -> Result<(), Errno> {
    nix::unistd::linkat(
        proc,
        magic_name(fd).as_c_str(),
        directory,
        name.as_c_str(),
        AtFlags::AT_SYMLINK_FOLLOW,
    )
}

/// Reads entries of a directory as the kernel gives them (`struct linux_dirent64`); none at the end.
pub fn read_entries(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the buffer's length into the buffer, which is ours alone.
    let count = unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    usize::try_from(count).map_err(|_| Errno::last())
}

/// What an extended attribute holds: into `buffer`, or how long it is where that is empty.
pub fn get_xattr(file: BorrowedFd<'_>, name: &Name, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the name ends with a NUL; the kernel writes at most the buffer's length.
    let count = unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_c_str().as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    };
    usize::try_from(count).map_err(|_| Errno::last())
}

/// The names of extended attributes, each with a NUL behind it.
pub fn list_xattr(file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the buffer's length.
    let count = unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| Errno::last())
}

/// Sets an extended attribute.
pub fn set_xattr(file: BorrowedFd<'_>, name: &Name, value: &[u8], flags: i32) -> Result<(), Errno> {
    let name = name.as_c_str().as_ptr();
    // SAFETY: the name ends with a NUL; the kernel reads the value's length.
    let result =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name, value.as_ptr().cast(), value.len(), flags) };
    Errno::result(result).map(drop)
}

/// Removes an extended attribute.
pub fn remove_xattr(file: BorrowedFd<'_>, name: &Name) -> Result<(), Errno> {
    // SAFETY: the name ends with a NUL.
    let result = unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_c_str().as_ptr()) };
    Errno::result(result).map(drop)
}
