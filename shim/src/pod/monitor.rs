//! The monitor process: started, asked and watched. One task owns its control socket and reaps it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hull_protocol::vmm::{
    CONTROL_FD, Channel, ChannelError, DENIED_STATUS, ExitReason, Failure, Message, Received, Request,
    VmStats,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};

use super::cgroup::Accounting;
use super::console::last_lines;
use super::relay::{Words, relay};
use crate::cgroup::OomKills;
use crate::trace::{self, Kind};

/// How long a monitor that has closed its socket may take to exit.
const EXIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long the last words of a monitor that has exited are waited for.
const WORDS_DEADLINE: Duration = Duration::from_millis(200);
/// What of the console is in the log once the guest's kernel has panicked: a trace and what led to it.
const TRACE_BYTES: u64 = 8192;
const TRACE_LINES: usize = 80;

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// As the monitor reported.
    Reported(ExitReason),
    /// The host's OOM killer ended the monitor.
    OutOfMemory,
    /// The monitor exited without a report.
    Vanished(ExitStatus),
    /// The monitor was lost track of.
    Lost(String),
}

impl std::fmt::Display for VmEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reported(ExitReason::GuestPanic { message }) => {
                write!(f, "the guest kernel panicked: {}", super::printable(message))
            }
            Self::Reported(reason) => reason.fmt(f),
            Self::OutOfMemory => f.write_str(
                "the host's OOM killer ended it: it took more memory than its cgroup, one above it or the host has for it",
            ),
            Self::Vanished(status) if status.code() == Some(DENIED_STATUS) => {
                f.write_str("the monitor made a system call that its jail denies; the log names it")
            }
            Self::Vanished(status) => write!(f, "the monitor ended without a word ({status})"),
            Self::Lost(what) => write!(f, "the monitor is lost: {what}"),
        }
    }
}

/// Tells when and how a VM ended. Clones tell the same.
#[derive(Clone)]
pub struct VmEnded(watch::Receiver<Option<VmEnd>>);

impl VmEnded {
    /// Waits for the end: the monitor process is reaped and gone.
    pub async fn wait(&self) -> VmEnd {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(|| VmEnd::Lost("no end".to_owned())),
            Err(_) => VmEnd::Lost("nobody watches it".to_owned()),
        }
    }

    /// The end, if it has come.
    pub fn now(&self) -> Option<VmEnd> {
        self.0.borrow().clone()
    }
}

/// Why the monitor could not be started or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The process could not be started.
    #[error("cannot start {path}: {source}")]
    Spawn {
        /// The executable.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The monitor refused a request.
    #[error("{0}")]
    Refused(#[from] Failure),
    /// The control socket failed.
    #[error("the conversation with the monitor failed: {0}")]
    Channel(#[from] ChannelError),
    /// The VM has ended.
    #[error("the VM ended: {0}")]
    Ended(VmEnd),
    /// The monitor said something that is no answer to what was asked.
    #[error("the monitor answered out of turn")]
    OutOfTurn,
}

enum Ask {
    Request { request: Request, fds: Vec<OwnedFd>, answer: oneshot::Sender<Result<Message, MonitorError>> },
    Kill,
}

/// A running monitor. When every clone is dropped, it ends.
#[derive(Clone)]
pub struct Monitor {
    asks: mpsc::Sender<Ask>,
    end: VmEnded,
    pid: u32,
}

impl Monitor {
    /// Starts the monitor with its control socket. It dies with this process, also after its jail has closed: it sees to
    /// that itself.
    ///
    /// Where there is a namespace it is in that: on the host it stands for the pod. It is counted with the pod before it has
    /// any of the guest's memory. What `console` holds when the guest's kernel has panicked goes to the log.
    pub fn spawn(
        path: &Path,
        namespace: Option<BorrowedFd<'_>>,
        accounting: &Accounting,
        console: PathBuf,
    ) -> Result<Self, MonitorError> {
        let failed = |source| MonitorError::Spawn { path: path.display().to_string(), source };
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        let (child, said) = spawn_with_control("hull-vmm", path, &theirs, namespace).map_err(failed)?;
        drop(theirs);
        let pid = child.id().unwrap_or_default();
        accounting.admit("the monitor", pid);
        let channel = AsyncChannel::new(ours)?;
        let (asks, inbox) = mpsc::channel(8);
        let (end, ended) = watch::channel(None);
        let oom_kills = accounting.oom_kills();
        tokio::spawn(async move {
            let how = watch_over(channel, child, said, inbox, oom_kills).await;
            if let VmEnd::Reported(ExitReason::GuestPanic { .. }) = how {
                for line in last_lines(&console, TRACE_BYTES, TRACE_LINES) {
                    log::warn!("the guest's console: {line}");
                }
            }
            log::info!("the VM ended: {how}");
            end.send_replace(Some(how));
        });
        Ok(Self { asks, end: VmEnded(ended), pid })
    }

    /// The monitor's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells when the VM has ended.
    pub fn ended(&self) -> VmEnded {
        self.end.clone()
    }

    /// Asks for something that is answered by [`Message::Done`].
    pub async fn request(&self, request: Request, fds: Vec<OwnedFd>) -> Result<(), MonitorError> {
        match self.ask(request, fds).await? {
            Message::Done => Ok(()),
            Message::Failed(failure) => Err(failure.into()),
            Message::Stats(_) | Message::Plugged { .. } | Message::Exited(_) => Err(MonitorError::OutOfTurn),
        }
    }

    /// Gives the running VM a further device; answers the number of its slot.
    pub async fn plug(&self, request: Request, fds: Vec<OwnedFd>) -> Result<u8, MonitorError> {
        match self.ask(request, fds).await? {
            Message::Plugged { slot } => Ok(slot),
            Message::Failed(failure) => Err(failure.into()),
            Message::Done | Message::Stats(_) | Message::Exited(_) => Err(MonitorError::OutOfTurn),
        }
    }

    /// The VM's counters.
    pub async fn stats(&self) -> Result<VmStats, MonitorError> {
        match self.ask(Request::Stats, Vec::new()).await? {
            Message::Stats(stats) => Ok(stats),
            Message::Failed(failure) => Err(failure.into()),
            Message::Done | Message::Plugged { .. } | Message::Exited(_) => Err(MonitorError::OutOfTurn),
        }
    }

    async fn ask(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Message, MonitorError> {
        let span = trace::step(Kind::Client, || format!("monitor/{}", request.name()));
        let (answer, answered) = oneshot::channel();
        // What is not sent is dropped, and with it what would answer.
        let _ = self.asks.send(Ask::Request { request, fds, answer }).await;
        let answer = match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(MonitorError::Ended(self.end.wait().await)),
        };
        trace::done(span, answer)
    }

    /// Ends the VM at once and waits until the monitor is gone.
    pub async fn kill(&self) -> VmEnd {
        // A task that no longer listens has already seen the end.
        let _ = self.asks.send(Ask::Kill).await;
        self.end.wait().await
    }
}

/// Owns the control socket and the process until both are gone; tells how it ended.
async fn watch_over(
    channel: AsyncChannel,
    mut child: Child,
    said: Words,
    mut inbox: mpsc::Receiver<Ask>,
    oom_kills: Option<OomKills>,
) -> VmEnd {
    let mut waiting: VecDeque<oneshot::Sender<Result<Message, MonitorError>>> = VecDeque::new();
    let mut reported = None;
    loop {
        tokio::select! {
            ask = inbox.recv() => match ask {
                Some(Ask::Request { request, fds, answer }) => {
                    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    match channel.send(&request, &borrowed).await {
                        Ok(()) => waiting.push_back(answer),
                        // A broken pipe is the end, and its reason is still to be read.
                        Err(ChannelError::Io(_)) => drop(answer),
                        // An answer that nobody waits for any more.
                        Err(error) => drop(answer.send(Err(error.into()))),
                    }
                }
                Some(Ask::Kill) | None => {
                    reported.get_or_insert(ExitReason::Stopped);
                    if let Err(error) = child.start_kill() {
                        log::warn!("cannot kill the monitor: {error}");
                    }
                    break;
                }
            },
            received = channel.receive::<Message>() => match received {
                Ok(Some(Received { message: Message::Exited(reason), .. })) => reported = Some(reason),
                Ok(Some(Received { message, .. })) => match waiting.pop_front() {
                    Some(answer) => drop(answer.send(Ok(message))),
                    None => log::warn!("the monitor said something that nobody asked"),
                },
                Ok(None) => break,
                Err(error) => {
                    log::error!("the monitor's messages cannot be read: {error}");
                    break;
                }
            },
            // Its end of the socket may live on in a process that it left behind.
            _ = child.wait() => {
                while let Ok(Some(Received { message, .. })) = channel.try_receive::<Message>() {
                    if let Message::Exited(reason) = message {
                        reported = Some(reason);
                    }
                }
                break;
            }
        }
    }
    let status = match tokio::time::timeout(EXIT_DEADLINE, child.wait()).await {
        Ok(status) => status,
        Err(_elapsed) => {
            log::warn!("the monitor does not exit and is killed");
            match child.start_kill() {
                Ok(()) => child.wait().await,
                Err(error) => Err(error),
            }
        }
    };
    let how = match (reported, status) {
        (Some(reason), _) => VmEnd::Reported(reason),
        (None, Ok(status)) if was_oom_killed(status, oom_kills.as_ref()) => VmEnd::OutOfMemory,
        (None, Ok(status)) => VmEnd::Vanished(status),
        (None, Err(error)) => VmEnd::Lost(error.to_string()),
    };
    // Its last words come before its end in the log; who has inherited its standard error may hold it open.
    if tokio::time::timeout(WORDS_DEADLINE, said).await.is_err() {
        log::debug!("the monitor's standard error is still open");
    }
    how
}

/// Whether the host's OOM killer has ended a process of the pod.
pub(super) fn was_oom_killed(status: ExitStatus, kills: Option<&OomKills>) -> bool {
    status.signal() == Some(libc::SIGKILL) && kills.is_some_and(OomKills::came)
}

/// Starts a process of ours, called `program` in the log, where its standard error goes, with a control socket as
/// [`CONTROL_FD`]. It dies with this process.
pub(super) fn spawn_with_control(
    program: &'static str,
    path: &Path,
    socket: &Channel,
    network: Option<BorrowedFd<'_>>,
) -> io::Result<(Child, Words)> {
    // Were CONTROL_FD free here, the runtime's own pipe to the child could get that number and be overwritten.
    let null = File::open("/dev/null")?;
    let _occupied = duplicate_from(&null, CONTROL_FD)?;
    let socket = socket.as_raw_fd();
    let network = network.map(|namespace| namespace.as_raw_fd());
    let parent = std::process::id();
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).env_clear();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls; it does not
    // allocate. `socket` and `network` stay open in the parent until after the spawn.
    unsafe {
        command.pre_exec(move || {
            network.map_or(Ok(()), enter_network)?;
            inherit_control_socket(socket, parent)
        });
    }
    let mut child = command.spawn()?;
    let output = child.stderr.take().ok_or_else(|| io::Error::other("no pipe to its standard error"))?;
    Ok((child, relay(program, output)))
}

fn enter_network(namespace: i32) -> io::Result<()> {
    // SAFETY: setns is a plain system call on integers; the child has one thread.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn inherit_control_socket(socket: i32, parent: u32) -> io::Result<()> {
    // SAFETY: prctl, getppid, dup2 and fcntl are plain system calls on integers we own.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the signal was armed.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let result = if socket == CONTROL_FD {
            libc::fcntl(socket, libc::F_SETFD, 0)
        } else {
            libc::dup2(socket, CONTROL_FD)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn duplicate_from(file: &File, lowest: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let fd = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A [`Channel`] that waits without blocking the thread.
pub struct AsyncChannel(AsyncFd<Channel>);

impl AsyncChannel {
    /// Takes over a channel.
    pub fn new(channel: Channel) -> Result<Self, ChannelError> {
        let flags = fcntl(&channel, FcntlArg::F_GETFL).map_err(io::Error::from)?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&channel, FcntlArg::F_SETFL(flags)).map_err(io::Error::from)?;
        Ok(Self(crate::readiness::watch(channel)?))
    }

    /// Sends one message, waiting for room.
    pub async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        loop {
            let mut guard = self.0.writable().await?;
            match self.0.get_ref().send(message, fds) {
                Err(error) if error.is_would_block() => guard.clear_ready(),
                result => return result,
            }
        }
    }

    /// Receives a message that is already there; a would-block error where there is none.
    fn try_receive<T: DeserializeOwned>(&self) -> Result<Option<Received<T>>, ChannelError> {
        self.0.get_ref().receive()
    }

    /// Receives one message; `None` at the end.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<Option<Received<T>>, ChannelError> {
        loop {
            let mut guard = self.0.readable().await?;
            match self.0.get_ref().receive() {
                Err(error) if error.is_would_block() => guard.clear_ready(),
                result => return result,
            }
        }
    }
}
