//! The store's lock: flock(2) on one file, so that it is given back however a process ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::StoreError;

/// Held by everybody who adds to or reads from the store.
#[derive(Debug)]
pub(crate) struct SharedLock(#[allow(dead_code, reason = "held for its Drop")] Flock<File>);

/// Held by garbage collection: nobody else is in the store.
#[derive(Debug)]
pub(super) struct ExclusiveLock(#[allow(dead_code, reason = "held for its Drop")] Flock<File>);

fn open(path: &Path) -> Result<File, StoreError> {
    let options =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    options.map_err(|e| StoreError::io(path, e))
}

impl SharedLock {
    /// Waits for a garbage collection to end, if there is one; those are short.
    pub(super) fn wait(path: &Path) -> Result<Self, StoreError> {
        let mut file = open(path)?;
        loop {
            match Flock::lock(file, FlockArg::LockShared) {
                Ok(lock) => return Ok(Self(lock)),
                Err((same, Errno::EINTR)) => file = same,
                Err((_, errno)) => return Err(StoreError::io(path, errno.into())),
            }
        }
    }
}

impl ExclusiveLock {
    /// `None` if somebody is in the store.
    pub(super) fn try_now(path: &Path) -> Result<Option<Self>, StoreError> {
        match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(None),
            Err((_, errno)) => Err(StoreError::io(path, errno.into())),
        }
    }
}
