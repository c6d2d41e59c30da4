//! Descriptors whose readiness the runtime watches.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor for reading and writing.
pub fn watch<T: AsFd + AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `AsFd` promises that the owner's descriptor is open for as long as the owner lives, and the owner is
    // not reachable mutably while the `AsyncFd` holds it: nobody here calls `get_mut`.
    unsafe { AsyncFd::register(owner) }.map_err(io::Error::from)
}
