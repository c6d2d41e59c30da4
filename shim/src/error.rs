//! What can go wrong in the task service, and which status code each error reaches a client with.
//!
//! The codes are containerd's contract: clients tolerate only the right ones (a Kill of a finished process that is
//! not NOT_FOUND leaves a pod stuck for ever).

use ttrpc::proto::Code;

use crate::config::FILE;
use crate::hooks::HookError;
use crate::io::StdioError;
use crate::pod::{AgentError, DeviceError, PlugError, ResizeError, RootfsError, StartError};
use crate::record::RecordError;
use crate::spec::{SpecError, VmShape};

/// Why a request to the task service failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No container of that id here.
    #[error("container {0:?} does not exist")]
    NoContainer(String),
    /// No sandbox of that id here.
    #[error("sandbox {0:?} does not exist")]
    NoSandbox(String),
    /// No exec of that id in the container.
    #[error("container {container:?} has no exec {exec:?}")]
    NoExec {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// The id is in use.
    #[error("{0} already exists")]
    Exists(String),
    /// An id that no container or exec can have.
    #[error(
        "{0:?} is no valid id: letters, digits, '_', '.', '-', at most 128 of them, the first a letter or digit"
    )]
    InvalidId(String),
    /// The process has ended; there is nothing to signal.
    #[error("process already finished")]
    Finished,
    /// Not while the process is in this state.
    #[error("cannot {action} a process that is {state}")]
    WrongState {
        /// What was asked.
        action: &'static str,
        /// The state it was in.
        state: &'static str,
    },
    /// Not while the process is in this state; the contract asks for FAILED_PRECONDITION here.
    #[error("cannot {action}: the {subject} is {state}")]
    Precondition {
        /// What was asked.
        action: &'static str,
        /// Container or process.
        subject: &'static str,
        /// The state it was in.
        state: &'static str,
    },
    /// A request that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// This shim has no such ability (yet).
    #[error("{0}")]
    Unsupported(&'static str),
    /// The limits promise what the VM has not.
    #[error(
        "the limits take a VM of {needed}, {overhead_mib} MiB and a 32nd part of the limits for the guest itself among them, and this one can have {most} (see vm.resize in {FILE})"
    )]
    VmTooSmall {
        /// What it would need.
        needed: VmShape,
        /// What it can have.
        most: VmShape,
        /// What of the memory is no container's.
        overhead_mib: u32,
    },
    /// The VM has not got the size that the limits take, and nothing has changed.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The configuration has no debug console.
    #[error(
        "the pod has no debug console: it is there for pods that are created after an administrator has set debug.console = true in {FILE}"
    )]
    NoConsole,
    /// Neither has it, nor has the container its limits of before.
    #[error("{error}; and the container has its new limits, as they cannot be taken back: {kept}")]
    LimitsStay {
        /// Of the VM's size.
        error: String,
        /// Of the limits.
        kept: String,
    },
    /// The shim is on its way out.
    #[error("the pod is shutting down")]
    ShuttingDown,
    /// The container has no usage to report any more.
    #[error("container {0:?} is not running")]
    NoUsage(String),
    /// The container's configuration cannot be honoured.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The root file system cannot be attached.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A standard stream cannot be opened or attached.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The VM did not take what the container needs.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// A block device of the host cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A hook that prepares the container.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The VM did not come up.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The agent in the guest refused, or is gone.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A record could not be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl TaskError {
    /// The status code for the client.
    pub fn code(&self) -> Code {
        match self {
            Self::NoContainer(_)
            | Self::NoSandbox(_)
            | Self::NoExec { .. }
            | Self::Finished
            | Self::NoUsage(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::InvalidId(_) | Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Precondition { .. } | Self::NoConsole | Self::ShuttingDown => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::VmTooSmall { .. } | Self::Resize(ResizeError::Partly { .. }) => Code::RESOURCE_EXHAUSTED,
            Self::Spec(error) => error.code(),
            Self::Rootfs(error) => error.code(),
            Self::Stdio(error) => error.code(),
            Self::Agent(error) => error.code(),
            Self::Plug(PlugError::Device(DeviceError::Access { .. })) => Code::FAILED_PRECONDITION,
            Self::WrongState { .. }
            | Self::Device(_)
            | Self::Hook(_)
            | Self::Start(_)
            | Self::Plug(_)
            | Self::Resize(_)
            | Self::LimitsStay { .. }
            | Self::Record(_) => Code::UNKNOWN,
        }
    }

    /// The status for the client.
    pub fn to_status(&self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.code(), self))
    }
}
