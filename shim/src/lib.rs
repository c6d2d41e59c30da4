//! Pod life cycle: the containerd runtime v2 shim of Hull, and the client's side of its task service.
//!
//! One shim process supervises one pod: it starts the monitor (`hull-vmm`), talks to the agent in the guest, carries
//! the standard streams, and answers `containerd.task.v2.Task` and `containerd.task.v3.Task` on one socket.
//!
//! - [`client`] is for programs that drive a shim; [`record`] is what a shim leaves in the bundle for them.
//! - Everything else is the shim itself.

pub mod client;
pub mod record;
