//! Where a client wants standard streams: the addresses in Create and Exec.

use std::path::PathBuf;

use super::StdioError;

/// One end of a standard stream on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/dev/null`.
    Null,
    /// A fifo that the client made.
    Fifo(PathBuf),
    /// A file to append to.
    File(PathBuf),
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
            Some(("file", path)) => Self::File(PathBuf::from(path)),
            Some((scheme, _)) => return Err(StdioError::Scheme { scheme: scheme.to_owned() }),
        };
        match &target {
            Self::Fifo(path) | Self::File(path) if !path.is_absolute() => {
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

impl StdioSpec {
    /// Parses the addresses of a Create or Exec request.
    pub fn parse(stdin: &str, stdout: &str, stderr: &str, terminal: bool) -> Result<Self, StdioError> {
        let addresses = [stdin, stdout, stderr].map(str::to_owned);
        let [stdin, stdout, stderr] = [Target::parse(stdin)?, Target::parse(stdout)?, Target::parse(stderr)?];
        if matches!(stdin, Target::File(_)) {
            return Err(StdioError::Address(addresses[0].clone()));
        }
        if terminal && stderr.is_wanted() {
            return Err(StdioError::TerminalStderr);
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
    fn what_is_not_served_is_said() {
        let error = StdioSpec::parse("", "binary:///usr/bin/logger?x=y", "", false).unwrap_err();
        assert!(error.to_string().contains("binary://"), "{error}");
        assert_eq!(error.code(), ttrpc::proto::Code::UNIMPLEMENTED);
        for (stdin, stdout, stderr, terminal) in [
            ("relative", "", "", false),
            ("", "file://x", "", false),
            ("", "/o", "/e", true),
            ("file:///i", "", "", false),
        ] {
            assert!(StdioSpec::parse(stdin, stdout, stderr, terminal).is_err(), "{stdin} {stdout} {stderr}");
        }
    }
}
