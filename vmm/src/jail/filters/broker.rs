//! What the file broker needs: it names, makes and owns files, which no thread of the monitor may. Where a call acts is
//! decided by the descriptors it has, and by `openat2`'s rules; see [`broker`](crate::broker).

use super::{Rule, always, is, when};

pub(super) const RULES: &[Rule] = &[
    // Messages in and out, with descriptors.
    always(libc::SYS_poll, "waits for the shim and the monitor"),
    always(libc::SYS_ppoll, "the same, where the C library has poll by this name"),
    always(libc::SYS_recvmsg, "requests"),
    always(libc::SYS_sendmsg, "answers, with open files"),
    always(libc::SYS_getsockopt, "what kind of socket it was given"),
    // Descriptors of its own.
    when(libc::SYS_fcntl, &[is(1, libc::F_DUPFD_CLOEXEC)], "a node that is used while the table may change"),
    // Names.
    always(libc::SYS_openat2, "look-ups: one component, beneath, no links"),
    always(libc::SYS_openat, "the same file once more, by /proc/self/fd: to read, to write, to list"),
    always(libc::SYS_mkdirat, "makes a directory"),
    always(libc::SYS_mknodat, "makes a file, a pipe or a socket; a device needs a capability that it lacks"),
    always(libc::SYS_symlinkat, "makes a symbolic link"),
    always(libc::SYS_linkat, "makes a link"),
    always(libc::SYS_unlinkat, "removes"),
    always(libc::SYS_renameat2, "renames"),
    always(libc::SYS_renameat, "the C library's renameat2 without flags"),
    always(libc::SYS_readlinkat, "reads a symbolic link"),
    always(libc::SYS_geteuid, "whether what it makes needs another owner"),
    // Attributes.
    always(libc::SYS_newfstatat, "attributes"),
    always(libc::SYS_fchmodat, "modes"),
    always(libc::SYS_fchownat, "owners"),
    always(libc::SYS_utimensat, "times"),
    always(libc::SYS_ftruncate, "sizes"),
    always(libc::SYS_fstatfs, "free space"),
    always(libc::SYS_fgetxattr, "extended attributes"),
    always(libc::SYS_flistxattr, "extended attributes"),
    always(libc::SYS_fsetxattr, "extended attributes"),
    always(libc::SYS_fremovexattr, "extended attributes"),
    // Open files and directories.
    always(libc::SYS_fsync, "writes a file to its disk"),
    always(libc::SYS_fdatasync, "writes a file's data to its disk"),
    always(libc::SYS_fallocate, "reserves, and punches holes"),
    always(libc::SYS_lseek, "finds holes; a directory's position"),
    always(libc::SYS_copy_file_range, "copies between open files"),
    always(libc::SYS_getdents64, "lists a directory"),
];
