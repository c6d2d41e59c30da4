//! Ending a container that runs: signal, wait, make sure, clean up. Used by `stop`, `kill` and `rm`.

use std::time::Duration;

use hull_shim::client::{Process, Reach, TaskClient};
use hull_shim::record::{ExitRecord, Record};

use crate::engine::{self, ProcessHandle};
use crate::error::CliError;
use crate::state::{self, Container, Status};

/// How long the end may take after SIGKILL.
const AFTER_KILL: Duration = Duration::from_secs(30);
/// How long a shim may take to power its VM off and end.
const SHIM_END: Duration = Duration::from_secs(15);
/// SIGKILL.
pub const SIGKILL: u32 = 9;

/// Sends a signal. A container that does not run is an error.
pub async fn send(container: &Container, signal: u32) -> Result<(), CliError> {
    let not_running = || CliError::NotRunning(container.record.name.clone());
    match state::observe(container).await? {
        Some(status) if status.is_alive() => {}
        _ => return Err(not_running()),
    }
    let client = engine::connect(container).await?;
    match client.kill(Process::init(container.id.as_str()), signal, Reach::Process).await {
        Err(error) if error.is_not_found() || error.is_gone() => Err(not_running()),
        other => Ok(other?),
    }
}

/// Sends `signal`, waits for `grace`, sends SIGKILL, waits again. Returns when the container has ended and its VM is gone.
/// A container that has ended already is no error.
pub async fn end(container: &Container, signal: u32, grace: Duration) -> Result<(), CliError> {
    match state::observe(container).await? {
        Some(status) if status.is_alive() => {}
        _ => return settle(container).await,
    }
    for (signal, patience) in [(signal, grace), (SIGKILL, AFTER_KILL)] {
        match send(container, signal).await {
            Ok(()) => {}
            Err(CliError::NotRunning(_)) => return settle(container).await,
            Err(error) => return Err(error),
        }
        if exited_within(container, patience).await? {
            return settle(container).await;
        }
    }
    Err(CliError::Unkillable(container.record.name.clone(), AFTER_KILL.as_secs()))
}

/// Whether the container exits in time. A shim that ends has told of the exit, or is dead.
async fn exited_within(container: &Container, patience: Duration) -> Result<bool, CliError> {
    let Ok(client) = engine::connect(container).await else { return Ok(true) };
    let id = container.id.as_str().to_owned();
    Ok(tokio::time::timeout(patience, client.wait(Process::init(&id))).await.is_ok())
}

/// After the exit: waits for the shim of a background container, which ends by itself; ends the one of a foreground container
/// whose client is gone.
async fn settle(container: &Container) -> Result<(), CliError> {
    if !container.bundle.is_dir() {
        return Ok(());
    }
    let shim = ProcessHandle::shim(container)?;
    if !container.record.detached {
        // Its client cleans up, if it lives: it holds the lock until it has.
        if container.try_lock()?.is_some() {
            discharge(container).await;
        }
    }
    if !shim.ended_within(SHIM_END).await? && container.bundle.is_dir() {
        engine::shim(container)?.delete()?;
    }
    Ok(())
}

/// What the client of a managed container does in the end. Every step may have been done already.
async fn discharge(container: &Container) {
    let Ok(client) = engine::connect(container).await else { return };
    let _ = client.delete(Process::init(container.id.as_str())).await;
    let _ = client.shutdown(container.id.as_str()).await;
}

/// Waits for the exit, whoever causes it. `None` if the container removed itself before its status could be read.
pub async fn wait(container: &Container) -> Result<Option<ExitRecord>, CliError> {
    loop {
        match state::observe(container).await? {
            None => return Ok(None),
            Some(Status::Exited(exit)) => return Ok(Some(exit)),
            Some(_) => {}
        }
        let Ok(client) = engine::connect(container).await else {
            // It is being started or has just ended: the next look will tell, once its maker has let go of it.
            let container = container.clone();
            let waited = tokio::task::spawn_blocking(move || container.wait_for_lock()).await;
            waited.map_err(std::io::Error::other).map_err(CliError::io("cannot wait"))??;
            continue;
        };
        if let Some(exit) = wait_with(&client, container).await? {
            return Ok(Some(exit));
        }
    }
}

async fn wait_with(client: &TaskClient, container: &Container) -> Result<Option<ExitRecord>, CliError> {
    match client.wait(Process::init(container.id.as_str())).await {
        Ok(exit) => Ok(Some(ExitRecord {
            exit_code: exit.exit_status,
            exited_at: String::new(),
            oom_killed: false,
            reason: String::new(),
        })),
        Err(error) if error.is_gone() || error.is_not_found() => Ok(ExitRecord::read(&container.bundle)?),
        Err(error) => Err(error.into()),
    }
}
