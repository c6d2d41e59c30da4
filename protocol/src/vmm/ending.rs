//! How a VM ends.

use serde::{Deserialize, Serialize};

/// Every way in which a VM ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest shut down in good order.
    Shutdown,
    /// [`Request::Stop`](super::Request::Stop), or the shim's end of the socket closed.
    Stopped,
    /// The guest asked for a reset without a word.
    GuestReset,
    /// The guest kernel panicked.
    GuestPanic {
        /// The kernel's own words, cut to 256 bytes; untrusted.
        message: String,
    },
    /// A vCPU had a triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// Which vCPU.
        vcpu: u8,
    },
    /// KVM could not run a vCPU (`KVM_EXIT_FAIL_ENTRY`, `KVM_EXIT_INTERNAL_ERROR`, an unexpected exit, `KVM_RUN` failed).
    VcpuError {
        /// Which vCPU.
        vcpu: u8,
        /// What KVM said.
        detail: String,
    },
    /// The monitor itself could not go on.
    MonitorError {
        /// What happened.
        detail: String,
    },
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Stopped => f.write_str("the VM was stopped"),
            Self::GuestReset => f.write_str("the guest reset itself"),
            Self::GuestPanic { message } => write!(f, "the guest kernel panicked: {message}"),
            Self::TripleFault { vcpu } => write!(f, "vCPU {vcpu} had a triple fault"),
            Self::VcpuError { vcpu, detail } => write!(f, "vCPU {vcpu} failed: {detail}"),
            Self::MonitorError { detail } => write!(f, "the monitor failed: {detail}"),
        }
    }
}
