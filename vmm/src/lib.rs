//! The monitor: one KVM virtual machine, described and watched over one socket. It knows nothing of containers.
//!
//! The way of a VM: [`control`] turns requests into a checked [`description`](control::description), [`machine`] builds
//! it ([`memory`], [`kvm`], [`boot`], [`vcpu`], [`devices`]), [`event_loop`] serves its devices and the socket until
//! there is an [`ending`]. vCPU threads reach devices through the [`bus`] alone. The [`jail`] closes before the first
//! description.
//!
//! No path is opened anywhere: what the monitor works with comes as file descriptors.

pub mod boot;
pub mod broker;
pub mod bus;
pub mod console;
pub mod control;
pub mod devices;
pub mod ending;
pub mod error;
pub mod event_loop;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod rate_limiter;
pub mod vcpu;
pub mod virtio;
