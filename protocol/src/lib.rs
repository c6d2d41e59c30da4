//! The words that Hull's processes say to each other.
//!
//! Three conversations, each behind a feature so that a program links only its own:
//!
//! - [`agent`]: the shim and the agent in the guest, ttrpc over vsock (`proto/agent.proto`).
//! - [`vmm`]: the shim and the monitor, JSON and file descriptors over an inherited socketpair.
//! - [`fs`]: the file broker with the monitor (binary, over a socketpair of their own) and with the shim (JSON).
//!
//! This crate holds types, limits and framing. It must not hold decisions.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "fs")]
pub mod fs;
#[cfg(feature = "vmm")]
pub mod vmm;
