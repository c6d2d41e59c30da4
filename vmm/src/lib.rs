//! The monitor: one KVM virtual machine, described and watched over one socket. It knows nothing of containers.

pub mod memory;
pub mod virtio;
