//! One process of a container as clients see it: its phase, its pid, its streams.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use hull_protocol::agent::api::agent::{ProcessRequest, Stdio};
use tokio::sync::watch;

use crate::error::TaskError;
use crate::io::{IoControl, Leftovers, StdioSpec};

/// Pids of execs are those of the guest with this bit set: above the host's largest possible pid (2^22), so that they
/// name no process of the host, and least of all the monitor, which stands for the init process.
pub const GUEST_PID: u32 = 1 << 22;

/// How long output may stand still after an exit before nobody is believed to read it.
pub const STALL: Duration = Duration::from_secs(10);
/// The same after a SIGKILL, whose sender waits for the exit.
const STALL_KILLED: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + n.
    pub status: u32,
    /// When.
    pub at: SystemTime,
    /// Whether the OOM killer was at work in its container.
    pub oom_killed: bool,
    /// Why, where the process itself did not end; else empty.
    pub reason: String,
}

/// Where a process is in its life. It only goes forward, but for a start that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Ready to be started; an exec is only registered.
    Created,
    /// Being started.
    Starting,
    /// Started.
    Running,
    /// Ended, its output delivered.
    Exited(Exit),
}

impl Phase {
    /// A word for messages.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited(_) => "stopped",
        }
    }
}

/// What is known of the streams.
enum IoState {
    /// Not attached.
    Pending(PendingInput),
    /// Being copied.
    Attached(IoControl),
    /// Delivered; what is left stays until the process is forgotten.
    Delivered(Leftovers),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PendingInput {
    Open,
    CloseOnceAttached,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

/// One process.
pub struct Process {
    /// The container's id.
    pub container: String,
    /// The exec's id; `None` for the init process.
    pub exec: Option<String>,
    /// Its streams.
    pub stdio: StdioSpec,
    pid: OnceLock<u32>,
    phase: watch::Sender<Phase>,
    io: Mutex<IoState>,
    early_size: Mutex<Option<WindowSize>>,
}

impl Process {
    /// A process that is created and not started.
    pub fn new(container: &str, exec: Option<&str>, stdio: StdioSpec) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.map(str::to_owned),
            stdio,
            pid: OnceLock::new(),
            phase: watch::Sender::new(Phase::Created),
            io: Mutex::new(IoState::Pending(PendingInput::Open)),
            early_size: Mutex::new(None),
        }
    }

    /// The process as the agent is asked about it.
    pub fn request(&self) -> ProcessRequest {
        ProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone().unwrap_or_default(),
            ..ProcessRequest::default()
        }
    }

    /// Which streams will be attached, as the agent is told.
    pub fn agent_stdio(&self) -> Stdio {
        Stdio {
            stdin: self.stdio.stdin.is_wanted(),
            stdout: self.stdio.stdout.is_wanted(),
            stderr: self.stdio.stderr.is_wanted(),
            ..Stdio::default()
        }
    }

    /// The process id that clients are told; 0 while there is none.
    pub fn pid(&self) -> u32 {
        self.pid.get().copied().unwrap_or_default()
    }

    /// Sets the process id, once.
    pub fn set_pid(&self, pid: u32) {
        // A second start of an exec keeps the first number: clients may already know it.
        let _ = self.pid.set(pid);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Goes from Created to Starting, or says why not.
    pub fn begin_start(&self) -> Result<(), TaskError> {
        let mut before = Phase::Created;
        let changed = self.phase.send_if_modified(|phase| {
            before = phase.clone();
            let startable = *phase == Phase::Created;
            if startable {
                *phase = Phase::Starting;
            }
            startable
        });
        if changed { Ok(()) } else { Err(TaskError::WrongState { action: "start", state: before.word() }) }
    }

    /// Ends what [`begin_start`](Self::begin_start) began.
    pub fn end_start(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let starting = *phase == Phase::Starting;
            if starting {
                *phase = to;
            }
            starting
        });
    }

    /// Waits until no start is under way, so that the start is announced before the exit.
    pub async fn start_settled(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Starting).await;
    }

    /// Records the exit. Waiters are woken.
    pub fn set_exited(&self, exit: Exit) {
        self.phase.send_replace(Phase::Exited(exit));
    }

    /// Waits for the exit.
    pub async fn exited(&self) -> Exit {
        let mut phases = self.phase.subscribe();
        loop {
            if let Phase::Exited(exit) = &*phases.borrow_and_update() {
                return exit.clone();
            }
            if phases.changed().await.is_err() {
                // The sender is ours and cannot be gone.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The streams are being copied.
    pub fn attached(&self, control: IoControl) {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*io, IoState::Pending(PendingInput::CloseOnceAttached)) {
            control.close_stdin();
        }
        *io = IoState::Attached(control);
    }

    /// The streams are at their end.
    pub fn delivered(&self, left: Leftovers) {
        *self.io.lock().unwrap_or_else(PoisonError::into_inner) = IoState::Delivered(left);
    }

    /// Lets go of what is left of its streams: the process is being forgotten.
    pub async fn end_streams(&self) {
        let left = match &mut *self.io.lock().unwrap_or_else(PoisonError::into_inner) {
            IoState::Delivered(left) => std::mem::take(left),
            IoState::Pending(_) | IoState::Attached(_) => return,
        };
        left.end().await;
    }

    /// Ends standard input after what was written to it, now or as soon as it is attached.
    pub fn close_stdin(&self) {
        let mut io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        match &*io {
            IoState::Pending(_) => *io = IoState::Pending(PendingInput::CloseOnceAttached),
            IoState::Attached(control) => control.close_stdin(),
            IoState::Delivered(_) => {}
        }
    }

    /// Sees to it that output which nobody reads does not hold up the end of a killed process.
    pub fn give_up_stalled_output(&self) {
        if let IoState::Attached(control) = &*self.io.lock().unwrap_or_else(PoisonError::into_inner) {
            tokio::spawn(control.clone().discard_when_stalled(STALL_KILLED));
        }
    }

    /// Keeps a window size for a terminal that does not exist yet.
    pub fn keep_size(&self, size: WindowSize) {
        *self.early_size.lock().unwrap_or_else(PoisonError::into_inner) = Some(size);
    }

    /// Takes the kept window size.
    pub fn take_size(&self) -> Option<WindowSize> {
        self.early_size.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
