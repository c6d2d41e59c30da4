//! Where a client wants standard streams: the addresses in Create and Exec.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::StdioError;
use super::logger::{LoggerCommand, ReadySign};

/// What of a path means itself in an address.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The address of a file to append to, for Create and Exec.
pub fn file_address(path: &Path) -> String {
    format!("file://{}", percent_encode(path.as_os_str().as_bytes(), PATH))
}

/// One end of a standard stream on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/dev/null`.
    Null,
    /// A fifo that the client made.
    Fifo(PathBuf),
    /// A file to append to.
    File(PathBuf),
    /// A program that is started for the process and reads its output.
    Logger(LoggerCommand),
}

/// The standard streams of a process, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StdioSpec {
    /// Input, never a file.
    pub stdin: Target,
    /// Output; with a terminal all of it.
    pub stdout: Target,
    /// Errors; null with a terminal.
    pub stderr: Target,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// The addresses as the client wrote them, stdin, stdout, stderr: State repeats them.
    pub addresses: [String; 3],
}

impl Target {
    fn parse(address: &str) -> Result<Self, StdioError> {
        if address.is_empty() {
            return Ok(Self::Null);
        }
        let target = match address.split_once("://") {
            None => Self::Fifo(PathBuf::from(address)),
            Some(("fifo", path)) => Self::Fifo(PathBuf::from(path)),
            // A query is allowed and means nothing, as with containerd's own shim.
            Some(("file", rest)) => Self::File(path(rest)),
            Some(("binary", rest)) => Self::Logger(logger(rest, ReadySign::ByteOrEnd)),
            Some(("binary-v2", rest)) => Self::Logger(logger(rest, ReadySign::Byte)),
            Some((scheme, _)) => return Err(StdioError::Scheme { scheme: scheme.to_owned() }),
        };
        match &target {
            Self::Fifo(path) | Self::File(path) | Self::Logger(LoggerCommand { program: path, .. })
                if !path.is_absolute() =>
            {
                Err(StdioError::Address(address.to_owned()))
            }
            _ => Ok(target),
        }
    }

    /// Whether there is anything behind it.
    pub fn is_wanted(&self) -> bool {
        *self != Self::Null
    }
}

/// The path of a URL whose scheme was taken off.
fn path(rest: &str) -> PathBuf {
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    PathBuf::from(OsString::from_vec(percent_decode_str(&rest[..end]).collect()))
}

/// Each pair of the query is two arguments, in the order in which they are written.
fn logger(rest: &str, sign: ReadySign) -> LoggerCommand {
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let decode = |word: &str| percent_decode_str(&word.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let args = pairs.flat_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        [decode(key), decode(value)]
    });
    LoggerCommand { program: path(rest), args: args.collect(), sign }
}

impl StdioSpec {
    /// Parses the addresses of a Create or Exec request.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self, StdioError> {
        let addresses = [stdin, stdout, stderr].map(str::to_owned);
        // A terminal's errors are part of its output. Clients name an address for them all the same, the CRI plugin one at which
        // there is nothing.
        let stderr = if terminal { "" } else { stderr };
        let [stdin, stdout, stderr] = [Target::parse(stdin)?, Target::parse(stdout)?, Target::parse(stderr)?];
        if matches!(stdin, Target::File(_) | Target::Logger(_)) {
            return Err(StdioError::Address(addresses[0].clone()));
        }
        let logs = [&stdout, &stderr].iter().any(|target| matches!(target, Target::Logger(_)));
        if logs && stderr.is_wanted() && stderr != stdout {
            return Err(StdioError::Loggers(addresses[2].clone()));
        }
        Ok(Self { stdin, stdout, stderr, terminal, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_scheme_is_a_fifo() {
        let spec = StdioSpec::parse("/a/in", "file:///var/log/x", "", false).unwrap();
        assert_eq!(spec.stdin, Target::Fifo("/a/in".into()));
        assert_eq!(spec.stdout, Target::File("/var/log/x".into()));
        assert_eq!(spec.stderr, Target::Null);
    }

    #[test]
    fn a_logger_is_a_program_with_its_query_for_arguments() {
        let address = "binary:///opt/my%20logger?--log-driver=awslogs&a=%26+b&flag#x";
        let command = |sign| LoggerCommand {
            program: "/opt/my logger".into(),
            args: ["--log-driver", "awslogs", "a", "& b", "flag", ""].map(String::from).into(),
            sign,
        };
        let spec = StdioSpec::parse("", address, address, false).unwrap();
        assert_eq!(spec.stdout, Target::Logger(command(ReadySign::ByteOrEnd)));
        assert_eq!(spec.stderr, spec.stdout);
        let later = address.replace("binary", "binary-v2");
        let spec = StdioSpec::parse("", &later, &later, true).unwrap();
        assert_eq!((spec.stdout, spec.stderr), (Target::Logger(command(ReadySign::Byte)), Target::Null));
    }

    #[test]
    fn a_terminal_has_no_separate_errors_whatever_the_client_names() {
        for address in ["/e", "/o", ""] {
            let spec = StdioSpec::parse("/i", "/o", address, true).unwrap();
            assert_eq!((&spec.stderr, spec.addresses[2].as_str()), (&Target::Null, address));
        }
    }

    #[test]
    fn the_address_of_a_file_is_its_path_again() {
        for path in ["/a b/c?d#e%20f", "/log/ü.log"] {
            let spec = StdioSpec::parse("", &file_address(Path::new(path)), "", false).unwrap();
            assert_eq!(spec.stdout, Target::File(path.into()));
        }
        let spec = StdioSpec::parse("", "file:///var/log/x?maxsize=5", "", false).unwrap();
        assert_eq!(spec.stdout, Target::File("/var/log/x".into()));
    }

    #[test]
    fn what_is_not_served_is_said() {
        let error = StdioSpec::parse("", "npipe:///x", "", false).unwrap_err();
        assert!(error.to_string().contains("npipe://"), "{error}");
        assert_eq!(error.code(), ttrpc::proto::Code::UNIMPLEMENTED);
        for (stdin, stdout, stderr) in [
            ("relative", "", ""),
            ("", "file://x", ""),
            ("file:///i", "", ""),
            ("binary:///i", "", ""),
            ("", "binary://logger", ""),
            ("", "", "binary:///l"),
            ("", "binary:///l", "binary:///m"),
            ("", "/fifo", "binary:///l"),
        ] {
            assert!(StdioSpec::parse(stdin, stdout, stderr, false).is_err(), "{stdin} {stdout} {stderr}");
        }
    }
}
