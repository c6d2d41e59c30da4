//! A process held by descriptor, so that a signal never reaches another that got its number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::proc_stat::start_ticks;

/// One process, dead or alive.
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process with this number that started then; `None` when it is no more.
    pub fn open(pid: u32, started: u64) -> io::Result<Option<Self>> {
        let Ok(number) = libc::pid_t::try_from(pid) else { return Ok(None) };
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
        let fd = match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => fd,
            _ => {
                let error = io::Error::last_os_error();
                let gone = matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL));
                return if gone { Ok(None) } else { Err(error) };
            }
        };
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Compared after the descriptor pins the process: from here on the number cannot change hands.
        Ok((start_ticks(pid) == Some(started)).then_some(Self(fd)))
    }

    /// Sends SIGKILL and waits for the end, up to `deadline`. A process that is already dead is no error.
    pub fn kill(&self, deadline: Duration) -> io::Result<()> {
        let null = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal takes a descriptor we own and, for a null siginfo, nothing from memory.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, null, 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) };
        }
        let timeout = PollTimeout::try_from(deadline).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_one_process_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let started = start_ticks(child.id()).unwrap();
        assert!(Pidfd::open(child.id(), started + 1).unwrap().is_none(), "another process of that number");
        assert!(child.try_wait().unwrap().is_none());
        let process = Pidfd::open(child.id(), started).unwrap().unwrap();
        process.kill(Duration::from_secs(10)).unwrap();
        assert!(!child.wait().unwrap().success());
        process.kill(Duration::from_secs(1)).unwrap();
        assert!(Pidfd::open(child.id(), started).unwrap().is_none());
    }
}
