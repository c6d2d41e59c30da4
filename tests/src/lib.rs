//! What the end-to-end tests stand on: running `hull`, seeing what it leaves behind, terminals, and peers that lie.
//!
//! Everything here runs as root on a host whose KVM runs Linux guests (the test host, or a real one), beside a registry
//! on loopback: see `tests/fixtures/registry`. It holds no part of Hull; it uses the built programs as a person does.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod attempts;
pub mod bridge;
pub mod containerd;
pub mod counters;
pub mod craft;
pub mod cri;
pub mod docker;
pub mod document;
pub mod hull;
pub mod kubelet;
pub mod leaks;
pub mod libseccomp;
pub mod memory;
pub mod oci;
pub mod peers;
pub mod streaming;
pub mod terminal;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long something may take on an emulated host before it counts as never.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `found` gives a value; panics with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        // The outside world has no event to wait for: another process's file, another process's end.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until somebody serves this socket. It costs nearly nothing, unlike to start a client again and again on the processor
/// that the server begins on.
pub fn served(socket: &Path) {
    eventually(&format!("{} is served", socket.display()), || UnixStream::connect(socket).ok());
}
