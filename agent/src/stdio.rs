//! Standard streams: the pipes or the terminal of a process, and the connections that are attached to them.
//!
//! Output waits in the pipe or terminal until a connection is attached, and whenever the connection's other side does not
//! read; nothing is lost and nothing grows. Each stream can be attached once.

mod endpoint;
mod input;
mod output;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::StreamKind;
use hull_protocol::agent::api::agent as api;
use nix::fcntl::OFlag;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};

use crate::launch::ChildStdio;
use crate::spec::Console;

pub use endpoint::Endpoint;

/// After the exit of a process, how long a stream that others still hold open must be silent to count as drained.
pub const QUIET: Duration = Duration::from_millis(100);

/// After the exit of a process, how long others that hold its stream open can at most delay the exit status, besides the time
/// that the peer needs to read what was there at the exit.
pub const DRAIN_MAX: Duration = Duration::from_secs(2);

/// After the exit of a process, how long output that nobody has attached to delays the exit status. It can still be attached
/// to after that, until the process is deleted.
pub const ATTACH_GRACE: Duration = Duration::from_secs(5);

/// Bytes moved at once.
const CHUNK: usize = 64 * 1024;

/// A connection to the host.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection that has named its stream, with what it sent beyond that.
pub struct Attachment {
    /// The connection.
    pub connection: Box<dyn Connection>,
    /// Bytes of the stream that came with the header.
    pub early: Vec<u8>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").field("early", &self.early.len()).finish_non_exhaustive()
    }
}

/// How far a process has come, as its streams see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It may still read and write.
    Running,
    /// It has ended; its output is drained.
    Exited,
    /// It is being deleted: nobody wants the rest.
    Abandoned,
}

/// Why a stream cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// It was not asked for when the process was created, or the process has a terminal.
    #[error("the process has no such stream")]
    Absent,
    /// A stream has one reader or writer.
    #[error("the stream is already attached")]
    Taken,
}

#[derive(Debug)]
enum Slot {
    Absent,
    Free(oneshot::Sender<Attachment>),
    Taken,
}

impl Slot {
    fn new(wanted: bool) -> (Self, Option<oneshot::Receiver<Attachment>>) {
        if !wanted {
            return (Self::Absent, None);
        }
        let (sender, receiver) = oneshot::channel();
        (Self::Free(sender), Some(receiver))
    }

    fn take(&mut self) -> Result<oneshot::Sender<Attachment>, AttachError> {
        match std::mem::replace(self, Self::Taken) {
            Self::Free(sender) => Ok(sender),
            Self::Taken => Err(AttachError::Taken),
            Self::Absent => {
                *self = Self::Absent;
                Err(AttachError::Absent)
            }
        }
    }
}

/// The side of a process's streams where connections arrive.
#[derive(Debug)]
pub struct Slots {
    stdin: Slot,
    stdout: Slot,
    stderr: Slot,
}

/// The side of a process's streams where connections are waited for.
#[derive(Debug)]
pub struct Expected {
    stdin: Option<oneshot::Receiver<Attachment>>,
    stdout: Option<oneshot::Receiver<Attachment>>,
    stderr: Option<oneshot::Receiver<Attachment>>,
}

/// Both sides, for the streams that were asked for. A terminal has no stderr.
pub fn slots(request: &api::Stdio, console: Console) -> (Slots, Expected) {
    let (stdin, expected_stdin) = Slot::new(request.stdin);
    let (stdout, expected_stdout) = Slot::new(request.stdout);
    let (stderr, expected_stderr) = Slot::new(request.stderr && console == Console::Pipes);
    let expected = Expected { stdin: expected_stdin, stdout: expected_stdout, stderr: expected_stderr };
    (Slots { stdin, stdout, stderr }, expected)
}

impl Slots {
    /// Reserves a stream for one connection.
    pub fn attach(&mut self, kind: StreamKind) -> Result<oneshot::Sender<Attachment>, AttachError> {
        match kind {
            StreamKind::Stdin => self.stdin.take(),
            StreamKind::Stdout => self.stdout.take(),
            StreamKind::Stderr => self.stderr.take(),
        }
    }
}

/// The agent's ends of a process's streams, before the process runs.
#[derive(Debug)]
pub struct Prepared {
    expected: Expected,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Prepared {
    /// Makes the pipes that `expected` needs; the other streams, and all of them with a terminal, are `null` for the child.
    pub fn new(expected: Expected, console: Console, null: &Arc<OwnedFd>) -> io::Result<(Self, ChildStdio)> {
        let mut child = [null.clone(), null.clone(), null.clone()];
        let mut prepared = Self { expected, stdin: None, stdout: None, stderr: None };
        if console == Console::Pipes {
            if prepared.expected.stdin.is_some() {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                child[0] = Arc::new(read);
                prepared.stdin = Some(write);
            }
            if prepared.expected.stdout.is_some() {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                child[1] = Arc::new(write);
                prepared.stdout = Some(read);
            }
            if prepared.expected.stderr.is_some() {
                let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
                child[2] = Arc::new(write);
                prepared.stderr = Some(read);
            }
        }
        Ok((prepared, child))
    }

    /// Starts moving bytes. With a terminal its master serves both directions and is returned for resizing.
    pub fn start(self, master: Option<OwnedFd>, phase: &watch::Receiver<Phase>) -> io::Result<Running> {
        let open = |fd: Option<OwnedFd>| fd.map(|fd| Endpoint::new(fd).map(Arc::new)).transpose();
        let terminal = open(master)?;
        let (stdin, stdout, stderr) = match &terminal {
            Some(master) => (Some(master.clone()), Some(master.clone()), None),
            None => (open(self.stdin)?, open(self.stdout)?, open(self.stderr)?),
        };
        if let (Some(sink), Some(attachment)) = (stdin, self.expected.stdin) {
            tokio::spawn(input::run(sink, attachment, phase.clone()));
        }
        let output = |source: Option<Arc<Endpoint>>, attachment: Option<oneshot::Receiver<Attachment>>| {
            let (drained, count) = oneshot::channel();
            match (source, attachment) {
                (Some(source), Some(attachment)) => {
                    tokio::spawn(output::run(source, attachment, phase.clone(), drained));
                }
                _ => drop(drained),
            }
            count
        };
        Ok(Running {
            stdout: output(stdout, self.expected.stdout),
            stderr: output(stderr, self.expected.stderr),
            terminal,
        })
    }
}

/// The streams of a running process.
#[derive(Debug)]
pub struct Running {
    /// The master of the process's terminal.
    pub terminal: Option<Arc<Endpoint>>,
    stdout: oneshot::Receiver<u64>,
    stderr: oneshot::Receiver<u64>,
}

/// Bytes sent to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// On stdout.
    pub stdout: u64,
    /// On stderr.
    pub stderr: u64,
}

impl Running {
    /// Waits until the output of a process that has exited is drained.
    pub async fn drained(self) -> Sent {
        // A stream that does not exist has sent nothing.
        Sent { stdout: self.stdout.await.unwrap_or(0), stderr: self.stderr.await.unwrap_or(0) }
    }
}
