//! The OCI runtime-spec, feature by feature, inside real containers of Hull's agent and of runc on the same kernel.
//!
//! Run by `make test` in the test host, which has cgroup v2 with every controller; the checker says what a process in the
//! container sees and may do.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod command_line;
mod footprint;
mod hostile;
mod rows;
mod table;
