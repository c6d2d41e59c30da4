//! Why a VM did not come up, and what its console had to say about it.

use std::io;
use std::path::Path;
use std::time::Duration;

use hull_protocol::agent::API_VERSION;

use crate::config::BOOT_TIMEOUT_VARIABLE;
use crate::network::NetworkError;
use crate::pod::console::last_lines;
use crate::pod::hotplug::PlugError;
use crate::pod::{AgentError, ArtifactError, BrokerError, MonitorError, VmEnd};
use crate::record::RecordError;

/// What of the console is shown in an error.
const CONSOLE_TAIL: u64 = 2048;
const CONSOLE_TAIL_LINES: usize = 6;

/// Why a VM did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The monitor, kernel or initramfs is not there.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A file or device of the host cannot be opened.
    #[error("cannot open {what}: {source}")]
    Open {
        /// Its path.
        what: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The pod's network is not usable.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A network device did not get into the running VM.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// What of the host's files is to be shared cannot be.
    #[error(transparent)]
    Volumes(#[from] BrokerError),
    /// The monitor did not build the VM.
    #[error("cannot build the VM: {0}")]
    Monitor(#[from] MonitorError),
    /// The VM ended before the agent spoke.
    #[error("the VM ended while booting: {end}{console}")]
    Died {
        /// How.
        end: VmEnd,
        /// The console's last lines.
        console: ConsoleTail,
    },
    /// The agent did not speak in time.
    #[error(
        "the guest did not come up within {} s (see vm.boot_timeout_seconds, {BOOT_TIMEOUT_VARIABLE}){console}",
        .deadline.as_secs()
    )]
    Silent {
        /// How long was waited.
        deadline: Duration,
        /// The console's last lines.
        console: ConsoleTail,
    },
    /// The processes of the VM could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The agent spoke and something was wrong.
    #[error("the agent in the guest failed: {0}")]
    Agent(#[from] AgentError),
    /// The agent is of another version.
    #[error(
        "the agent in the guest speaks version {0} of its API, this shim version {API_VERSION}: install both from one release"
    )]
    Version(u32),
    /// Nobody waits for it any more.
    #[error("the pod was shut down while the VM was booting")]
    Abandoned,
}

/// The last lines of a console, printable; as a suffix to a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleTail(Vec<String>);

impl std::fmt::Display for ConsoleTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; its console ends: {}", self.0.join(" | ")) }
    }
}

/// What a console ends with.
pub(super) fn console_tail(path: &Path) -> ConsoleTail {
    ConsoleTail(last_lines(path, CONSOLE_TAIL, CONSOLE_TAIL_LINES))
}
