//! The agent's OCI command line: runc's words, flags and exit codes in front of the container code that the API uses.
//!
//! For suites that test OCI runtimes, and for a look at one container without a VM. Nothing stays behind but the
//! container itself: its init, which holds its own start gate, its cgroup, and a directory below `--root`.
//!
//! | module | what it is for |
//! |---|---|
//! | `arguments` | words to a typed command |
//! | `store` | what is remembered of a container, and what state the kernel says it is in |
//! | `bundle` | a bundle's config.json, with the host's parts taken out |
//! | `create`, `enter`, `control` | the commands |
//! | `hooks` | the hooks that belong to the runtime's side |
//! | `foreground` | waiting for a process as its caller does |

mod arguments;
mod bundle;
mod control;
mod create;
mod enter;
mod foreground;
mod hooks;
mod shield;
mod store;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use arguments::{Command, Invocation};

use crate::cgroup::CgroupError;
use crate::environment::EnvironmentError;
use crate::helper::HelperError;
use crate::launch::LaunchError;
use crate::logger::{self, Destination};
use crate::spec::SpecError;

/// What exit code a command that failed before its process ran ends with; `exec` has a code of its own, so that it can be told
/// from the process's.
const FAILED: u8 = 1;
const EXEC_FAILED: u8 = 255;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum OciError {
    #[error("{0}")]
    Usage(String),
    #[error("container with given ID already exists")]
    Exists,
    #[error("container does not exist")]
    NotFound,
    #[error("invalid container ID format: {0:?}")]
    Id(String),
    #[error("{0}")]
    State(String),
    #[error("{}: {reason}", path.display())]
    Bundle { path: PathBuf, reason: String },
    #[error("cannot {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("no cgroup v2 hierarchy is mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified")]
    NoCgroups,
    #[error("{kind} hook {path:?} {reason}")]
    Hook { kind: &'static str, path: String, reason: String },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Seccomp(#[from] hull_seccomp::Error),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    Helper(#[from] HelperError),
    #[error(transparent)]
    Container(#[from] crate::error::Error),
    #[error("unable to start container process: {0}")]
    Launch(#[from] LaunchError),
}

impl OciError {
    fn file<E: Into<std::io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::File { what, path: path.to_owned(), source: source.into() }
    }

    fn system<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

/// Whether `word` begins a command of this command line.
pub fn is_command(word: &str) -> bool {
    word.starts_with('-') || arguments::COMMANDS.contains(&word)
}

/// Does what the words say. The exit code is runc's.
pub fn main(words: Vec<String>) -> ExitCode {
    logger::start(Destination::Stderr);
    log::set_max_level(log::LevelFilter::Error);
    let invocation = match Invocation::parse(words) {
        Ok(invocation) => invocation,
        Err(error) => {
            say(&error);
            return ExitCode::from(FAILED);
        }
    };
    let failed = match invocation.command {
        Command::Exec(_) => EXEC_FAILED,
        _ => FAILED,
    };
    let shielded = match invocation.command {
        Command::Create(_) | Command::Run(_) | Command::Exec(_) => shield::raise(),
        _ => Ok(()),
    };
    let outcome = shielded.and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(OciError::system("start"))?.block_on(perform(&invocation))
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&error);
            if let Some(log) = &invocation.log {
                record(log, &error);
            }
            ExitCode::from(failed)
        }
    }
}

async fn perform(invocation: &Invocation) -> Result<u8, OciError> {
    let store = store::Store::new(&invocation.root);
    match &invocation.command {
        Command::Create(options) => create::create(&store, options).await?,
        Command::Run(options) => return create::run(&store, options).await,
        Command::Start { id } => control::start(&store, id).await?,
        Command::State { id } => control::state(&store, id)?,
        Command::Kill { id, signal, target } => control::kill(&store, id, *signal, *target)?,
        Command::Delete { id, running } => control::delete(&store, id, *running).await?,
        Command::Exec(options) => return enter::exec(&store, options).await,
        Command::List { shape } => control::list(&store, *shape)?,
        Command::Pause { id } => control::pause(&store, id).await?,
        Command::Resume { id } => control::resume(&store, id)?,
        Command::Version => print(&format!(
            "hull-agent version {}\nspec: {}\n",
            env!("CARGO_PKG_VERSION"),
            store::OCI_VERSION
        ))?,
        Command::Help => print(arguments::USAGE)?,
    }
    Ok(0)
}

fn print(text: &str) -> Result<(), OciError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(OciError::system("write to standard output"))
}

fn say(error: &OciError) {
    eprintln!("hull-agent: {error}");
}

/// A line as containerd's client of runc reads it.
fn record(log: &Path, error: &OciError) {
    let line = serde_json::json!({"level": "error", "msg": error.to_string(), "time": store::timestamp()});
    let written = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("hull-agent: cannot write to {}: {error}", log.display());
    }
}
