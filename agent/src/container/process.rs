//! One process of a container, as its actor keeps it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hull_protocol::agent::api::agent as api;
use nix::errno::Errno;
use tokio::sync::watch;

use super::handle::Reply;
use crate::cgroup::{Cgroup, CgroupError};
use crate::error::Error;
use crate::launch::Launched;
use crate::reap::Children;
use crate::spec::{Console, ProcessSpec};
use crate::stdio::{self, Endpoint, Expected, Phase, Running, Sent, Slots};
use crate::sys::process::{self, Ended};
use crate::sys::terminal::{self, WindowSize};

/// How a process ended, once its output is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + n for signal n.
    pub code: u32,
    /// By the guest's clock, nanoseconds since the Unix epoch.
    pub at_nanos: i64,
    /// Whether the OOM killer took a process of the container.
    pub oom_killed: bool,
    /// Bytes sent on the output streams.
    pub sent: Sent,
}

/// How far a process has come.
#[derive(Debug)]
pub enum State {
    /// Known, but not made: an init whose container is being created, or an exec before its start.
    Prepared(Box<ProcessSpec>, Expected),
    /// An init whose container is being created.
    Creating,
    /// An init before its start gate.
    Created(Box<Launched>),
    /// It exists.
    Running(libc::pid_t, Arc<OwnedFd>),
    /// It ended and its output is drained, or it could not be made.
    Exited,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    pub state: State,
    pub exit: watch::Sender<Option<Exit>>,
    pub phase: watch::Sender<Phase>,
    /// Who waits for the program to run.
    pub starting: Option<Reply<u32>>,
    /// Of an exec: where below the container's cgroup it begins.
    pub cgroup: Option<String>,
    console: Console,
    slots: Slots,
    terminal: Option<Arc<Endpoint>>,
}

impl Process {
    fn new(state: State, console: Console, slots: Slots) -> Self {
        Self {
            state,
            exit: watch::Sender::new(None),
            phase: watch::Sender::new(Phase::Running),
            starting: None,
            cgroup: None,
            console,
            slots,
            terminal: None,
        }
    }

    /// An init that is being created, and what its streams wait for.
    pub fn init(spec: &ProcessSpec, stdio: &api::Stdio) -> (Self, Expected) {
        let (slots, expected) = stdio::slots(stdio, spec.console);
        (Self::new(State::Creating, spec.console, slots), expected)
    }

    /// An exec before its start.
    pub fn exec(spec: Box<ProcessSpec>, cgroup: Option<String>, stdio: &api::Stdio) -> Self {
        let (slots, expected) = stdio::slots(stdio, spec.console);
        let console = spec.console;
        Self { cgroup, ..Self::new(State::Prepared(spec, expected), console, slots) }
    }

    /// Whether it has ended, or never was.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Exited | State::Prepared(..) | State::Creating)
    }

    /// The pidfd, if the process exists.
    pub fn pidfd(&self) -> Option<&Arc<OwnedFd>> {
        match &self.state {
            State::Created(launched) => Some(&launched.pidfd),
            State::Running(_, pidfd) => Some(pidfd),
            State::Prepared(..) | State::Creating | State::Exited => None,
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let Some(pidfd) = self.pidfd() else {
            return Err(match self.state {
                State::Exited => Error::Finished,
                _ => Error::State { action: "send a signal", state: "the process has not been started" },
            });
        };
        process::send_signal(pidfd.as_fd(), signal).map_err(|errno| match errno {
            Errno::ESRCH => Error::Finished,
            errno => Error::system("send a signal")(errno),
        })
    }

    /// Sets the terminal's size, now or as soon as there is a terminal.
    pub fn resize(&mut self, size: WindowSize) -> Result<(), Error> {
        let Console::Terminal(wanted) = &mut self.console else {
            return Err(Error::State { action: "resize", state: "the process has no terminal" });
        };
        *wanted = Some(size);
        match &self.terminal {
            Some(terminal) => {
                terminal::set_size(terminal.as_fd(), size).map_err(Error::system("resize the terminal"))
            }
            None => Ok(()),
        }
    }

    /// Keeps the terminal of the running process, at the size that was asked for meanwhile.
    pub fn set_terminal(&mut self, terminal: Option<Arc<Endpoint>>) {
        self.terminal = terminal;
        if let (Console::Terminal(Some(size)), Some(terminal)) = (self.console, &self.terminal)
            && let Err(error) = terminal::set_size(terminal.as_fd(), size)
        {
            log::warn!("cannot set the size of a terminal: {error}");
        }
    }

    /// The size that a terminal made now should have.
    pub fn console(&self) -> Console {
        self.console
    }

    /// Reserves a stream.
    pub fn attach(
        &mut self,
        kind: hull_protocol::agent::StreamKind,
    ) -> Result<tokio::sync::oneshot::Sender<stdio::Attachment>, Error> {
        Ok(self.slots.attach(kind)?)
    }

    /// Records the end and tells everybody who waits for it.
    pub fn finish(&mut self, exit: Exit) {
        self.state = State::Exited;
        self.terminal = None;
        self.exit.send_replace(Some(exit));
    }
}

/// What the end of a process means for the others of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nothing, or the kernel sees to it: process 1 of a pid namespace takes everybody in it along.
    Stay,
    /// They are killed.
    Killed,
}

/// Waits for the end of a process and the end of its output.
pub async fn supervise(
    children: Children,
    cgroup: Arc<Cgroup>,
    pid: libc::pid_t,
    pidfd: Arc<OwnedFd>,
    others: Others,
    streams: Running,
    phase: watch::Sender<Phase>,
) -> Exit {
    let ended = children.wait(pid, &pidfd).await.unwrap_or_else(|error| {
        log::error!("cannot learn how process {pid} ended: {error}");
        Ended::Killed(libc::SIGKILL)
    });
    let at_nanos = now_nanos();
    if others == Others::Killed {
        match cgroup.kill() {
            // The container is being deleted, and its cgroup is gone with all that was in it.
            Ok(()) | Err(CgroupError::Missing(_)) => {}
            Err(error) => log::error!("cannot end what process {pid} left behind: {error}"),
        }
    }
    phase.send_if_modified(|phase| match phase {
        Phase::Running => {
            *phase = Phase::Exited;
            true
        }
        Phase::Exited | Phase::Abandoned => false,
    });
    let oom_killed = cgroup.oom_kills() > 0;
    Exit { code: ended.code(), at_nanos, oom_killed, sent: streams.drained().await }
}

/// The guest's clock.
pub fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
