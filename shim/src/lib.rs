//! Pod life cycle: the containerd runtime v2 shim of Hull, and the client's side of its task service.
//!
//! One shim process supervises one pod: it starts the monitor (`hull-vmm`), talks to the agent in the guest, carries
//! the standard streams, and answers `containerd.task.v2.Task` and `containerd.task.v3.Task` on one socket.
//!
//! - [`client`] is for programs that drive a shim, [`metrics`] what it measures; [`record`] is what a shim leaves in the
//!   bundle for them.
//! - Everything else is the shim itself, entered by [`run`].

mod args;
mod bootstrap;
mod cgroup;
mod cleanup;
pub mod client;
pub mod config;
mod container;
mod daemon;
mod error;
mod events;
mod hooks;
mod info;
mod io;
mod logging;
pub mod metrics;
mod network;
mod paths;
mod pidfd;
mod pod;
mod proc_stat;
mod process;
mod readiness;
pub mod record;
mod service;
pub mod size;
mod spec;
mod time;
mod trace;
mod undo;

use std::io as std_io;

use protobuf::Message;

pub use args::{ArgsError, Identity, Invocation, Verbosity};
pub use bootstrap::BootstrapError;
pub use cleanup::CleanupError;
pub use daemon::DaemonError;
pub use info::RUNTIME;
pub use paths::{STATE_DEFAULT, STATE_VARIABLE, pod_sockets};
pub use pod::{ArtifactError, Found};
pub use proc_stat::{ProcStat, start_ticks};

/// Why the executable failed; printed as one line.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line is wrong.
    #[error("containerd-shim-hull-v2: {0}")]
    Args(#[from] ArgsError),
    /// `start` failed.
    #[error("cannot start the shim: {0}")]
    Start(#[from] BootstrapError),
    /// The shim could not serve.
    #[error("the shim failed: {0}")]
    Serve(#[from] DaemonError),
    /// `delete` failed.
    #[error("cannot clean up: {0}")]
    Delete(#[from] CleanupError),
    /// The answer could not be encoded.
    #[error("cannot encode the answer: {0}")]
    Encode(#[from] protobuf::Error),
    /// The answer could not be written.
    #[error("cannot write the answer: {0}")]
    Output(#[from] std_io::Error),
}

/// Does what the command line asks, and returns what goes to standard output.
pub fn run(invocation: &Invocation) -> Result<Vec<u8>, Failure> {
    match invocation {
        Invocation::Start(identity) => Ok(bootstrap::start(identity)?.into_bytes()),
        Invocation::Delete(identity) => Ok(cleanup::delete(identity)?.write_to_bytes()?),
        Invocation::Serve(identity) => {
            daemon::serve(identity)?;
            Ok(Vec::new())
        }
        Invocation::Info => Ok(info::runtime_info()?),
        Invocation::Version => {
            Ok(format!("containerd-shim-hull-v2 {}\n", env!("CARGO_PKG_VERSION")).into_bytes())
        }
    }
}
