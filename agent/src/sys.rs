//! The system calls that the standard library and nix lack, each as one safe function.
//!
//! Everything here takes borrowed arguments, allocates nothing and returns [`nix::errno::Errno`], so that the code
//! which runs between clone and exec can use it. It must not hold policy.

pub mod bpf;
pub mod disk;
pub mod machine;
pub mod mount;
pub mod path;
pub mod port;
pub mod process;
pub mod ready;
pub mod scheduling;
pub mod seccomp;
pub mod socket;
pub mod terminal;

use nix::errno::Errno;

/// Turns the kernel's -1 into the calling thread's errno.
fn check(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// A raw descriptor that a system call just returned, as its owner.
fn owned(result: libc::c_long) -> nix::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let fd = libc::c_int::try_from(check(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel returned this descriptor to us just now and nobody else knows it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}
