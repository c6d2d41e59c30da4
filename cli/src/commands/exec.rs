//! `hull exec`: another process in a running container.

use std::fs;
use std::io;

use hull_shim::client::messages::ExecProcessRequest;
use hull_shim::client::{PROCESS_TYPE_URL, Process, TaskClient, json_any};
use oci_spec::runtime::Spec;

use super::DONE;
use crate::cli::{ExecArgs, Global};
use crate::engine;
use crate::error::CliError;
use crate::paths;
use crate::run::{self, End, Session, Signals, exit_byte};
use crate::spec::user::{Database, Identity};
use crate::spec::{self, ExecRequest, Privileges, Terminal, env};
use crate::state::{Container, random_hex};
use crate::streams::{Fifos, Logs, Streams, Wanted};
use crate::terminal::{self, RawTerminal};

/// Runs the command and returns its exit status; in the background, success.
pub fn exec(global: &Global, args: &ExecArgs) -> Result<u8, CliError> {
    let [key, command @ ..] = args.container_and_command.as_slice() else { return Ok(DONE) };
    if args.tty && args.interactive && !args.detach && !terminal::stdin_is_terminal() {
        return Err(CliError::NotATerminal);
    }
    let container = paths::state(global)?.find(key)?;
    let environment =
        env::changes(&args.environment.env_files, &args.environment.env, |name| std::env::var(name).ok())?;
    let identity = args.user.as_deref().map(|user| identity(global, &container, user)).transpose()?;
    let request = ExecRequest {
        args: command.to_vec(),
        identity,
        environment,
        workdir: args.workdir.as_deref(),
        terminal: if args.tty { Terminal::Sized(terminal::window_size()) } else { Terminal::None },
        privileges: if args.privileged { Privileges::All } else { Privileges::Usual },
    };
    let process = spec::exec(&first_process(&container)?, request)?;
    let runtime = engine::runtime()?;
    let status = runtime.block_on(start(&container, args, serde_json::to_vec(&process)?));
    // As in `run`: stdin's thread may wait for ever.
    runtime.shutdown_background();
    status
}

/// The container's own first process, which the new one takes after.
fn first_process(container: &Container) -> Result<oci_spec::runtime::Process, CliError> {
    let path = container.bundle.join("config.json");
    let bytes = fs::read(&path).map_err(CliError::io(format!("cannot read {}", path.display())))?;
    let spec: Spec = serde_json::from_slice(&bytes)?;
    spec.process().clone().ok_or_else(|| {
        CliError::io(format!("{} is damaged", path.display()))(io::Error::other("it describes no process"))
    })
}

/// Names are looked up in the image that the container was made from. If that is gone, numbers still work.
fn identity(global: &Global, container: &Container, user: &str) -> Result<Identity, CliError> {
    let database = match paths::store(global)?.find(&container.record.image_id)? {
        Some(image) => run::user_database(&image)?,
        None => Database::default(),
    };
    Ok(database.resolve(user, &[])?)
}

async fn start(container: &Container, args: &ExecArgs, process: Vec<u8>) -> Result<u8, CliError> {
    let mut signals = Signals::listen()?;
    let client = engine::connect(container).await?;
    let id = random_hex::<16>().map_err(CliError::io("cannot make an id"))?;
    let which = Process::exec(container.id.as_str(), &id);
    let mut request = ExecProcessRequest::new();
    request.id = container.id.as_str().to_owned();
    request.exec_id = id.clone();
    request.terminal = args.tty;
    request.spec = Some(json_any(PROCESS_TYPE_URL, process)).into();
    if args.detach {
        return start_detached(&client, which, &request).await;
    }
    let wanted = Wanted { stdin: args.interactive, terminal: args.tty };
    let fifos = Fifos::create(&container.bundle.join(Container::IO), &format!("{id}-"), wanted)?;
    let mut streams = Streams::attach(&fifos, Logs::default())?;
    [request.stdin, request.stdout, request.stderr] = fifos.addresses();
    client.exec(&request).await.map_err(CliError::starting)?;
    let raw = (args.tty && args.interactive).then(RawTerminal::enter).transpose()?;
    if let Err(error) = client.start(which).await {
        drop(raw);
        forget(&client, which).await;
        return Err(CliError::starting(error));
    }
    streams.shim_is_attached();
    let size = args.tty.then(terminal::window_size).flatten();
    let session = Session { client: &client, process: which, streams, terminal: raw };
    let (end, streams) = session.run(&mut signals, size).await?;
    forget(&client, which).await;
    streams.drained().await?;
    match end {
        End::Exited(status) => Ok(exit_byte(status)),
        // The container ended, and its processes with it.
        End::Lost(_) => Ok(137),
    }
}

async fn start_detached(
    client: &TaskClient,
    process: Process<'_>,
    request: &ExecProcessRequest,
) -> Result<u8, CliError> {
    client.exec(request).await.map_err(CliError::starting)?;
    if let Err(error) = client.start(process).await {
        forget(client, process).await;
        return Err(CliError::starting(error));
    }
    Ok(DONE)
}

/// The shim keeps an ended process until it is told to forget it. If it cannot be told, it has forgotten already.
async fn forget(client: &TaskClient, process: Process<'_>) {
    let _ = client.delete(process).await;
}
