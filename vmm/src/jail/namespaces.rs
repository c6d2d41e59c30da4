//! Namespaces of its own: mounts, System V IPC and message queues, host name, cgroup view, and a network with nothing in
//! it unless it was started in the pod's. A PID namespace would need one more process and hide nothing: without
//! `/proc` and with a filter on signals, other processes are out of reach.

use hull_protocol::vmm::JailNetwork;
use nix::sched::{CloneFlags, unshare as unshare_flags};

use super::{JailError, refused};

/// Leaves the namespaces that the process was started in.
pub fn unshare(network: JailNetwork) -> Result<(), JailError> {
    let shared = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let flags = match network {
        JailNetwork::Empty => shared | CloneFlags::CLONE_NEWNET,
        JailNetwork::Inherited => shared,
    };
    unshare_flags(flags).map_err(refused("leave its namespaces"))
}
