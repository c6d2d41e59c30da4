//! Virtio devices (virtio 1.3) and the MMIO transport that shows them to the guest.
//!
//! A guest is hostile: every register, ring, descriptor and packet is checked where it enters, and nothing it does may
//! panic, block or grow the monitor without bound. Devices know nothing of KVM: they are told about notifications and
//! ready descriptors, and raise an event descriptor for an interrupt.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod device;
pub mod entropy;
pub mod fs;
#[cfg(any(test, feature = "testing"))]
pub mod guarded;
pub mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pinned;
pub mod pmem;
pub mod queue;
pub mod reclaim;
pub mod segments;
#[cfg(test)]
mod testing;
pub mod vhost;
pub mod vsock;

pub use device::{Activated, DeviceError, Quiet, VirtioDevice};
pub use mmio::MmioTransport;
