//! Failures as the user sees them: one line, `hull: <what>: <why>`, and the exit status that docker gives.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use hull_images::{LoadError, PullError, ReferenceError, StoreError};
use hull_shim::client::ClientError;
use hull_shim::record::RecordError;

use crate::network::NetworkError;
use crate::output::FilterError;
use crate::spec::capabilities::UnknownCapability;
use crate::spec::env::EnvError;
use crate::spec::user::UserError;
use crate::spec::{OptionError, SpecError, VmSizeError};
use crate::state::StateError;

/// Everything that can end a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A flag that docker has and Hull has not.
    #[error("--{0} is not supported yet")]
    Unsupported(&'static str),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// `-i -t` without a terminal.
    #[error("the input device is not a terminal: leave -t out, or run this from a terminal")]
    NotATerminal,
    /// The image is not in the store and may not be pulled.
    #[error("no such image: {0}: pull it first, or leave --pull never out")]
    ImageMissing(String),
    /// The image is not in the store.
    #[error("no such image: {0}")]
    NoSuchImage(String),
    /// Neither a container nor an image.
    #[error("no such object: {0}")]
    NoSuchObject(String),
    /// More than one pod.
    #[error("more than one pod has an id that begins with {0:?}")]
    AmbiguousPod(String),
    /// The image is for another machine.
    #[error("the image is for {image}, not for this host ({host}): use --platform to choose another variant")]
    Platform {
        /// What the image says.
        image: String,
        /// What this host is.
        host: String,
    },
    /// A container was made from the image.
    #[error("image {image} is used by {state} container {container}: {remedy}")]
    ImageInUse {
        /// What shall be removed.
        image: String,
        /// Who uses it.
        container: String,
        /// `running` or `stopped`.
        state: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The container runs.
    #[error("container {0} is running: stop it first, or use --force")]
    Running(String),
    /// It did not end although it was killed.
    #[error("container {0} did not end within {1} seconds after SIGKILL")]
    Unkillable(String, u64),
    /// A container that removes itself was gone before its exit status was read.
    #[error("container {0} was removed before its exit code could be read")]
    ExitUnknown(String),
    /// The cid file.
    #[error("cannot write the container id to {path}", path = path.display())]
    CidFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the host that the container shall have.
    #[error("cannot mount {path}", path = path.display())]
    Bind {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A device of the host that the container shall have.
    #[error("cannot use the device {path}", path = path.display())]
    Device {
        /// Its node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// KVM.
    #[error("cannot run microVMs on this host: {0}; 'hull check' says more")]
    Kvm(String),
    /// A process that could not be executed, in runc's words.
    #[error("{message}")]
    NotExecuted {
        /// 126 or 127.
        status: u8,
        /// The runtime's words.
        message: String,
    },
    /// Several objects were named and some failed; each was reported when it did.
    #[error("")]
    Reported,
    /// A signal came before the container ran.
    #[error("interrupted by signal {0} before the container was started")]
    Interrupted(u8),
    /// stdin, stdout, stderr, the fifos.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A name that is no image reference.
    #[error("{name:?} is no image name")]
    Reference {
        /// What was given.
        name: String,
        /// What is wrong with it.
        source: ReferenceError,
    },
    /// The image store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pull.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The image's files for users and groups.
    #[error("cannot read {0} from the image")]
    ImageFile(&'static str, #[source] hull_images::erofs::ReadError),
    /// The containers on disk.
    #[error(transparent)]
    State(#[from] StateError),
    /// A record in a bundle.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The shim.
    #[error(transparent)]
    Shim(#[from] ClientError),
    /// The container's specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The VM's size.
    #[error(transparent)]
    VmSize(#[from] VmSizeError),
    /// The environment.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A capability.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// An option's value.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A filter of `ps`.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Metrics that should have been written.
    #[error("cannot write the metrics")]
    Metrics(#[from] std::fmt::Error),
    /// JSON that should have been written.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

impl CliError {
    /// Wraps an I/O error with what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The exit status where it does not depend on the command.
    pub fn exit_status(&self) -> Option<u8> {
        match self {
            Self::NotExecuted { status, .. } => Some(*status),
            Self::Interrupted(signal) => Some(128_u8.saturating_add(*signal)),
            // docker's too, for `exec` as for any other command.
            Self::NotRunning(_) | Self::State(StateError::NotFound(_) | StateError::Ambiguous(_)) => Some(1),
            _ => None,
        }
    }

    /// A failure to start a process: 126 and 127 if the runtime says that it cannot be executed or found.
    pub fn starting(error: ClientError) -> Self {
        let (ClientError::Status { message, .. } | ClientError::Shim { message, .. }) = &error else {
            return Self::Shim(error);
        };
        match classify(message) {
            Some(status) => Self::NotExecuted { status, message: message.clone() },
            None => Self::Shim(error),
        }
    }
}

/// docker's reading of runc's words.
fn classify(message: &str) -> Option<u8> {
    let (_, reason) = message.split_once("exec: \"")?;
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if has(&["executable file not found", "no such file or directory", "not a directory"]) {
        Some(127)
    } else if has(&["permission denied", "is a directory", "exec format error"]) {
        Some(126)
    } else {
        None
    }
}

/// The error and its causes, each said once.
pub fn describe(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            let _infallible = write!(text, ": {reason}");
        }
        cause = error.source();
    }
    // One line, whatever a registry or a guest put into it.
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect()
}

/// Writes the error to stderr.
pub fn report(error: &CliError) {
    if !matches!(error, CliError::Reported) {
        say(&describe(error));
    }
}

/// Writes a line to stderr. If that cannot be written to there is nobody to tell.
pub fn say(text: &str) {
    use io::Write as _;
    let _nobody_to_tell = writeln!(io::stderr(), "hull: {text}");
}

/// Writes clap's complaint to stderr as one line, and where help is.
pub fn report_usage(error: &clap::Error) {
    let text = error.to_string();
    let first = text.split("\n\nUsage:").next().unwrap_or(&text);
    let first = first.split("\n\nFor more information").next().unwrap_or(first);
    let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
    say(&format!("{}; see 'hull --help'", line.strip_prefix("error: ").unwrap_or(&line)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runcs_words_become_126_and_127() {
        for (message, status) in [
            ("exec: \"foo\": executable file not found in $PATH", Some(127)),
            ("OCI runtime: exec: \"/foo\": stat /foo: no such file or directory", Some(127)),
            ("exec: \"/etc/passwd\": permission denied", Some(126)),
            ("exec: \"/bin\": is a directory", Some(126)),
            ("open /boot/vmlinux: no such file or directory", None),
            ("/dev/kvm: permission denied", None),
        ] {
            assert_eq!(classify(message), status, "{message}");
        }
    }

    #[test]
    fn causes_are_said_once_and_in_one_line() {
        let inner = io::Error::other("disk\n\x1b[31m full");
        let error = CliError::Io { what: "cannot write x".into(), source: inner };
        assert_eq!(describe(&error), "cannot write x: disk [31m full");
        let repeated = CliError::CidFile { path: "/x".into(), source: io::Error::other("/x") };
        assert_eq!(describe(&repeated), "cannot write the container id to /x");
    }
}
