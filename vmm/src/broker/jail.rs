//! The broker's jail: what is left to a process that will read what a guest may have written.
//!
//! In this order: limits; name spaces of its own for mounts, network, IPC and host name, the first pivoted into an
//! empty read-only directory; four capabilities, in the bounding set too; no new privileges; a seccomp filter. What
//! remains is what comes by descriptor: the exports, and `/proc/self/fd`, as a mount that is attached nowhere and has
//! nothing above it.

use std::ffi::CStr;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{chdir, pivot_root};

use super::handles::HANDLES_MAX;
use super::nodes::NODES_MAX;
use crate::jail::capabilities;
use crate::jail::denied::{self, Program};
use crate::jail::filters::Role;
use crate::jail::seccomp::{Filter, FilterError};

/// Descriptors besides nodes and handles: exports, sockets, and those between two system calls.
const FDS_BESIDES: usize = 1024;

/// The capabilities that the ownership of files needs (capabilities(7)), each with what it is for.
pub const KEPT: [u32; 4] = [
    // CAP_CHOWN: what the guest makes is the guest's user's.
    0,
    // CAP_DAC_OVERRIDE: the guest's kernel has checked permissions, with groups that the broker does not know.
    1, // CAP_FOWNER: modes and times of files of any of the guest's users.
    3, // CAP_FSETID: set-group-id bits, as the guest's kernel decided.
    4,
];

/// Which part of the jail could not be built.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A step that the monitor's jail has, too.
    #[error(transparent)]
    Shared(#[from] crate::jail::JailError),
    /// System calls cannot be denied.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Goes into the jail for good. Answers `/proc/self/fd`. The process must have one thread.
pub fn enter() -> Result<OwnedFd, JailError> {
    limit()?;
    let proc = pivot()?;
    capabilities::bound_to(&KEPT)?;
    capabilities::reduce_to(&KEPT)?;
    step("forbid new privileges", nix::sys::prctl::set_no_new_privs())?;
    step("forbid core dumps", nix::sys::prctl::set_dumpable(false))?;
    denied::report(Program::Broker)?;
    Filter::of(Role::Broker)?.close()?;
    Ok(proc)
}

/// `/proc/self/fd` without a jail, for a broker inside a test.
#[cfg(test)]
pub fn proc_without_jail() -> OwnedFd {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/proc/self/fd", flags, nix::sys::stat::Mode::empty()).unwrap()
}

fn limit() -> Result<(), JailError> {
    // As many as the tables hold; where the host gives less, the kernel refuses one at a time.
    let wanted = (NODES_MAX + HANDLES_MAX + FDS_BESIDES) as u64;
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_err() {
        let (_, hard) = step("read a limit", getrlimit(Resource::RLIMIT_NOFILE))?;
        step("raise a limit", setrlimit(Resource::RLIMIT_NOFILE, hard, hard))?;
    }
    step("forbid core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))
}

/// Into an empty root.
fn pivot() -> Result<OwnedFd, JailError> {
    let spaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    step("make name spaces", unshare(spaces))?;
    let none = None::<&CStr>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("keep mounts to itself", mount(none, c"/", none, private, none))?;
    let proc = step("detach /proc/self/fd", detached(c"/proc/self/fd"))?;
    // Any directory that is always there serves to put the new root on.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    step("mount an empty root", mount(none, c"/proc", Some(c"tmpfs"), flags, Some(c"size=4k,mode=0555")))?;
    step("go to the empty root", chdir(c"/proc"))?;
    step("change the root", pivot_root(c".", c"."))?;
    step("let the old root go", umount2(c".", MntFlags::MNT_DETACH))?;
    step("go to the root", chdir(c"/"))?;
    Ok(proc)
}

/// A mount of a directory that is attached nowhere: `..` does not lead out of it.
fn detached(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends with a NUL; the result is checked, and a descriptor that only we own.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Names the step that failed.
fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, JailError> {
    result.map_err(|error| JailError::Step { step, source: error.into() })
}
