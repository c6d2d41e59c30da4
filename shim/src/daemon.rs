//! The shim itself: serves the task service until the pod is at its end, then leaves nothing behind.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::args::{Identity, Verbosity};
use crate::bootstrap::{LISTENER_FD, READY};
use crate::config::{Config, ConfigError, LogLevel};
use crate::container::own_record;
use crate::events::{ADDRESS_VARIABLE, Events};
use crate::logging;
use crate::paths::{PathError, PodSockets, state_root};
use crate::pod::{Pod, ShutdownMode};
use crate::record::{Record, RecordError};
use crate::service;
use crate::trace::Tracer;

/// How long a shim without a container waits for one before it goes.
const IDLE: Duration = Duration::from_secs(600);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a shim could not serve.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The listening socket was not handed over.
    #[error("no listening socket as descriptor {LISTENER_FD}: this action is for `start` to use ({0})")]
    Listener(io::Error),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The runtime could not be made.
    #[error("cannot start: {0}")]
    Runtime(#[from] io::Error),
    /// The sockets have no place.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// ttrpc failed.
    #[error("cannot serve: {0}")]
    Serve(#[from] ttrpc::Error),
}

/// Serves the pod on the socket that `start` bound, and tells `start` so on standard output, or why not.
pub fn serve(identity: &Identity) -> Result<(), DaemonError> {
    let (config, listener, sockets, runtime) = match prepare(identity) {
        Ok(prepared) => prepared,
        Err(error) => {
            // `start` may be gone; the log says it as well.
            let _ = writeln!(io::stdout(), "{error}");
            return Err(error);
        }
    };
    say_ready()?;
    let result = runtime.block_on(serve_pod(config, listener, sockets, identity));
    // A blocked write to a file on a dead disk must not keep the process alive.
    runtime.shutdown_background();
    result
}

fn prepare(identity: &Identity) -> Result<(Config, StdListener, PodSockets, Runtime), DaemonError> {
    let config = Config::load()?;
    let level = match (identity.verbosity, config.log) {
        (Verbosity::Debug, _) | (_, LogLevel::Debug) => log::LevelFilter::Debug,
        (Verbosity::Normal, LogLevel::Info) => log::LevelFilter::Info,
        (Verbosity::Normal, LogLevel::Warn) => log::LevelFilter::Warn,
    };
    logging::start(level, &identity.namespace, &identity.id);
    let listener = inherited_listener().map_err(DaemonError::Listener)?;
    let sockets = PodSockets::new(&state_root(), &identity.address, &identity.namespace, &identity.id)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(bundle) = &identity.bundle {
        own_record(vec![sockets.task.clone(), sockets.streams.clone()]).write(bundle)?;
    }
    Ok((config, listener, sockets, runtime))
}

/// Tells `start` that its address is good, and lets it end: nothing else goes to standard output.
fn say_ready() -> io::Result<()> {
    let mut output = io::stdout();
    output.write_all(READY.as_bytes())?;
    output.flush()?;
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// Serves a pod on `listener` until it is finished.
pub async fn serve_pod(
    config: Config,
    listener: StdListener,
    sockets: PodSockets,
    identity: &Identity,
) -> Result<(), DaemonError> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let namespace = identity.namespace.clone();
    let (events, publisher) = Events::start(std::env::var(ADDRESS_VARIABLE).ok(), namespace.clone());
    let tracer = config.trace_file.clone().map(|file| Tracer::new(file, &identity.namespace, &identity.id));
    let pod = Arc::new(Pod::new(config, sockets.clone(), namespace, events, tracer));
    let mut server = Server::new()
        .add_listener(Listener::new(own_user_only(listener)))
        .register_service(service::services(&pod, &identity.id));
    server.start().await?;
    log::info!("serving {}", sockets.address());

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            () = pod.finished() => break,
            () = pod.idle(IDLE) => {
                log::info!("nobody wants a container: going");
                break;
            }
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // A service manager's sweep must not end running containers.
        if pod.is_empty() {
            break;
        }
        log::warn!("asked to terminate, but a container exists");
    }
    pod.shut_down(ShutdownMode::Now).await;
    // While we still listen: a new shim of this pod must not find its own socket removed.
    if let Err(error) = sockets.remove() {
        log::error!("cannot remove the sockets: {error}");
    }
    pod.close_events();
    publisher.drain().await;
    server.shutdown().await?;
    Ok(())
}

/// Connections from processes of our own user; others are closed at once.
fn own_user_only(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    let user = nix::unistd::geteuid().as_raw();
    stream::unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await.and_then(|(peer, _)| Ok((peer.peer_cred()?.uid(), peer))) {
                Ok((uid, peer)) if uid == user => return Some((Ok(peer), listener)),
                Ok((uid, _)) => log::warn!("a connection of user {uid} is refused"),
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

fn inherited_listener() -> io::Result<StdListener> {
    // SAFETY: F_GETFD only asks whether the descriptor exists.
    if unsafe { libc::fcntl(LISTENER_FD, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `start` passed the descriptor for us to own, and nothing in this process has touched it yet.
    let fd = unsafe { OwnedFd::from_raw_fd(LISTENER_FD) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let listener = StdListener::from(fd);
    listener.local_addr()?;
    Ok(listener)
}
