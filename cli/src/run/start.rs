//! From a bundle to a running container. When that fails, nothing stays: no shim, no VM, no bundle, no name.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use hull_shim::client::messages::CreateTaskRequest;
use hull_shim::client::{ClientError, Process, TaskClient, file_address};
use hull_shim::record::{ExitRecord, Record};

use super::prepare::Prepared;
use super::session::{End, Session};
use super::signals::Signals;
use crate::engine::{self, ProcessHandle};
use crate::error::{self, CliError};
use crate::state::Container;
use crate::streams::{self, Fifos, Logs, Streams, Wanted};
use crate::terminal::{self, RawTerminal};

/// How long a shim that was told to end may take.
const SHIM_END: Duration = Duration::from_secs(15);
/// How long output may still flow after the shim has ended. Its last bytes are in the pipes by then.
const LAST_OUTPUT: Duration = Duration::from_secs(30);

/// What is known about the end of a container.
#[derive(Debug)]
pub struct Ending {
    /// The exit status for the user.
    pub status: u32,
    /// The record, if there is one.
    pub record: Option<ExitRecord>,
}

/// Starts a container in the background.
pub async fn start_detached(prepared: Prepared) -> Result<Container, CliError> {
    let mut signals = Signals::listen()?;
    let container = prepared.container.clone();
    let log = |name: &str| file_address(&container.bundle.join(name));
    let stdin = container.record.interactive.then(|| keep_open_stdin(&container)).transpose()?;
    let stderr = if container.record.tty { String::new() } else { log(Container::STDERR_LOG) };
    let addresses = [stdin.unwrap_or_default(), log(Container::STDOUT_LOG), stderr];
    let started = async {
        let client = boot(&prepared, addresses, &mut signals).await?;
        client.start(Process::init(container.id.as_str())).await.map_err(CliError::starting)?;
        Ok(client)
    };
    match started.await {
        Ok(_) => Ok(container),
        Err(error) => Err(undo(prepared, error).await),
    }
}

/// `-d -i`: an input that never ends, so that a shell does not. The shim holds it open; it goes with the bundle.
fn keep_open_stdin(container: &Container) -> Result<String, CliError> {
    Ok(streams::stdin_fifo(&container.bundle.join(Container::IO))?.display().to_string())
}

/// Starts a container and stays with it until it has exited and is cleaned up.
pub async fn start_attached(prepared: Prepared) -> Result<Ending, CliError> {
    let mut signals = Signals::listen()?;
    let container = prepared.container.clone();
    let record = &container.record;
    let wanted = Wanted { stdin: record.interactive, terminal: record.tty };
    let process = Process::init(container.id.as_str());
    let started = async {
        let fifos = Fifos::create(&container.bundle.join(Container::IO), "", wanted)?;
        let mut streams = Streams::attach(&fifos, logs(&container)?)?;
        let client = boot(&prepared, fifos.addresses(), &mut signals).await?;
        streams.shim_is_attached();
        let raw = (record.tty && record.interactive).then(RawTerminal::enter).transpose()?;
        client.start(process).await.map_err(CliError::starting)?;
        Ok((client, streams, raw, fifos))
    };
    let (client, streams, raw, fifos) = match started.await {
        Ok(started) => started,
        Err(error) => return Err(undo(prepared, error).await),
    };
    let size = record.tty.then(terminal::window_size).flatten();
    let session = Session { client: &client, process, streams, terminal: raw };
    let (end, streams) = session.run(&mut signals, size).await?;
    drop(fifos);
    finish(prepared, &client, end, streams).await
}

/// The copies of the streams that `hull logs` shows later.
fn logs(container: &Container) -> Result<Logs, CliError> {
    if container.record.auto_remove {
        return Ok(Logs::default());
    }
    let open = |name: &str| -> Result<File, CliError> {
        let path = container.bundle.join(name);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        file.map_err(CliError::io(format!("cannot write {}", path.display())))
    };
    let stderr = if container.record.tty { None } else { Some(open(Container::STDERR_LOG)?) };
    Ok(Logs { stdout: Some(open(Container::STDOUT_LOG)?), stderr })
}

/// Starts the shim and lets it boot the VM and create the container. A signal stops that.
async fn boot(
    prepared: &Prepared,
    stdio: [String; 3],
    signals: &mut Signals,
) -> Result<TaskClient, CliError> {
    let container = &prepared.container;
    let shim = engine::shim(container)?;
    let address = shim.start().map_err(|error| hint_at_kvm(CliError::Shim(error)))?;
    let client = TaskClient::connect(&address).await?;
    let mut request = CreateTaskRequest::new();
    request.id = container.id.as_str().to_owned();
    request.bundle = container.bundle.display().to_string();
    request.rootfs = prepared.rootfs.clone();
    request.terminal = container.record.tty;
    [request.stdin, request.stdout, request.stderr] = stdio;
    tokio::select! {
        created = client.create(&request) => {
            created.map_err(CliError::starting).map_err(hint_at_kvm)?;
        }
        signal = signals.interruption() => {
            return Err(CliError::Interrupted(u8::try_from(signal).unwrap_or(u8::MAX)));
        }
    }
    Ok(client)
}

/// An error about KVM is followed by where to learn more.
fn hint_at_kvm(error: CliError) -> CliError {
    let CliError::Shim(inner) = error else { return error };
    let text = error::describe(&inner);
    if text.contains("/dev/kvm") || text.contains("KVM") {
        CliError::Kvm(text)
    } else {
        CliError::Shim(inner)
    }
}

/// Takes everything back after a failed start and returns the failure.
async fn undo(prepared: Prepared, failure: CliError) -> CliError {
    let Prepared { container, state, lock, .. } = prepared;
    let failure = with_console(&container, failure);
    if let Err(error) = end_shim(&container, ShutDown::Now).await {
        error::say(&error::describe(&error));
    }
    container.release_network();
    if let Err(error) = state.remove(&container) {
        error::say(&error::describe(&error));
    }
    drop(lock);
    failure
}

/// Where a VM ended by itself the reason is on its console.
fn with_console(container: &Container, failure: CliError) -> CliError {
    let path = container.bundle.join(hull_shim::record::CONSOLE_FILE);
    if matches!(failure, CliError::Shim(_))
        && let Ok(console) = std::fs::read(path)
        && let Some(panic) =
            String::from_utf8_lossy(&console).lines().find(|line| line.contains("Kernel panic"))
    {
        let panic: String = panic.chars().filter(|c| !c.is_control()).take(200).collect();
        error::say(&format!("the guest's console says: {panic}"));
    }
    failure
}

/// How the shim is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShutDown {
    /// If no container is left.
    WhenEmpty,
    /// Whatever is left.
    Now,
}

/// Ends the shim and waits for that; one that does not end is cleaned up after by force.
async fn end_shim(container: &Container, how: ShutDown) -> Result<(), CliError> {
    let shim_process = ProcessHandle::shim(container)?;
    let id = container.id.as_str();
    let address = container.bundle.join(hull_shim::record::ADDRESS_FILE);
    let mut orderly = false;
    if let Ok(address) = std::fs::read_to_string(&address)
        && let Ok(client) = TaskClient::connect(address.trim()).await
    {
        let told = match how {
            ShutDown::WhenEmpty => client.shutdown(id).await,
            ShutDown::Now => client.shutdown_now(id).await,
        };
        orderly = told.is_ok();
    } else if !shim_process.was_alive() && !address.exists() {
        return Ok(());
    }
    let ended = shim_process.ended_within(SHIM_END).await?;
    if !(orderly && ended) {
        engine::shim(container)?.delete()?;
    }
    Ok(())
}

/// After the exit: lets the shim forget the container and end, waits for the last output, keeps or removes the bundle.
async fn finish(
    prepared: Prepared,
    client: &TaskClient,
    end: End,
    streams: Streams,
) -> Result<Ending, CliError> {
    let Prepared { container, state, lock, .. } = prepared;
    let how = match &end {
        End::Exited(_) => match client.delete(Process::init(container.id.as_str())).await {
            Ok(_) => ShutDown::WhenEmpty,
            Err(_) => ShutDown::Now,
        },
        End::Lost(_) => ShutDown::Now,
    };
    let ended = end_shim(&container, how).await;
    if tokio::time::timeout(LAST_OUTPUT, streams.drained()).await.map_or(Ok(()), |drained| drained).is_err() {
        error::say("the end of the container's output could not be written");
    }
    let record = ExitRecord::read(&container.bundle)?;
    let status = match (&end, &record) {
        (End::Exited(status), _) => *status,
        (End::Lost(_), Some(record)) => record.exit_code,
        (End::Lost(_), None) => 137,
    };
    if let (End::Lost(error), None) = (&end, &record) {
        record_loss(&container.bundle, error)?;
        error::say(&format!("the container's shim ended: {}", error::describe(error)));
    }
    let ending = Ending { status, record };
    explain(&container, &ending);
    container.release_network();
    drop(lock);
    if container.record.auto_remove {
        state.remove(&container)?;
    }
    ended.map(|()| ending)
}

fn record_loss(bundle: &Path, error: &ClientError) -> Result<(), CliError> {
    let exit = ExitRecord {
        exit_code: 137,
        exited_at: crate::output::time::now(),
        oom_killed: false,
        reason: format!("the shim ended: {}", error::describe(error)),
    };
    Ok(exit.write(bundle)?)
}

/// Says on stderr why a container ended that did not end by itself.
pub fn explain(container: &Container, ending: &Ending) {
    let Some(record) = &ending.record else { return };
    let name = &container.record.name;
    // The host's OOM killer has a reason: more memory for the container is no remedy.
    if !record.reason.is_empty() {
        error::say(&format!("container {name} ended early: {}", record.reason));
    } else if record.oom_killed {
        error::say(&format!(
            "container {name} ran out of memory: a process was killed; give it more with --memory"
        ));
    }
}
