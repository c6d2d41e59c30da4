//! The words that Hull's processes say to each other.
//!
//! Two conversations, each behind a feature so that a program links only its own:
//!
//! - [`agent`]: the shim and the agent in the guest, ttrpc over vsock (`proto/agent.proto`).
//! - [`vmm`]: the shim and the monitor, JSON and file descriptors over an inherited socketpair.
//!
//! This crate holds types, limits and framing. It must not hold decisions.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "vmm")]
pub mod vmm;
