//! `delete`: cleans up after a shim from what is on disk, with nobody's help. Idempotent.
//!
//! A container in the VM of a pod's sandbox has nothing of its own outside of it: as long as the pod's shim lives, there is
//! nothing to end, and the pod's other containers are not harmed.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;

use crate::args::Identity;
use crate::network::{NetworkError, NetworkRecord};
use crate::paths::{PathError, PodSockets, state_root};
use crate::pidfd::Pidfd;
use crate::record::{ExitRecord, Record, ShimRecord};
use crate::time::{parse_rfc3339, rfc3339, timestamp};

/// 128 + SIGKILL: how a container ended whose end nobody saw.
const KILLED: u32 = 137;
/// containerd gives the whole action five seconds.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// Why something may be left behind.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The sockets have no place.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A process does not die.
    #[error("cannot end the {what}, process {pid}: {source}")]
    Kill {
        /// Monitor or shim.
        what: &'static str,
        /// Its pid.
        pid: u32,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The pod's network namespace is not as it was.
    #[error("cannot clean up the pod's network: {0}")]
    Network(#[from] NetworkError),
    /// The sockets cannot be removed.
    #[error("cannot remove the sockets: {0}")]
    Sockets(std::io::Error),
}

/// Ends the pod's processes, removes its sockets, and tells how its container ended.
pub fn delete(identity: &Identity) -> Result<DeleteResponse, CleanupError> {
    // The working directory may have been removed under us.
    let bundle: Option<PathBuf> = identity.bundle.clone().or_else(|| std::env::current_dir().ok());
    let record = bundle.as_deref().and_then(|bundle| {
        ShimRecord::read(bundle).unwrap_or_else(|error| {
            log::warn!("{error}");
            None
        })
    });
    let (killed, network, removed) = match &record {
        Some(record) if record.sandbox.is_some() => (end_orphan(record), Ok(()), Ok(())),
        record => {
            let killed = record.as_ref().map_or(Ok(()), end_processes);
            let network = record.as_ref().and_then(|record| record.network.clone());
            let network = network.map_or(Ok(()), NetworkRecord::clean_up);
            let sockets =
                PodSockets::new(&state_root(), &identity.address, &identity.namespace, &identity.id)?;
            (killed, network, sockets.remove().map_err(CleanupError::Sockets))
        }
    };
    if let Some(record) = &record
        && let Some(cgroup) = &record.cgroup
    {
        // Who else may be in it is not ours to end.
        let removed = block_on(cgroup.remove()).and_then(|removed| removed);
        removed.unwrap_or_else(|error| log::warn!("the pod's cgroup stays: {error}"));
    }
    if let Some(bundle) = &bundle {
        // The time that containerd gives is the hooks' too.
        block_on(crate::hooks::poststop(bundle, &identity.id))
            .unwrap_or_else(|error| log::warn!("the poststop hooks are not run: {error}"));
    }

    let recorded = bundle.as_deref().and_then(|bundle| ExitRecord::read(bundle).ok().flatten());
    let exit = recorded.unwrap_or_else(|| {
        let exit = ExitRecord {
            exit_code: KILLED,
            exited_at: rfc3339(SystemTime::now()),
            oom_killed: false,
            reason: "its shim was gone".to_owned(),
        };
        if let (Some(bundle), Some(_)) = (&bundle, &record)
            && let Err(error) = exit.write(bundle)
        {
            log::warn!("{error}");
        }
        exit
    });
    killed?;
    network?;
    removed?;
    Ok(DeleteResponse {
        pid: record.and_then(|record| record.container_pid).unwrap_or_default(),
        exit_status: exit.exit_code,
        exited_at: timestamp(parse_rfc3339(&exit.exited_at).unwrap_or_else(SystemTime::now)),
        ..DeleteResponse::default()
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

fn end_processes(record: &ShimRecord) -> Result<(), CleanupError> {
    // The shim first: it would take the monitor's death for the container's end and record it.
    let shim = kill("shim", Some(record.shim_pid), Some(record.shim_start_ticks));
    shim.and(kill("monitor", record.vmm_pid, record.vmm_start_ticks))
}

/// The VM of a shim that is gone; it has ended with the shim, or is about to.
fn end_orphan(record: &ShimRecord) -> Result<(), CleanupError> {
    let failed = |source| CleanupError::Kill { what: "shim", pid: record.shim_pid, source };
    match Pidfd::open(record.shim_pid, record.shim_start_ticks).map_err(failed)? {
        Some(_) => Ok(()),
        None => kill("monitor", record.vmm_pid, record.vmm_start_ticks),
    }
}

fn kill(what: &'static str, pid: Option<u32>, started: Option<u64>) -> Result<(), CleanupError> {
    let (Some(pid), Some(started)) = (pid, started) else { return Ok(()) };
    let kill = || match Pidfd::open(pid, started)? {
        Some(process) => process.kill(KILL_DEADLINE),
        None => Ok(()),
    };
    kill().map_err(|source| CleanupError::Kill { what, pid, source })
}
