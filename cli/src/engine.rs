//! The seam to the shim: which binary, which socket, the runtime that carries the calls, and waiting for a shim's end.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use hull_shim::client::{Shim, TaskClient};
use hull_shim::record::{ADDRESS_FILE, Record, ShimRecord};
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};

use crate::error::CliError;
use crate::state::Container;

/// The namespace of containers that the command line makes.
pub const NAMESPACE: &str = "hull";

/// The runtime for a command: everything asynchronous happens on the calling thread.
pub fn runtime() -> Result<Runtime, CliError> {
    Builder::new_current_thread().enable_all().build().map_err(CliError::io("cannot start the event loop"))
}

/// The shim of a container.
pub fn shim(container: &Container) -> Result<Shim, CliError> {
    let root = container.bundle.ancestors().nth(2).unwrap_or(Path::new("/"));
    Ok(Shim {
        binary: Shim::find()?,
        namespace: NAMESPACE.to_owned(),
        id: container.id.as_str().to_owned(),
        bundle: container.bundle.clone(),
        callback_address: root.join("hull.sock").to_string_lossy().into_owned(),
    })
}

/// Connects to the shim of a container that runs.
pub async fn connect(container: &Container) -> Result<TaskClient, CliError> {
    let not_running = || CliError::NotRunning(container.record.name.clone());
    let address = fs::read_to_string(container.bundle.join(ADDRESS_FILE)).map_err(|_| not_running())?;
    TaskClient::connect(address.trim()).await.map_err(|_| not_running())
}

/// A process that can be waited for although it is not a child.
#[derive(Debug)]
pub struct ProcessHandle {
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl ProcessHandle {
    /// The shim of a container, if it lives.
    pub fn shim(container: &Container) -> Result<Self, CliError> {
        let Some(record) = ShimRecord::read(&container.bundle)? else { return Ok(Self { pidfd: None }) };
        Self::open(record.shim_pid, Some(record.shim_start_ticks))
    }

    /// The process `pid`, if it lives; with `start_ticks` only if it is the one that started then.
    pub fn open(pid: u32, start_ticks: Option<u64>) -> Result<Self, CliError> {
        let Some(pidfd) = pidfd_open(pid) else { return Ok(Self { pidfd: None }) };
        // Looked at after the descriptor is there: from then on the number cannot be given to another process.
        if start_ticks.is_some() && hull_shim::start_ticks(pid) != start_ticks {
            return Ok(Self { pidfd: None });
        }
        let pidfd = watch(pidfd).map_err(CliError::io("cannot watch the shim"))?;
        Ok(Self { pidfd: Some(pidfd) })
    }

    /// Whether it lived when this was made.
    pub fn was_alive(&self) -> bool {
        self.pidfd.is_some()
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) -> Result<(), CliError> {
        if let Some(pidfd) = &self.pidfd {
            pidfd.readable().await.map(drop).map_err(CliError::io("cannot watch the shim"))?;
        }
        Ok(())
    }

    /// Like [`ended`](Self::ended), but gives up: `false` if the process still lives.
    pub async fn ended_within(&self, limit: Duration) -> Result<bool, CliError> {
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }
}

/// Lets the event loop watch a descriptor.
pub fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped, and the AsyncFd owns it until then.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

fn pidfd_open(pid: u32) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0)?;
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor_by_its_start() {
        let me = std::process::id();
        runtime().unwrap().block_on(async {
            assert!(ProcessHandle::open(me, hull_shim::start_ticks(me)).unwrap().was_alive());
            assert!(!ProcessHandle::open(me, Some(1)).unwrap().was_alive());
            assert!(!ProcessHandle::open(0, None).unwrap().was_alive());
        });
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        runtime().unwrap().block_on(async {
            let handle = ProcessHandle::open(child.id(), None).unwrap();
            assert!(!handle.ended_within(Duration::from_millis(1)).await.unwrap());
            child.kill().unwrap();
            assert!(handle.ended_within(Duration::from_secs(30)).await.unwrap());
        });
        child.wait().unwrap();
    }
}
