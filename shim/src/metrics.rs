//! What a pod measures, as its shim answers it and `hull metrics` reads it: types and the names of the call, nothing more.
//!
//! The call is a service of its own on the socket of the task service, and its answer JSON in an `Any`, as specs travel there.

pub use hull_protocol::vmm::{DeviceStats, VmStats};
use serde::{Deserialize, Serialize};

use crate::record::BootRecord;

/// The service beside the task service.
pub const SERVICE: &str = "hull.shim.v1.Pod";
/// Its method that asks the debug console: a line of text, and the guest's answer, each in an `Any`.
pub const DEBUG_METHOD: &str = "Debug";
/// The type URL of both.
pub const TEXT_TYPE_URL: &str = "types.hull.dev/shim/v1/Text";
/// Its method for figures. It takes nothing.
pub const METHOD: &str = "Metrics";
/// The type URL of its answer: a [`PodMetrics`].
pub const TYPE_URL: &str = "types.hull.dev/shim/v1/PodMetrics";

/// A pod's figures. Whoever does not answer in time is missing; the others are there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodMetrics {
    /// Namespace of the ids.
    pub namespace: String,
    /// The pod's id.
    pub pod: String,
    /// What the shim takes of the host.
    pub shim: Option<ProcessUsage>,
    /// What the monitor takes, the guest's memory included.
    pub monitor: Option<ProcessUsage>,
    /// What the boot took.
    pub boot: Option<BootRecord>,
    /// The monitor's counters.
    pub vm: Option<VmStats>,
    /// The guest's memory, as it counts it.
    #[serde(default)]
    pub guest: Option<GuestMemory>,
    /// The containers by their ids. A pod's sandbox is not among them.
    pub containers: Vec<ContainerMetrics>,
    /// The links of the pod, as the guest counts them.
    pub links: Vec<LinkUsage>,
}

/// What a process takes, as the host counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessUsage {
    /// Memory in bytes, shared pages included.
    pub resident_bytes: u64,
    /// Processor time in user mode, which is where a guest's counts too, in microseconds.
    pub user_usec: u64,
    /// Processor time in the kernel, in microseconds.
    pub system_usec: u64,
    /// Its threads.
    pub threads: u64,
}

/// What a guest has of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// What its kernel manages: the VM's memory without the kernel itself, in bytes.
    pub total_bytes: u64,
    /// What containers can still take, in bytes.
    pub available_bytes: u64,
    /// What they may take together, in bytes; 0 for no bound.
    #[serde(default)]
    pub containers_bytes: u64,
}

/// A container's figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMetrics {
    /// Its id.
    pub id: String,
    /// created, starting, running or stopped.
    pub state: String,
    /// What it uses in the guest, where that can be said.
    pub usage: Option<ContainerUsage>,
}

/// What a container uses, as the guest counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// Memory in bytes, its page cache included.
    pub memory_bytes: u64,
    /// Processor time in microseconds.
    pub cpu_usec: u64,
    /// How long it was held back by its limit, in microseconds.
    pub throttled_usec: u64,
    /// Processes and threads.
    pub pids: u64,
    /// How many of its processes were killed for want of memory.
    pub oom_kills: u64,
}

/// What went through a link of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkUsage {
    /// Its name in the guest.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}
