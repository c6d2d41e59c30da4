//! Readiness of a descriptor as a future.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that keep one descriptor open, and name always the same, for as long as they live.
pub trait Descriptor: std::os::fd::AsRawFd {}
impl Descriptor for OwnedFd {}
impl Descriptor for Arc<OwnedFd> {}
impl Descriptor for BorrowedFd<'_> {}

/// Watches `fd` for what `interest` says.
pub fn watch<T: Descriptor>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a `Descriptor` is open, and stays the same one, until the result drops it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}
