//! `start`: makes sure that the pod's shim runs, and says where it listens.
//!
//! The socket is bound here and handed to the shim as a descriptor, and the shim says on its standard output when it is ready
//! to serve, or why it is not: the address is good the moment it is printed, and a shim that cannot serve is this action's
//! error. containerd calls nothing to clean up after that, so nothing may be left. Nothing may be written to standard error on
//! success: containerd takes it for a part of the address.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hull_protocol::agent::is_valid_id;
use nix::fcntl::{Flock, FlockArg};

use crate::args::{Identity, SERVE};
use crate::config::{Config, ConfigError};
use crate::paths::{PathError, PodSockets, state_root};
use crate::record::{ADDRESS_FILE, SHIM_LOG_FILE, write_atomically};
use crate::spec::Document;
use crate::undo::remove_file;

/// Where the shim finds its listening socket.
pub const LISTENER_FD: i32 = 3;
/// containerd's fifo for a shim's log, in the bundle.
const LOG_FIFO: &str = "log";
/// A lock file may be removed by its holder just before it is locked; more often than this it is not an accident.
const LOCK_ATTEMPTS: u32 = 100;
/// The most that a shim says of why it cannot serve, in bytes.
const WORDS_MAX: u64 = 4096;
/// What a shim says when it serves.
pub const READY: &str = "ready\n";

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The socket has no place.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The shim was started and cannot serve; the words are its own.
    #[error("{0}")]
    Shim(String),
    /// A step failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Step {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn step(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootstrapError {
    move |source| BootstrapError::Step { action, path: path.to_owned(), source }
}

/// Starts the shim of a pod, or finds the one that runs. Returns its address.
pub fn start(identity: &Identity) -> Result<String, BootstrapError> {
    let bundle = match &identity.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(step("find", Path::new("the working directory")))?,
    };
    // Read again by the shim itself; said here, where the client hears it.
    Config::load()?;
    let identity = Identity { id: pod_of(&bundle, &identity.id), ..identity.clone() };
    let sockets = PodSockets::new(&state_root(), &identity.address, &identity.namespace, &identity.id)?;
    sockets.create_directory()?;
    let _lock = lock(&sockets.lock)?;
    let result = start_locked(&identity, &bundle, &sockets);
    // Ours until the lock is dropped; others notice that it was removed under them.
    remove_file(&sockets.lock).map_err(step("remove", &sockets.lock))?;
    result
}

/// The pod that a container belongs to, which names the shim. What cannot be read is for Create to complain of.
fn pod_of(bundle: &Path, id: &str) -> String {
    match Document::read(bundle, id) {
        Ok(document) if is_valid_id(document.role.pod(id)) => document.role.pod(id).to_owned(),
        _ => id.to_owned(),
    }
}

fn start_locked(identity: &Identity, bundle: &Path, sockets: &PodSockets) -> Result<String, BootstrapError> {
    let address = sockets.address();
    let address_file = bundle.join(ADDRESS_FILE);
    let write = || write_atomically(&address_file, address.as_bytes()).map_err(step("write", &address_file));
    if UnixStream::connect(&sockets.task).is_ok() {
        write()?;
        return Ok(address);
    }
    remove_file(&sockets.task).map_err(step("remove", &sockets.task))?;
    let listener = UnixListener::bind(&sockets.task).map_err(step("bind", &sockets.task))?;
    let started = std::fs::set_permissions(&sockets.task, std::fs::Permissions::from_mode(0o600))
        .map_err(step("protect", &sockets.task))
        // Before there is a process: a full disk is found out here.
        .and_then(|()| write())
        .and_then(|()| spawn(identity, bundle, listener))
        .and_then(wait_until_ready);
    match started {
        Ok(()) => Ok(address),
        Err(error) => {
            // The first error is the one to report.
            let _ = remove_file(&sockets.task).and(remove_file(&address_file));
            Err(error)
        }
    }
}

/// Waits for the shim to say that it serves. One that does not is gone when this returns.
fn wait_until_ready(mut child: Child) -> Result<(), BootstrapError> {
    let mut words = String::new();
    let said = match child.stdout.take() {
        Some(output) => output.take(WORDS_MAX).read_to_string(&mut words).map(drop),
        None => Ok(()),
    };
    if said.is_ok() && words == READY {
        // It outlives us, and init reaps it.
        return Ok(());
    }
    // It may be on its way out already.
    let _ = child.kill();
    let status = child.wait().map_err(step("wait for", Path::new("the shim")))?;
    let words = words.trim();
    Err(BootstrapError::Shim(if words.is_empty() {
        format!("the shim ended early ({status})")
    } else {
        words.to_owned()
    }))
}

fn spawn(identity: &Identity, bundle: &Path, listener: UnixListener) -> Result<Child, BootstrapError> {
    let exe = std::env::current_exe().map_err(step("find", Path::new("/proc/self/exe")))?;
    let log = open_log(bundle).map_err(step("open the log in", bundle))?;
    let identity = Identity { bundle: Some(bundle.to_owned()), ..identity.clone() };
    // Above 3, so that handing it on as 3 overwrites neither itself nor the runtime's pipe to the child.
    let listener = OwnedFd::from(listener);
    let socket = listener.as_raw_fd();
    let null = File::open("/dev/null").map_err(step("open", Path::new("/dev/null")))?;
    let mut command = Command::new(&exe);
    command.args(identity.to_args()).arg(SERVE).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe system calls on integers; the
    // descriptor stays open in the parent until after the spawn.
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            let result = if socket == LISTENER_FD {
                libc::fcntl(socket, libc::F_SETFD, 0)
            } else {
                libc::dup2(socket, LISTENER_FD)
            };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let child = command.spawn().map_err(step("run", &exe))?;
    drop((listener, null));
    Ok(child)
}

/// The shim's standard error: containerd's fifo if it made one, else a file in the bundle.
fn open_log(bundle: &Path) -> io::Result<File> {
    let fifo = bundle.join(LOG_FIFO);
    // Read-write: our own read end means no blocking open, no EPIPE and no SIGPIPE while containerd restarts.
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(&fifo);
    match opened {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(bundle.join(SHIM_LOG_FILE)),
        Err(error) => Err(error),
    }
}

fn lock(path: &Path) -> Result<Flock<File>, BootstrapError> {
    for _ in 0..LOCK_ATTEMPTS {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(step("open", path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| step("lock", path)(error.into()))?;
        let ours = lock.metadata().map_err(step("inspect", path))?;
        // The holder before us may have removed the file: then somebody else may hold a new one.
        if std::fs::metadata(path).is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev()) {
            return Ok(lock);
        }
    }
    Err(step("lock", path)(io::ErrorKind::ResourceBusy.into()))
}
