//! Reaping: as PID 1 the agent inherits orphans, and must not take the exit status of a child that somebody waits for.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use tokio::io::Interest;

use crate::sys::process::{self, Ended};

/// The children that somebody waits for.
#[derive(Clone, Debug, Default)]
pub struct Children {
    waited_for: Arc<Mutex<BTreeSet<libc::pid_t>>>,
}

impl Children {
    fn set(&self) -> std::sync::MutexGuard<'_, BTreeSet<libc::pid_t>> {
        self.waited_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called right after the clone, before anything else can run.
    pub fn add(&self, pid: libc::pid_t) {
        self.set().insert(pid);
    }

    /// Waits for the end of child `pid`, reaps it, and then the orphans that were queued behind it.
    pub async fn wait(&self, pid: libc::pid_t, pidfd: &OwnedFd) -> Result<Ended, std::io::Error> {
        let watched = crate::sys::ready::watch(pidfd.as_fd(), Interest::READABLE)?;
        let ended = loop {
            if let Some((_, ended)) = process::wait(process::Children::Take(pidfd.as_fd()))? {
                break ended;
            }
            watched.readable().await?.clear_ready();
        };
        self.set().remove(&pid);
        self.reap_orphans();
        Ok(ended)
    }

    /// Reaps every ended child that nobody waits for.
    ///
    /// Where one that is waited for comes first it stops: that child's own wait calls this again.
    pub fn reap_orphans(&self) {
        loop {
            match process::wait(process::Children::Peek) {
                Ok(Some((pid, _))) if !self.set().contains(&pid) => {
                    if let Err(error) = process::wait(process::Children::TakePid(pid)) {
                        log::error!("cannot reap process {pid}: {error}");
                        return;
                    }
                }
                Ok(_) | Err(Errno::ECHILD) => return,
                Err(error) => {
                    log::error!("cannot look for ended children: {error}");
                    return;
                }
            }
        }
    }
}

/// Reaps orphans for as long as the agent lives.
pub async fn run(children: Children) -> std::io::Result<()> {
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
    loop {
        children.reap_orphans();
        if ended.recv().await.is_none() {
            return Ok(());
        }
    }
}
