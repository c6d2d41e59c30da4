//! User namespaces: made, described to the kernel, and held by a descriptor.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{LaunchError, assert_single_threaded};
use crate::environment::Environment;
use crate::spec::IdMappings;
use crate::sys::process::{self, Cloned};
use crate::sys::{path, socket};

/// A user namespace.
#[derive(Debug)]
pub struct UserNamespace {
    fd: OwnedFd,
    /// Which ids it has.
    pub mappings: IdMappings,
}

impl UserNamespace {
    /// Makes one, with nobody in it.
    pub fn new(environment: &Environment, mappings: &IdMappings) -> Result<Self, LaunchError> {
        let (hold, held) = socket::message_pair().map_err(LaunchError::agent("make a channel"))?;
        assert_single_threaded();
        // SAFETY: the child's branch never returns, and the agent has one thread.
        let cloned = unsafe { process::clone(libc::CLONE_NEWUSER, None) };
        match cloned.map_err(LaunchError::agent("make a user namespace"))? {
            Cloned::Child => {
                // With a copy of the agent's end open, the channel would never end.
                drop(hold);
                // Whatever it is, it is the end: the agent says nothing here.
                let _ = socket::receive(held.as_fd(), &mut [0], 0);
                process::exit(0)
            }
            // Nobody waits for its end: it is reaped as an orphan is.
            Cloned::Parent(pid, pidfd) => {
                let made = Self::of(environment, pid, mappings);
                if let Err(error) = process::send_signal(pidfd.as_fd(), libc::SIGKILL) {
                    log::warn!("cannot end the maker of a user namespace: {error}");
                }
                made
            }
        }
    }

    /// That of process `pid`, whose ids are mapped.
    pub fn found(
        environment: &Environment,
        pid: libc::pid_t,
        mappings: &IdMappings,
    ) -> Result<Self, LaunchError> {
        let name = CString::new(format!("{pid}/ns/user")).unwrap_or_default();
        let fd = path::open_at(environment.proc.as_fd(), &name, libc::O_RDONLY)
            .map_err(LaunchError::agent("open a user namespace"))?;
        Ok(Self { fd, mappings: mappings.clone() })
    }

    /// Maps the ids of the new user namespace in which the agent's child `pid` is, which has not been reaped.
    pub fn of(
        environment: &Environment,
        pid: libc::pid_t,
        mappings: &IdMappings,
    ) -> Result<Self, LaunchError> {
        let open = |file: &str, flags| {
            let name = CString::new(format!("{pid}/{file}")).map_err(|_| Errno::EINVAL)?;
            path::open_at(environment.proc.as_fd(), &name, flags)
        };
        let map = |file, lines: String| {
            open(file, libc::O_WRONLY).and_then(|file| path::write_control(file.as_fd(), lines.as_bytes()))
        };
        map("uid_map", mappings.users.lines()).map_err(LaunchError::agent("map user ids"))?;
        map("gid_map", mappings.groups.lines()).map_err(LaunchError::agent("map group ids"))?;
        let fd = open("ns/user", libc::O_RDONLY).map_err(LaunchError::agent("open a user namespace"))?;
        Ok(Self { fd, mappings: mappings.clone() })
    }

    /// For setns(2) and for id-mapped mounts.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
