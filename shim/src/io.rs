//! Standard streams: what a client asked for on one side, the agent's streams on the other, pumps between.
//!
//! Owns the fifos, files and loggers it opens and keeps the order "output delivered, then exit reported". Never blocks the
//! shim's thread on a client that does not read or write.

mod logger;
mod output;
mod pump;
mod stdin;
mod stream;
mod target;

use std::io;
use std::path::PathBuf;

use ttrpc::proto::Code;

pub use pump::{IoControl, Leftovers, ProcessIo, StreamTotals};
pub use stream::Streams;
pub use target::{StdioSpec, Target, file_address};

use crate::pod::VmEnd;

/// Why a standard stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A kind of address that is not served.
    #[error("standard streams to {scheme}:// are not supported: use a fifo, file:// or binary://")]
    Scheme {
        /// The address's scheme.
        scheme: String,
    },
    /// An address that cannot be right.
    #[error("{0:?} is no place for a standard stream: it must be an absolute path")]
    Address(String),
    /// A logger takes both outputs or none.
    #[error("standard output and standard error must name the same logger: {0:?} is another address")]
    Loggers(String),
    /// Neither a fifo nor a file.
    #[error("{path} is no {wanted}", path = path.display())]
    Kind {
        /// What was opened.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// The fifo or file cannot be opened.
    #[error("{path}: {source}", path = path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The program that is to take the output.
    #[error("the logger {path} cannot be used: {source}", path = path.display())]
    Logger {
        /// The executable.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The connection to the agent's stream failed.
    #[error("cannot attach {stream} to the guest: {source}")]
    Attach {
        /// Which stream.
        stream: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The agent did not accept the stream.
    #[error("the guest refused {stream}: {message}")]
    Refused {
        /// Which stream.
        stream: &'static str,
        /// Its words, bounded and printable.
        message: String,
    },
    /// The VM ended on the way.
    #[error("the VM ended: {0}")]
    VmEnded(VmEnd),
}

impl StdioError {
    /// The status code for the client.
    pub fn code(&self) -> Code {
        match self {
            Self::Scheme { .. } => Code::UNIMPLEMENTED,
            Self::Address(_) | Self::Loggers(_) | Self::Kind { .. } => Code::INVALID_ARGUMENT,
            Self::Open { .. }
            | Self::Logger { .. }
            | Self::Attach { .. }
            | Self::Refused { .. }
            | Self::VmEnded(_) => Code::UNKNOWN,
        }
    }
}
