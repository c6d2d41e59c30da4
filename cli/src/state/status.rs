//! What a container does right now. The truth is in three places, asked in this order: the exit record, the shim, and, where
//! neither is there, the bundle's lock.

use std::fs;
use std::time::Duration;

use hull_shim::client::{Process, TaskClient, messages};
use hull_shim::record::{ADDRESS_FILE, ExitRecord, Record, ShimRecord};
use messages::Status as TaskStatus;

use super::{Container, StateError};
use crate::engine::{self, ProcessHandle};
use crate::error::CliError;
use crate::output::time;

/// How long a shim may take to say what its container does, before it is taken for busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It is being started.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended.
    Exited(ExitRecord),
}

impl Status {
    /// docker's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited(_) => "exited",
        }
    }

    /// Whether processes of the container may exist.
    pub fn is_alive(&self) -> bool {
        !matches!(self, Self::Exited(_))
    }
}

/// Finds out what the container does, and writes the exit record that a dead shim could not write. `None` if the container
/// is gone meanwhile.
pub async fn observe(container: &Container) -> Result<Option<Status>, CliError> {
    if let Some(exit) = ExitRecord::read(&container.bundle)? {
        return Ok(Some(Status::Exited(exit)));
    }
    match ask(container).await {
        Answer::Is(status) => return Ok(Some(status)),
        Answer::Silence => {}
    }
    // A shim that takes no calls any more is on its way out and may be removing the bundle: let it.
    if !ProcessHandle::shim(container)?.ended_within(PATIENCE).await? {
        return Ok(Some(Status::Running));
    }
    // It may have ended properly after the first question.
    if let Some(exit) = ExitRecord::read(&container.bundle)? {
        return Ok(Some(Status::Exited(exit)));
    }
    if !container.bundle.is_dir() {
        return Ok(None);
    }
    match repair(container) {
        Ok(Some(exit)) => Ok(Some(Status::Exited(exit))),
        Ok(None) => Ok(Some(Status::Created)),
        Err(CliError::State(StateError::NotFound(_))) => Ok(None),
        Err(_) if !container.bundle.is_dir() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What asking the shim gave.
enum Answer {
    Is(Status),
    Silence,
}

async fn ask(container: &Container) -> Answer {
    let Ok(address) = fs::read_to_string(container.bundle.join(ADDRESS_FILE)) else { return Answer::Silence };
    let question = async {
        let client = TaskClient::connect(address.trim()).await?;
        client.state(Process::init(container.id.as_str())).await
    };
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(Ok(state)) => Answer::Is(match state.status.enum_value_or_default() {
            TaskStatus::RUNNING => Status::Running,
            TaskStatus::PAUSED | TaskStatus::PAUSING => Status::Paused,
            TaskStatus::STOPPED => Status::Exited(exit_of(&state)),
            TaskStatus::CREATED | TaskStatus::UNKNOWN => Status::Created,
        }),
        Ok(Err(_)) => Answer::Silence,
        // It took the connection and is too busy to answer: it lives.
        Err(_) => Answer::Is(Status::Running),
    }
}

fn exit_of(state: &messages::StateResponse) -> ExitRecord {
    let exited_at =
        state.exited_at.as_ref().map(|at| time::from_unix(at.seconds, at.nanos)).unwrap_or_default();
    ExitRecord { exit_code: state.exit_status, exited_at, oom_killed: false, reason: String::new() }
}

/// Cleans up after a shim that died without a word: ends what it left running and writes the exit record in its place.
/// `None` if somebody is starting the container right now.
pub fn repair(container: &Container) -> Result<Option<ExitRecord>, CliError> {
    let Some(_lock) = container.try_lock()? else { return Ok(None) };
    if let Some(exit) = ExitRecord::read(&container.bundle)? {
        return Ok(Some(exit));
    }
    let started =
        ShimRecord::read(&container.bundle)?.is_some() || container.bundle.join(ADDRESS_FILE).exists();
    container.release_network();
    let mut reason = "the container was never started: its client ended too early";
    if started {
        engine::shim(container)?.delete()?;
        reason = "the shim ended without reporting an exit";
    }
    if let Some(exit) = ExitRecord::read(&container.bundle)? {
        return Ok(Some(exit));
    }
    let exit =
        ExitRecord { exit_code: 137, exited_at: time::now(), oom_killed: false, reason: reason.to_owned() };
    exit.write(&container.bundle)?;
    Ok(Some(exit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(Status::Created.word(), "created");
        assert!(Status::Paused.is_alive());
        let exit =
            ExitRecord { exit_code: 0, exited_at: String::new(), oom_killed: false, reason: String::new() };
        assert!(!Status::Exited(exit).is_alive());
    }
}
