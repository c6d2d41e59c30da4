//! seccomp(2).

use std::ptr;

use nix::errno::Errno;

use super::check;

/// Filters every later system call of the calling process and of its children.
pub fn install(program: &[libc::sock_filter], flags: u32) -> nix::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel only reads the program, whose pointer and length belong together.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, ptr::from_ref(&program))
    })?;
    // With TSYNC, the thread that could not be filtered.
    if result == 0 { Ok(()) } else { Err(Errno::ESRCH) }
}
