//! What a new process and the agent tell each other until the program runs: messages over a socket pair.
//!
//! Child to agent: `Cloned` with a pidfd, `Terminal` with a descriptor, `Ready`, `Failed`; the end of the stream means that exec closed
//! it. Agent to child: one byte that opens the gate at which the child waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::socket;

/// The steps of a set-up, for error reports. The discriminants are what travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Isolate,
    Clone,
    CgroupNamespace,
    TimeNamespace,
    JoinNamespaces,
    Root,
    MountPoint,
    Mount,
    DefaultDevices,
    Device,
    Terminal,
    Console,
    Cwd,
    Mask,
    ReadOnly,
    Sysctl,
    Pivot,
    Hostname,
    Loopback,
    OomScore,
    Rlimit,
    Personality,
    Scheduling,
    Stdio,
    Credentials,
    Capabilities,
    AmbientCapabilities,
    NoNewPrivileges,
    Search,
    Stat,
    Access,
    Gate,
    CreateHook,
    StartHook,
    Seccomp,
    Exec,
}

impl Step {
    const ALL: [Self; 36] = [
        Self::Isolate,
        Self::Clone,
        Self::CgroupNamespace,
        Self::TimeNamespace,
        Self::JoinNamespaces,
        Self::Root,
        Self::MountPoint,
        Self::Mount,
        Self::DefaultDevices,
        Self::Device,
        Self::Terminal,
        Self::Console,
        Self::Cwd,
        Self::Mask,
        Self::ReadOnly,
        Self::Sysctl,
        Self::Pivot,
        Self::Hostname,
        Self::Loopback,
        Self::OomScore,
        Self::Rlimit,
        Self::Personality,
        Self::Scheduling,
        Self::Stdio,
        Self::Credentials,
        Self::Capabilities,
        Self::AmbientCapabilities,
        Self::NoNewPrivileges,
        Self::Search,
        Self::Stat,
        Self::Access,
        Self::Gate,
        Self::CreateHook,
        Self::StartHook,
        Self::Seccomp,
        Self::Exec,
    ];

    /// What was tried.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Isolate => "cannot leave the agent's session",
            Self::Clone => "cannot clone the init process",
            Self::CgroupNamespace => "cannot make a cgroup namespace",
            Self::TimeNamespace => "cannot make a time namespace",
            Self::JoinNamespaces => "cannot join the container's namespaces",
            Self::Root => "cannot open the root file system",
            Self::MountPoint => "cannot make the mount point",
            Self::Mount => "cannot mount",
            Self::DefaultDevices => "cannot make the default devices in /dev",
            Self::Device => "cannot make the device",
            Self::Terminal => "cannot open a terminal from the container's /dev/pts",
            Self::Console => "cannot mount the terminal on /dev/console",
            Self::Cwd => "cannot change the working directory",
            Self::Mask => "cannot mask",
            Self::ReadOnly => "cannot make read-only:",
            Self::Sysctl => "cannot set",
            Self::Pivot => "cannot change the root directory",
            Self::Hostname => "cannot set the host name",
            Self::Loopback => "cannot bring the loopback interface up",
            Self::OomScore => "cannot set the OOM score",
            Self::Rlimit => "cannot set a resource limit",
            Self::Personality => "cannot set the personality",
            Self::Scheduling => "cannot set the scheduling of the process",
            Self::Stdio => "cannot set the standard streams",
            Self::Credentials => "cannot become the user",
            Self::Capabilities => "cannot set the capabilities",
            Self::AmbientCapabilities => "cannot set the ambient capabilities",
            Self::NoNewPrivileges => "cannot give up gaining privileges",
            Self::Search | Self::Stat | Self::Access => "cannot find the program",
            Self::Gate => "cannot wait for the start",
            Self::CreateHook => "the createContainer hook",
            Self::StartHook => "the startContainer hook",
            Self::Seccomp => "cannot install the seccomp filter",
            Self::Exec => "cannot run the program",
        }
    }
}

/// Which step failed, on which element of its list, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub step: Step,
    pub index: u16,
    pub errno: Errno,
}

/// For `result.map_err(at(Step::X, i))`.
pub fn at(step: Step, index: usize) -> impl Fn(Errno) -> Failure {
    move |errno| Failure { step, index: u16::try_from(index).unwrap_or(u16::MAX), errno }
}

/// What the child says.
#[derive(Debug)]
pub enum Message {
    /// It is the usher, and this is the init, which waits at a gate.
    Cloned(libc::pid_t, OwnedFd),
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// It waits at the start gate.
    Ready,
    /// It ends.
    Failed(Failure),
    /// It runs its program, or ended.
    Closed,
}

const TERMINAL: u8 = 1;
const READY: u8 = 2;
const FAILED: u8 = 3;
const CLONED: u8 = 4;
const SIZE: usize = 8;

/// The agent's end and the child's end.
pub fn pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    socket::message_pair()
}

/// The child's side. No function here allocates.
pub mod child {
    use super::{BorrowedFd, CLONED, Errno, FAILED, Failure, READY, SIZE, TERMINAL, socket};

    pub fn terminal(channel: BorrowedFd<'_>, master: BorrowedFd<'_>) -> nix::Result<()> {
        socket::send(channel, &message(TERMINAL, 0, 0, 0), Some(master))
    }

    pub fn cloned(channel: BorrowedFd<'_>, pid: libc::pid_t, pidfd: BorrowedFd<'_>) -> nix::Result<()> {
        socket::send(channel, &message(CLONED, 0, 0, pid), Some(pidfd))
    }

    /// Says that the set-up is done and waits for the start.
    pub fn wait_for_start(channel: BorrowedFd<'_>) -> nix::Result<()> {
        socket::send(channel, &message(READY, 0, 0, 0), None)?;
        wait(channel)
    }

    /// Waits for the agent's word.
    pub fn wait(channel: BorrowedFd<'_>) -> nix::Result<()> {
        let mut byte = [0];
        loop {
            return match socket::receive(channel, &mut byte, 0) {
                Ok((1, None)) => Ok(()),
                Ok(_) => Err(Errno::EPIPE),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno),
            };
        }
    }

    pub fn failed(channel: BorrowedFd<'_>, failure: Failure) -> nix::Result<()> {
        socket::send(channel, &message(FAILED, failure.step as u8, failure.index, failure.errno as i32), None)
    }

    fn message(kind: u8, step: u8, index: u16, errno: i32) -> [u8; SIZE] {
        let mut message = [0; SIZE];
        message[0] = kind;
        message[1] = step;
        message[2..4].copy_from_slice(&index.to_le_bytes());
        message[4..8].copy_from_slice(&errno.to_le_bytes());
        message
    }
}

/// The agent's side.
#[derive(Debug)]
pub struct AgentEnd {
    socket: AsyncFd<OwnedFd>,
}

impl AgentEnd {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: crate::sys::ready::watch(socket, Interest::READABLE)? })
    }

    /// The next message. Can be cancelled without losing one.
    pub async fn receive(&self) -> io::Result<Message> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = [0u8; SIZE];
            let received = ready.try_io(|socket| {
                socket::receive(socket.as_fd(), &mut buffer, libc::MSG_DONTWAIT).map_err(io::Error::from)
            });
            match received {
                Ok(Ok((length, attached))) => return parse(&buffer[..length], attached),
                // A child that was killed can leave its end reset instead of closed.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                    return Ok(Message::Closed);
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// The descriptor's number.
    pub fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Opens the start gate.
    pub fn release(&self) -> nix::Result<()> {
        socket::send(self.socket.get_ref().as_fd(), &[1], None)
    }
}

fn parse(message: &[u8], attached: Option<OwnedFd>) -> io::Result<Message> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "a message that no new process sends");
    Ok(match (message, attached) {
        ([], None) => Message::Closed,
        ([TERMINAL, ..], Some(master)) => Message::Terminal(master),
        (&[CLONED, _, _, _, p0, p1, p2, p3], Some(pidfd)) => {
            Message::Cloned(i32::from_le_bytes([p0, p1, p2, p3]), pidfd)
        }
        ([READY, ..], None) => Message::Ready,
        (&[FAILED, step, i0, i1, e0, e1, e2, e3], None) => Message::Failed(Failure {
            step: *Step::ALL.get(usize::from(step)).ok_or_else(unknown)?,
            index: u16::from_le_bytes([i0, i1]),
            errno: Errno::from_raw(i32::from_le_bytes([e0, e1, e2, e3])),
        }),
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_travel_as_their_position() {
        for (position, step) in Step::ALL.iter().enumerate() {
            assert_eq!(usize::from(*step as u8), position);
        }
    }
}
