//! The one line that says what a connection to [`STREAM_PORT`](super::STREAM_PORT) is for.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::ID_MAX;

/// Whether `id` may name a container or an exec: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most [`ID_MAX`] bytes.
pub fn is_valid_id(id: &str) -> bool {
    let mut bytes = id.bytes();
    id.len() <= ID_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// The line of [`Opening::Resolver`].
const RESOLVER: &str = "resolver";

/// One of a process's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Bytes from the shim to the process.
    Stdin,
    /// Bytes from the process to the shim; with a terminal, all of its output.
    Stdout,
    /// Bytes from the process to the shim; never used with a terminal.
    Stderr,
}

impl StreamKind {
    fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What a connection is for: a standard stream, by its [`StreamHeader`]; `port <number>`, a TCP port that a program of the
/// pod listens on; or `resolver`, the questions for the pod's name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A standard stream.
    Stream(StreamHeader),
    /// A port, by the guest's loopback: bytes go both ways, each until its half-close.
    Port(NonZeroU16),
    /// A name server on the host's side of the pod's network: see [`resolver`](super::resolver).
    Resolver,
}

/// Names a stream: `<container> <exec or -> <stdin|stdout|stderr>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    container: String,
    exec: Option<String>,
    kind: StreamKind,
}

/// Why a line does not name a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamHeaderError {
    /// Not three words.
    #[error("a stream header has three words: container, exec or -, stream")]
    Shape,
    /// An id with characters or a length that no id has.
    #[error("not an id: {0:?}")]
    Id(String),
    /// Neither stdin, stdout nor stderr.
    #[error("no such stream: {0:?}")]
    Kind(String),
    /// Not a number from 1 to 65535.
    #[error("no such port: {0:?}")]
    Port(String),
}

impl StreamHeader {
    /// A stream of the container's init, or of an exec in it.
    pub fn new(container: &str, exec: Option<&str>, kind: StreamKind) -> Result<Self, StreamHeaderError> {
        for id in std::iter::once(container).chain(exec) {
            if !is_valid_id(id) {
                return Err(StreamHeaderError::Id(id.to_owned()));
            }
        }
        Ok(Self { container: container.to_owned(), exec: exec.map(str::to_owned), kind })
    }

    /// The container's id.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The exec's id, `None` for the init process.
    pub fn exec(&self) -> Option<&str> {
        self.exec.as_deref()
    }

    /// Which stream.
    pub fn kind(&self) -> StreamKind {
        self.kind
    }
}

impl fmt::Display for StreamHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.container, self.exec.as_deref().unwrap_or("-"), self.kind.name())
    }
}

impl FromStr for StreamHeader {
    type Err = StreamHeaderError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = line.split(' ').collect();
        let [container, exec, kind] = words[..] else {
            return Err(StreamHeaderError::Shape);
        };
        let kind = match kind {
            "stdin" => StreamKind::Stdin,
            "stdout" => StreamKind::Stdout,
            "stderr" => StreamKind::Stderr,
            other => return Err(StreamHeaderError::Kind(other.to_owned())),
        };
        Self::new(container, Some(exec).filter(|exec| *exec != "-"), kind)
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(header) => header.fmt(f),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Resolver => f.write_str(RESOLVER),
        }
    }
}

impl FromStr for Opening {
    type Err = StreamHeaderError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        match line.split_once(' ') {
            None if line == RESOLVER => Ok(Self::Resolver),
            // A stream of a container of this name has a word more.
            Some(("port", port)) if !port.contains(' ') => {
                let wrong = |_| StreamHeaderError::Port(port.to_owned());
                port.parse().map(Self::Port).map_err(wrong)
            }
            _ => line.parse().map(Self::Stream),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::agent::STREAM_LINE_MAX;

    #[test]
    fn ids_are_bounded_words() {
        assert!(is_valid_id("a"));
        assert!(is_valid_id("web-1.2_x"));
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", &"a".repeat(ID_MAX + 1)] {
            assert!(!is_valid_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_header_says_what_is_wrong_with_it() {
        assert_eq!("a - pipe".parse::<StreamHeader>(), Err(StreamHeaderError::Kind("pipe".into())));
        assert_eq!("a stdin".parse::<StreamHeader>(), Err(StreamHeaderError::Shape));
        assert_eq!("a  stdin".parse::<StreamHeader>(), Err(StreamHeaderError::Id(String::new())));
        assert_eq!("a - stdin x".parse::<StreamHeader>(), Err(StreamHeaderError::Shape));
    }

    #[test]
    fn a_port_is_a_number_and_no_container() {
        let port = |number| Ok(Opening::Port(NonZeroU16::new(number).unwrap()));
        assert_eq!("port 1".parse(), port(1));
        assert_eq!("port 65535".parse(), port(65535));
        for bad in ["0", "65536", "-1", "", "http"] {
            let error = StreamHeaderError::Port(bad.to_owned());
            assert_eq!(format!("port {bad}").parse::<Opening>(), Err(error));
        }
        let header = StreamHeader::new("port", None, StreamKind::Stdin).unwrap();
        assert_eq!("port - stdin".parse(), Ok(Opening::Stream(header)));
        assert_eq!(Opening::Resolver.to_string().parse(), Ok(Opening::Resolver));
        assert!("resolver x".parse::<Opening>().is_err());
    }

    proptest! {
        #[test]
        fn a_header_survives_its_line(
            container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}",
            exec in proptest::option::of("[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"),
            kind in prop_oneof![Just(StreamKind::Stdin), Just(StreamKind::Stdout), Just(StreamKind::Stderr)],
        ) {
            let header = StreamHeader::new(&container, exec.as_deref(), kind).unwrap();
            let line = header.to_string();
            prop_assert!(line.len() < STREAM_LINE_MAX);
            prop_assert_eq!(line.parse::<StreamHeader>().unwrap(), header);
        }

        #[test]
        fn no_line_panics(line in "(port )?.*") {
            if let Ok(header) = line.parse::<StreamHeader>() {
                prop_assert_eq!(header.to_string(), line);
            }
        }

        #[test]
        fn an_opening_survives_its_line(port in 1..=u16::MAX) {
            let opening = Opening::Port(NonZeroU16::new(port).unwrap());
            prop_assert_eq!(opening.to_string().parse::<Opening>().unwrap(), opening);
        }
    }
}
