//! Path resolution that cannot leave a given directory: openat2(2) and the calls that work on its result.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

use super::{check, owned};

/// What may be met on the way to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// Symbolic links are followed but stay inside the directory, as if it were the root. Magic links are refused.
    InRoot,
    /// As `InRoot`, and no component may be a symbolic link.
    InRootNoSymlinks,
    /// What leads out of the directory is refused (`EXDEV`), as are symbolic links and other mounts.
    Beneath,
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

const RESOLVE_NO_MAGICLINKS: u64 = 0x2;
const RESOLVE_NO_SYMLINKS: u64 = 0x4;
const RESOLVE_BENEATH: u64 = 0x8;
const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_NO_XDEV: u64 = 0x1;

/// Opens `path` below `directory`. `O_CLOEXEC` is always set.
pub fn open_in(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: libc::c_int,
    resolve: Resolve,
) -> nix::Result<OwnedFd> {
    let how_far = match resolve {
        Resolve::InRoot => RESOLVE_IN_ROOT,
        Resolve::InRootNoSymlinks => RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS,
        Resolve::Beneath => RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
    };
    let how = OpenHow {
        flags: u64::from((flags | libc::O_CLOEXEC).cast_unsigned()),
        mode: 0,
        resolve: RESOLVE_NO_MAGICLINKS | how_far,
    };
    // SAFETY: a NUL-terminated path and the kernel's structure with its size.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            directory.as_raw_fd(),
            path.as_ptr(),
            ptr::from_ref(&how),
            size_of::<OpenHow>(),
        )
    })
}

/// open(2) of a path that the agent itself made or trusts.
pub fn open(path: &CStr, flags: libc::c_int) -> nix::Result<OwnedFd> {
    // SAFETY: a NUL-terminated path.
    owned(libc::c_long::from(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) }))
}

/// openat(2) below a directory that the agent trusts.
pub fn open_at(directory: BorrowedFd<'_>, path: &CStr, flags: libc::c_int) -> nix::Result<OwnedFd> {
    // SAFETY: a NUL-terminated path.
    owned(libc::c_long::from(unsafe {
        libc::openat(directory.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC)
    }))
}

/// fstat(2).
pub fn stat(fd: BorrowedFd<'_>) -> nix::Result<libc::stat> {
    // SAFETY: all-zero bytes are a valid `stat`, which the kernel then fills.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::stat>();
        check(libc::c_long::from(libc::fstat(fd.as_raw_fd(), &raw mut stat)))?;
        Ok(stat)
    }
}

/// stat(2), following links, from the calling process's own root and directory.
pub fn stat_path(path: &CStr) -> nix::Result<libc::stat> {
    // SAFETY: a NUL-terminated path; all-zero bytes are a valid `stat`.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::stat>();
        check(libc::c_long::from(libc::stat(path.as_ptr(), &raw mut stat)))?;
        Ok(stat)
    }
}

/// Whether the effective user may execute `path`.
pub fn check_executable(path: &CStr) -> nix::Result<()> {
    // SAFETY: a NUL-terminated path.
    check(libc::c_long::from(unsafe {
        libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS)
    }))?;
    Ok(())
}

/// The type bits of a file's mode, `S_IFDIR` and so on.
pub fn kind(stat: &libc::stat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

/// Whether the file is the character device `major`:`minor`.
pub fn is_char_device(stat: &libc::stat, major: u32, minor: u32) -> bool {
    kind(stat) == libc::S_IFCHR && stat.st_rdev == libc::makedev(major, minor)
}

/// mkdirat(2); an existing directory is fine.
pub fn make_dir(directory: BorrowedFd<'_>, name: &CStr, mode: libc::mode_t) -> nix::Result<()> {
    // SAFETY: a NUL-terminated name.
    match check(libc::c_long::from(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) })) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// mknodat(2).
pub fn make_node(
    directory: BorrowedFd<'_>,
    name: &CStr,
    mode: libc::mode_t,
    device: libc::dev_t,
) -> nix::Result<()> {
    // SAFETY: a NUL-terminated name.
    check(libc::c_long::from(unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, device) }))?;
    Ok(())
}

/// symlinkat(2).
pub fn make_symlink(target: &CStr, directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<()> {
    // SAFETY: NUL-terminated strings.
    check(libc::c_long::from(unsafe {
        libc::symlinkat(target.as_ptr(), directory.as_raw_fd(), name.as_ptr())
    }))?;
    Ok(())
}

/// fchownat(2) of `name` itself, not of what it links to. `None` leaves the group alone.
pub fn change_owner(
    directory: BorrowedFd<'_>,
    name: &CStr,
    uid: libc::uid_t,
    gid: Option<libc::gid_t>,
) -> nix::Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: a NUL-terminated name, empty for the descriptor itself.
    check(libc::c_long::from(unsafe {
        libc::fchownat(directory.as_raw_fd(), name.as_ptr(), uid, gid.unwrap_or(u32::MAX), flags)
    }))?;
    Ok(())
}

/// fchmod(2).
pub fn change_mode(fd: BorrowedFd<'_>, mode: libc::mode_t) -> nix::Result<()> {
    // SAFETY: a descriptor and an integer.
    check(libc::c_long::from(unsafe { libc::fchmod(fd.as_raw_fd(), mode) }))?;
    Ok(())
}

/// fchmodat(2), following links.
pub fn change_mode_at(directory: BorrowedFd<'_>, name: &CStr, mode: libc::mode_t) -> nix::Result<()> {
    // SAFETY: a NUL-terminated name.
    check(libc::c_long::from(unsafe { libc::fchmodat(directory.as_raw_fd(), name.as_ptr(), mode, 0) }))?;
    Ok(())
}

/// write(2), all of `data` or an error: for the small control files of procfs and cgroupfs.
pub fn write_control(fd: BorrowedFd<'_>, data: &[u8]) -> nix::Result<()> {
    // SAFETY: the buffer and its length belong together.
    let written =
        check(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) } as libc::c_long)?;
    if usize::try_from(written) == Ok(data.len()) { Ok(()) } else { Err(Errno::EIO) }
}

/// getdents64(2): some entries of a directory, none at its end.
pub fn read_directory<'b>(directory: BorrowedFd<'_>, buffer: &'b mut [u8]) -> nix::Result<&'b [u8]> {
    // SAFETY: the buffer and its length belong together.
    let length = check(unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    })?;
    buffer.get(..usize::try_from(length).unwrap_or(0)).ok_or(Errno::EINVAL)
}

/// Takes the name of the first of `entries` ([`read_directory`]).
pub fn next_entry<'b>(entries: &mut &'b [u8]) -> Option<&'b CStr> {
    /// Of `struct linux_dirent64`: where the entry's length is, and the name.
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let length = u16::from_ne_bytes([*entries.get(LENGTH)?, *entries.get(LENGTH + 1)?]);
    let (entry, rest) = entries.split_at_checked(usize::from(length))?;
    *entries = rest;
    CStr::from_bytes_until_nul(entry.get(NAME..)?).ok()
}

/// Copies the whole of a file (sendfile(2)).
pub fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    const AT_ONCE: usize = 1 << 20;
    loop {
        // SAFETY: two descriptors; the file's own offset is used.
        let copied =
            check(unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), ptr::null_mut(), AT_ONCE) }
                as libc::c_long)?;
        if copied == 0 {
            return Ok(());
        }
    }
}

/// memfd_create(2): a file without a name, closed at exec.
pub fn memory_file(name: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: a NUL-terminated name.
    owned(libc::c_long::from(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) }))
}

/// lseek(2) to the beginning.
pub fn rewind(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: integers.
    check(unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_SET) })?;
    Ok(())
}

/// readlinkat(2): the length of the target, of which `buffer` gets as much as fits.
pub fn read_link(directory: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: a NUL-terminated name; the buffer and its length belong together.
    let length = check(unsafe {
        libc::readlinkat(directory.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    } as libc::c_long)?;
    usize::try_from(length).map_err(|_| Errno::EINVAL)
}

/// The magic number of the file system that `fd` is on (statfs(2)).
pub fn filesystem_magic(fd: BorrowedFd<'_>) -> nix::Result<i64> {
    // SAFETY: all-zero bytes are a valid `statfs`, which the kernel then fills.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::statfs>();
        check(libc::c_long::from(libc::fstatfs(fd.as_raw_fd(), &raw mut stat)))?;
        Ok(stat.f_type)
    }
}

/// Whether nothing can be written where `fd` is, because of the file system or of the mount (fstatvfs(3)).
pub fn is_read_only(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    // SAFETY: all-zero bytes are a valid `statvfs`, which the C library then fills.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::statvfs>();
        check(libc::c_long::from(libc::fstatvfs(fd.as_raw_fd(), &raw mut stat)))?;
        Ok(stat.f_flag & libc::ST_RDONLY != 0)
    }
}

/// dup2(2): afterwards `number` is `fd` and survives exec.
pub fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    // SAFETY: `number` is 0, 1 or 2 in a process that is about to exec: no owner in this program is left dangling.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) }))?;
    Ok(())
}
