//! The agent: PID 1 of a Hull guest and its OCI runtime.
//!
//! It connects to the host, serves the API of [`hull_protocol::agent`] on that one connection, and runs containers in the
//! guest's kernel. One thread: processes are made by clone, and a clone of a process with threads cannot be made safe.
//!
//! | module | what it is for |
//! |---|---|
//! | `init` | PID 1: mounts, cgroups, power-off |
//! | `outside` | the same agent on unix sockets, without a VM |
//! | `oci` | runc's command line over the same container code |
//! | `agent` | connections in, service out |
//! | `server`, `deadline`, `streams` | the API, each request of it answered in time; standard streams |
//! | `network` | the pod's network |
//! | `memory` | how much the guest has, and what containers get of it |
//! | `news` | what happens in the guest that nobody asked for |
//! | `devices` | which devices the guest has |
//! | `container` | one actor for each container |
//! | `spec`, `launch`, `rootfs`, `volumes`, `cgroup`, `stdio` | the runtime: what, how, in which files, within which limits, with which streams |
//! | `sys` | system calls |

mod agent;
mod cgroup;
mod container;
mod cpus;
mod deadline;
mod debug;
mod devices;
mod environment;
mod error;
mod helper;
pub mod init;
mod launch;
pub mod logger;
mod memory;
mod network;
mod news;
pub mod oci;
pub mod outside;
mod pod;
mod reap;
mod resolver;
mod rootfs;
mod server;
mod slots;
mod spec;
mod stdio;
mod streams;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod volumes;
