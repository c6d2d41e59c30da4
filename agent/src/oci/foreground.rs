//! A process in the foreground: signals to the command go to it, its exit code is the command's.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::OciError;
use crate::reap::Children;
use crate::sys::process;

/// What a person or a supervisor sends to end or to tell a program something.
const FORWARDED: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Passes signals on, for as long as the command lives.
pub fn forward(pidfd: &Arc<OwnedFd>) -> Result<(), OciError> {
    for number in FORWARDED {
        let mut received =
            signal(SignalKind::from_raw(number)).map_err(OciError::system("watch for signals"))?;
        let pidfd = pidfd.clone();
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                // It may have ended; then the command is about to end too.
                let _ = process::send_signal(pidfd.as_fd(), number);
            }
        });
    }
    Ok(())
}

/// Waits for the end of a child of ours.
pub async fn wait(children: &Children, pid: libc::pid_t, pidfd: &OwnedFd) -> Result<u8, OciError> {
    let ended = children.wait(pid, pidfd).await.map_err(OciError::system("wait for the process"))?;
    Ok(u8::try_from(ended.code()).unwrap_or(u8::MAX))
}
