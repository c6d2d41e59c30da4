//! Containers: for each an actor, a task that owns its state and is told what to do by messages.
//!
//! The actor itself never waits for anything but its mailbox. What takes time (mounting, the set-up of a process, freezing,
//! deleting) runs in tasks that report back by a message, so that a container whose creation hangs can be killed and
//! asked about.

mod actor;
mod create;
mod handle;
mod join;
mod process;

pub use create::Creation;
pub use handle::{Handle, ProcessName, Registry, Request, Target};
pub use join::resolve as resolve_namespaces;
pub use process::Exit;
