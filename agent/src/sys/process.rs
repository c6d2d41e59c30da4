//! Making, joining, signalling and reaping processes, and a process's own credentials.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;

use super::{check, owned};

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The old one, with the child's pid as its own pid namespace numbers it and the child's pidfd.
    Parent(libc::pid_t, OwnedFd),
}

/// clone3(2) without shared memory: a fork, with namespaces `flags` (`CLONE_NEW*`), into cgroup directory `cgroup`.
///
/// Signal handlers are reset in the child. With `CLONE_PARENT` it is the caller's sibling.
///
/// # Safety
/// The child must not return from the function that called this: it has copies of everything that the parent owns, so it
/// must end in exec or `_exit` without running destructors. The calling process must have one thread.
pub unsafe fn clone(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Cloned> {
    // A sibling's parent is told in the way that the caller's is.
    let signal = if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD } else { 0 };
    // SAFETY: the caller's promise.
    unsafe { clone_with(flags, signal, cgroup) }
}

/// The same without namespaces, for a child that is waited for by its pidfd: its end raises no signal, and a wait for any child passes
/// over it.
///
/// # Safety
/// As of [`clone`].
pub unsafe fn clone_quietly() -> nix::Result<Cloned> {
    // SAFETY: the caller's promise.
    unsafe { clone_with(0, 0, None) }
}

unsafe fn clone_with(
    flags: libc::c_int,
    exit_signal: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> nix::Result<Cloned> {
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero bytes are a valid `clone_args`.
    let mut args = unsafe { std::mem::zeroed::<libc::clone_args>() };
    args.flags = u64::from((flags | libc::CLONE_PIDFD).cast_unsigned()) | CLONE_CLEAR_SIGHAND;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::from(exit_signal.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM and a stack this is fork(2); the structure and its size belong together.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel stored a new descriptor of ours.
    Ok(Cloned::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// setns(2) with a namespace descriptor, or with a pidfd and the namespaces `flags` of that process.
pub fn join_namespaces(fd: BorrowedFd<'_>, flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: a descriptor and an integer.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), flags) }))?;
    Ok(())
}

/// unshare(2).
pub fn unshare(flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: an integer; namespaces alone do not change memory.
    check(libc::c_long::from(unsafe { libc::unshare(flags) }))?;
    Ok(())
}

/// pidfd_open(2).
pub fn open_pidfd(pid: libc::pid_t) -> nix::Result<OwnedFd> {
    // SAFETY: two integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// pidfd_getfd(2): a copy of another process's descriptor.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, number: libc::c_int) -> nix::Result<OwnedFd> {
    // SAFETY: three integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}

/// pidfd_send_signal(2).
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> nix::Result<()> {
    // SAFETY: no siginfo is given; the kernel makes one as kill(2) does.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It called exit with this code.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl Ended {
    /// The code a shell reports: the exit code, or 128 + n for signal n.
    pub fn code(self) -> u32 {
        match self {
            Self::Exited(code) => u32::from(code.to_le_bytes()[0]),
            Self::Killed(signal) => 128 + signal.unsigned_abs(),
        }
    }
}

/// Which children a wait is about.
#[derive(Clone, Copy, Debug)]
pub enum Children<'fd> {
    /// The one behind this pidfd; it is reaped.
    Take(BorrowedFd<'fd>),
    /// The one with this pid; it is reaped.
    TakePid(libc::pid_t),
    /// Any; it is reaped.
    TakeAny,
    /// Any; it stays to be reaped.
    Peek,
}

/// An ended child's pid and how it ended, if one has ended. Never blocks.
pub fn wait(children: Children<'_>) -> nix::Result<Option<(libc::pid_t, Ended)>> {
    let (kind, id, flags) = match children {
        // Also one whose end raises no signal.
        Children::Take(pidfd) => (libc::P_PIDFD, pidfd.as_raw_fd().cast_unsigned(), libc::__WALL),
        Children::TakePid(pid) => (libc::P_PID, pid.cast_unsigned(), 0),
        Children::TakeAny => (libc::P_ALL, 0, 0),
        Children::Peek => (libc::P_ALL, 0, libc::WNOWAIT),
    };
    // SAFETY: all-zero bytes are a valid `siginfo_t`; after waitid the fields of SIGCHLD are the ones set.
    unsafe {
        let mut info = std::mem::zeroed::<libc::siginfo_t>();
        check(libc::c_long::from(libc::waitid(
            kind,
            id,
            &raw mut info,
            libc::WEXITED | libc::WNOHANG | flags,
        )))?;
        if info.si_pid() == 0 {
            return Ok(None);
        }
        let ended = match info.si_code {
            libc::CLD_EXITED => Ended::Exited(info.si_status()),
            _ => Ended::Killed(info.si_status()),
        };
        Ok(Some((info.si_pid(), ended)))
    }
}

/// Waits for the end of the process behind `pidfd`, no longer than `limit`: whether it has ended. It stays to be reaped.
pub fn wait_until_ended(pidfd: BorrowedFd<'_>, limit: Duration) -> nix::Result<bool> {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: one structure, which outlives the call. Every signal has its default action, so none interrupts it and returns.
    let ready = check(libc::c_long::from(unsafe { libc::poll(&raw mut poll, 1, limit) }))?;
    Ok(ready > 0)
}

/// Waits for the end of the child behind `pidfd`, and reaps it.
pub fn wait_for(pidfd: BorrowedFd<'_>) -> nix::Result<Ended> {
    wait_until_ended(pidfd, Duration::MAX)?;
    Ok(wait(Children::Take(pidfd))?.map_or(Ended::Killed(libc::SIGKILL), |(_, ended)| ended))
}

/// Ends the calling process at once, without destructors.
pub fn exit(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// prctl(2) with integer arguments.
pub fn control(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: only options whose arguments are integers are passed by this crate; the unused ones must be zero.
    check(libc::c_long::from(unsafe {
        libc::prctl(option, first, second, 0 as libc::c_ulong, 0 as libc::c_ulong)
    }))?;
    Ok(())
}

/// Starts a new session of which the caller is the leader.
pub fn new_session() -> nix::Result<()> {
    // SAFETY: no arguments.
    check(libc::c_long::from(unsafe { libc::setsid() }))?;
    Ok(())
}

/// Gives the caller a session keyring of its own. A kernel without keyrings has none to share.
pub fn new_session_keyring() -> nix::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    match check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>())
    }) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Unblocks every signal, and restores what those in `ignored` do by default, a bit for each: the Rust runtime, and who started it,
/// may ignore some. Handlers are gone since the clone.
pub fn reset_signals(ignored: u64) -> nix::Result<()> {
    // The kernel's `struct sigaction`: handler (SIG_DFL), flags, restorer, mask.
    let default_action = [0u64; 4];
    // SAFETY: raw system calls, because the C library hides two signals; both structures are the kernel's, and SIG_DFL installs
    // no code.
    unsafe {
        let none = 0u64;
        check(libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            ptr::null_mut::<u64>(),
            SIGNAL_SET_SIZE,
        ))?;
        for signal in (1..=64).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
            check(libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default_action.as_ptr(),
                ptr::null_mut::<u64>(),
                SIGNAL_SET_SIZE,
            ))?;
        }
    }
    Ok(())
}

/// In the kernel a set of signals is one word.
const SIGNAL_SET_SIZE: usize = 8;
/// `SIGCHLD` as such a set.
const CHILD_SIGNAL: u64 = 1 << (libc::SIGCHLD - 1);

/// Makes SIGCHLD wait until [`wait_for_child_signal`] takes it.
pub fn block_child_signal() -> nix::Result<()> {
    let set = CHILD_SIGNAL;
    // SAFETY: the set is one word that outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const set,
            ptr::null_mut::<u64>(),
            SIGNAL_SET_SIZE,
        )
    })?;
    Ok(())
}

/// Sleeps until a SIGCHLD is there, and takes it.
pub fn wait_for_child_signal() -> nix::Result<()> {
    let set = CHILD_SIGNAL;
    // SAFETY: the set is one word that outlives the call; neither information nor a time limit is wanted.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const set,
            ptr::null_mut::<libc::siginfo_t>(),
            ptr::null::<libc::timespec>(),
            SIGNAL_SET_SIZE,
        )
    })?;
    Ok(())
}

/// Names the calling process, for those who list processes.
pub fn set_name(name: &CStr) -> nix::Result<()> {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }))?;
    Ok(())
}

/// Closes every descriptor. For a process that never returns to code which owns one.
pub fn close_all() -> nix::Result<()> {
    // SAFETY: integers.
    check(unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) })?;
    Ok(())
}

/// Makes every descriptor from 3 up close at exec.
pub fn close_on_exec_from_3() -> nix::Result<()> {
    // SAFETY: integers.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// setrlimit(2) of the calling process.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call.
    check(libc::c_long::from(unsafe { libc::setrlimit(resource, &raw const limit) }))?;
    Ok(())
}

/// prlimit(2) of another process.
pub fn set_limit_of(pid: libc::pid_t, resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call; the old limit is not asked for.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, ptr::null_mut::<libc::rlimit64>())
    })?;
    Ok(())
}

/// Sets all user and group ids of the calling process. Capabilities decide whether it may.
pub fn set_ids(uid: libc::uid_t, gid: libc::gid_t, groups: &[libc::gid_t]) -> nix::Result<()> {
    // SAFETY: raw system calls, for one thread: the C library's versions would signal other threads. The list and its length
    // belong together.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// capset(2) of the calling process; each set is a bit mask of capability numbers.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    #[allow(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    let low = |set: u64| set as u32;
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [0, 32].map(|shift| Data {
        effective: low(effective >> shift),
        permitted: low(permitted >> shift),
        inheritable: low(inheritable >> shift),
    });
    // SAFETY: version 3 takes the header and two data structures.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// sethostname(2).
pub fn set_hostname(name: &CStr) -> nix::Result<()> {
    // SAFETY: the string and its length belong together.
    check(libc::c_long::from(unsafe { libc::sethostname(name.as_ptr(), name.count_bytes()) }))?;
    Ok(())
}

/// setdomainname(2).
pub fn set_domainname(name: &CStr) -> nix::Result<()> {
    // SAFETY: the string and its length belong together.
    check(libc::c_long::from(unsafe { libc::setdomainname(name.as_ptr(), name.count_bytes()) }))?;
    Ok(())
}

/// Sets the file mode creation mask.
pub fn set_umask(mask: libc::mode_t) {
    // SAFETY: cannot fail.
    unsafe { libc::umask(mask) };
}

/// chdir(2).
pub fn change_directory(path: &CStr) -> nix::Result<()> {
    // SAFETY: a NUL-terminated path.
    check(libc::c_long::from(unsafe { libc::chdir(path.as_ptr()) }))?;
    Ok(())
}

/// Fails with ENOENT when the working directory is not below the root directory (getcwd(2) says `(unreachable)`).
pub fn check_directory_reachable() -> nix::Result<()> {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer and its size belong together.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    if buffer[0] == b'/' { Ok(()) } else { Err(Errno::ENOENT) }
}

/// A list of pointers as execve(2) takes it.
pub fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain(std::iter::once(ptr::null())).collect()
}

/// execveat(2) of an open file. Returns only its failure.
///
/// # Safety
/// As of [`execute`].
pub unsafe fn execute_file(
    file: BorrowedFd<'_>,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> Errno {
    // SAFETY: the caller's promise; an empty path, which the flag allows.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Errno::last()
}

/// execve(2). Returns only its failure.
///
/// # Safety
/// `argv` and `envp` must be arrays of pointers to NUL-terminated strings that end with a null pointer.
pub unsafe fn execute(path: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> Errno {
    // SAFETY: the caller's promise.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}
