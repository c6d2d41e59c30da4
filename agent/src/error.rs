//! Every way in which a request can fail, and the ttrpc status of each: the only place that maps one to the other.

use ttrpc::Code;

use crate::cgroup::CgroupError;
use crate::cpus::CpuError;
use crate::launch::LaunchError;
use crate::network::NetworkError;
use crate::pod::PodError;
use crate::rootfs::RootfsError;
use crate::slots::SlotError;
use crate::spec::SpecError;
use crate::stdio::AttachError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container has this id.
    #[error("container {0:?} not found")]
    NoContainer(String),
    /// No process of the container has this id.
    #[error("exec {0:?} not found")]
    NoExec(String),
    /// It has ended.
    #[error("process already finished")]
    Finished,
    /// The id is in use.
    #[error("{kind} {id:?} already exists")]
    Exists {
        /// `container` or `exec`.
        kind: &'static str,
        /// The id.
        id: String,
    },
    /// Not an id.
    #[error("{0:?} is not an id: [A-Za-z0-9][A-Za-z0-9_.-]*, at most 128 bytes")]
    Id(String),
    /// The container or process is not in a state that allows this.
    #[error("cannot {action}: {state}")]
    State {
        /// What was asked for.
        action: &'static str,
        /// Why it cannot be.
        state: &'static str,
    },
    /// A number that is none of the allowed ones.
    #[error("{what} {value} is out of range")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The caller speaks another version of the API.
    #[error("API version {theirs} is not the one this agent speaks, {ours}")]
    Version {
        /// The caller's.
        theirs: u32,
        /// The agent's.
        ours: u32,
    },
    /// Namespaces and ids that do not belong together.
    #[error("user namespace: {0}")]
    ForeignUsers(&'static str),
    /// The operation was given up because the container is being deleted or killed.
    #[error("the creation of the container was cancelled")]
    Cancelled,
    /// It took too long.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// No answer in time; what was asked for may still be done.
    #[error("{method} is not done within {} s, and goes on", limit.as_secs())]
    Unanswered {
        /// Which method.
        method: String,
        /// Its time.
        limit: std::time::Duration,
    },
    /// Bytes that are no request.
    #[error("the request cannot be read: {0}")]
    Message(String),
    /// Nobody is to ask.
    #[error("the guest has no debug console: the host did not ask for one when it started it")]
    NoConsole,
    /// A line that means nothing.
    #[error("not a command of the debug console: help lists them")]
    NoCommand,
    /// The guest is shutting down.
    #[error("the guest is shutting down")]
    ShuttingDown,
    /// Of the spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Of a cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Of a root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// Of a launch.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Of the pod's settings.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// Of the pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Of a device's slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A processor does not run.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Of a stream.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A system call failed that should not.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// A failed system call.
    pub fn system<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }

    /// The status code that the API promises for this error.
    pub fn code(&self) -> Code {
        match self {
            Self::NoContainer(_) | Self::NoExec(_) | Self::Finished | Self::Attach(AttachError::Absent) => {
                Code::NOT_FOUND
            }
            Self::Exists { .. } | Self::Attach(AttachError::Taken) => Code::ALREADY_EXISTS,
            Self::State { .. }
            | Self::Cancelled
            | Self::ForeignUsers(_)
            | Self::ShuttingDown
            | Self::NoConsole
            | Self::Launch(LaunchError::ContainerEnded | LaunchError::Hook(_) | LaunchError::Divided)
            | Self::Rootfs(RootfsError::NoDisk(_))
            | Self::Network(NetworkError::NoLink(_))
            | Self::Slot(SlotError::Unfit { .. })
            | Self::Cpu(CpuError::TooMany { .. }) => Code::FAILED_PRECONDITION,
            Self::Id(_)
            | Self::Message(_)
            | Self::NoCommand
            | Self::Range { .. }
            | Self::Version { .. }
            | Self::Spec(SpecError::Json(_) | SpecError::Invalid { .. })
            | Self::Cgroup(
                CgroupError::Refused { .. }
                | CgroupError::BelowUsage { .. }
                | CgroupError::Outside(_)
                | CgroupError::NotBelow(_),
            )
            | Self::Rootfs(
                RootfsError::NoLower
                | RootfsError::Layers
                | RootfsError::Serial(_)
                | RootfsError::NoSize
                | RootfsError::Files(_)
                | RootfsError::Folder(_)
                | RootfsError::Upper,
            )
            | Self::Launch(LaunchError::Program(_) | LaunchError::Unmapped { .. })
            | Self::Network(NetworkError::Invalid { .. })
            | Self::Pod(PodError::Invalid { .. }) => Code::INVALID_ARGUMENT,
            Self::Spec(SpecError::Unsupported { .. })
            | Self::Cgroup(CgroupError::Missing(_))
            | Self::Rootfs(RootfsError::UnknownKind) => Code::UNIMPLEMENTED,
            Self::Deadline(_) | Self::Unanswered { .. } | Self::Cgroup(CgroupError::Unsettled(_)) => {
                Code::DEADLINE_EXCEEDED
            }
            Self::Cgroup(
                CgroupError::File { .. }
                | CgroupError::Devices(_)
                | CgroupError::Watch(_)
                | CgroupError::Helper(_)
                | CgroupError::Signal(_),
            )
            | Self::Rootfs(RootfsError::Work(_))
            | Self::Launch(LaunchError::SetUp { .. } | LaunchError::Died(_) | LaunchError::Agent { .. })
            | Self::Pod(PodError::System { .. })
            | Self::Network(NetworkError::Kernel { .. })
            | Self::Slot(SlotError::Work { .. })
            | Self::Cpu(CpuError::Switch(_))
            | Self::System { .. } => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}
