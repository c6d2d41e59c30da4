//! Environment variables: docker's defaults, the image's, those from files and from the command line, in that order.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The search path of an image that sets none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest environment file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Why variables cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// `=VALUE`.
    #[error("{0:?} is not an environment variable: write NAME=VALUE or NAME")]
    NoName(String),
    /// The kernel ends strings at a NUL.
    #[error("the environment variable {0:?} contains a NUL character")]
    Nul(String),
    /// The file cannot be read.
    #[error("cannot read the environment file {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too long.
    #[error("the environment file {path} is longer than {MAX_FILE} bytes", path = .0.display())]
    TooLong(PathBuf),
    /// The file is not text.
    #[error("line {line} of the environment file {path} is not UTF-8", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// `A B=C` or `=C`.
    #[error("line {line} of the environment file {path}: {name:?} is not a variable name", path = path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What stands before the `=`.
        name: String,
    },
}

/// One instruction of the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `NAME=VALUE`.
    Set(String),
    /// `NAME` where Hull's own environment has no such variable: the image's is removed.
    Remove(String),
}

/// Variables in a fixed order, each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: Vec<String>,
}

impl Environment {
    /// Sets `NAME=VALUE`, in the place where the name stands already or at the end.
    pub fn set(&mut self, variable: String) {
        match self.position(name_of(&variable)) {
            Some(index) => self.variables[index] = variable,
            None => self.variables.push(variable),
        }
    }

    /// Sets `NAME=VALUE` unless the name is there.
    pub fn set_default(&mut self, variable: String) {
        if self.position(name_of(&variable)).is_none() {
            self.variables.push(variable);
        }
    }

    /// Follows the user's instruction.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Set(variable) => self.set(variable),
            Change::Remove(name) => self.variables.retain(|variable| name_of(variable) != name),
        }
    }

    /// The variables as `execve(2)` takes them.
    pub fn into_variables(self) -> Vec<String> {
        self.variables
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.variables.iter().position(|variable| name_of(variable) == name)
    }
}

impl FromIterator<String> for Environment {
    fn from_iter<I: IntoIterator<Item = String>>(variables: I) -> Self {
        let mut environment = Self::default();
        variables.into_iter().for_each(|variable| environment.set(variable));
        environment
    }
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

/// The user's instructions: the files in their order, then `-e` in its order. `host` looks into Hull's own environment.
pub fn changes(
    files: &[PathBuf],
    flags: &[String],
    host: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Change>, EnvError> {
    let mut changes = Vec::new();
    for path in files {
        let file = fs::File::open(path).map_err(|source| EnvError::Read { path: path.clone(), source })?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut bytes)
            .map_err(|source| EnvError::Read { path: path.clone(), source })?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(EnvError::TooLong(path.clone()));
        }
        changes.extend(parse_file(path, &bytes, &host)?);
    }
    for flag in flags {
        let change = match flag.split_once('=') {
            Some(("", _)) => return Err(EnvError::NoName(flag.clone())),
            None if flag.is_empty() => return Err(EnvError::NoName(flag.clone())),
            Some(_) => Change::Set(flag.clone()),
            None => match host(flag) {
                Some(value) => Change::Set(format!("{flag}={value}")),
                None => Change::Remove(flag.clone()),
            },
        };
        changes.push(change);
    }
    for change in &changes {
        let (Change::Set(text) | Change::Remove(text)) = change;
        if text.contains('\0') {
            return Err(EnvError::Nul(name_of(text).replace('\0', "")));
        }
    }
    Ok(changes)
}

/// docker's format: a variable a line, `#` in front of comments, nothing quoted; a name alone takes the host's value
/// and is skipped where the host has none.
fn parse_file(
    path: &Path,
    bytes: &[u8],
    host: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Change>, EnvError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut changes = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line_number = index + 1;
        let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line))
            .map_err(|_| EnvError::NotText { path: path.to_owned(), line: line_number })?
            .trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (line.trim_end(), None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(EnvError::Name { path: path.to_owned(), line: line_number, name: name.to_owned() });
        }
        if let Some(value) = value.map(str::to_owned).or_else(|| host(name)) {
            changes.push(Change::Set(format!("{name}={value}")));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(name: &str) -> Option<String> {
        (name == "KNOWN").then(|| "from host".to_owned())
    }

    fn parse(text: &str) -> Result<Vec<Change>, EnvError> {
        parse_file(Path::new("file"), text.as_bytes(), host)
    }

    fn set(text: &str) -> Change {
        Change::Set(text.to_owned())
    }

    #[test]
    fn files_as_docker_reads_them() {
        let text = "\u{feff}# comment\n\nA=1\n  B= two words \n\t# more\nC=\"quoted\" # not a comment\nKNOWN\nUNKNOWN\nE=\r\nF=a=b\n";
        let expected =
            ["A=1", "B= two words ", "C=\"quoted\" # not a comment", "KNOWN=from host", "E=", "F=a=b"];
        assert_eq!(parse(text).unwrap(), expected.map(set));
        assert!(matches!(parse("=x"), Err(EnvError::Name { line: 1, .. })));
        assert!(matches!(parse("A=1\nB C=x"), Err(EnvError::Name { line: 2, .. })));
        assert!(matches!(
            parse_file(Path::new("f"), b"A=\xff", host),
            Err(EnvError::NotText { line: 1, .. })
        ));
    }

    #[test]
    fn flags() {
        let flags = ["A=1", "KNOWN", "GONE", "B="].map(str::to_owned);
        let expected = [set("A=1"), set("KNOWN=from host"), Change::Remove("GONE".into()), set("B=")];
        assert_eq!(changes(&[], &flags, host).unwrap(), expected);
        assert!(changes(&[], &["=x".to_owned()], host).is_err());
        assert!(changes(&[], &[String::new()], host).is_err());
        assert!(changes(&[PathBuf::from("/nonexistent/env")], &[], host).is_err());
    }

    #[test]
    fn a_later_value_takes_the_place_of_an_earlier_one() {
        let mut environment: Environment = ["A=1", "B=2", "A=3"].map(str::to_owned).into_iter().collect();
        environment.set_default("B=9".to_owned());
        environment.set_default("C=4".to_owned());
        environment.apply(Change::Remove("A".to_owned()));
        environment.apply(set("D=5"));
        assert_eq!(environment.into_variables(), ["B=2", "C=4", "D=5"]);
    }

    proptest! {
        #[test]
        fn any_file_gives_names_without_space_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for change in parse_file(Path::new("f"), &bytes, host).unwrap_or_default() {
                let Change::Set(variable) = change else { panic!("a file removes nothing") };
                let name = name_of(&variable);
                prop_assert!(!name.is_empty() && !name.contains(char::is_whitespace));
            }
        }

        #[test]
        fn each_name_is_there_once_with_its_last_value(values in prop::collection::vec((0_u8..6, 0_u8..9), 0..40)) {
            let environment: Environment = values.iter().map(|(name, value)| format!("V{name}={value}")).collect();
            let variables = environment.into_variables();
            for name in 0..6 {
                let last = values.iter().rev().find(|(n, _)| *n == name);
                let found: Vec<_> = variables.iter().filter(|v| name_of(v) == format!("V{name}")).collect();
                prop_assert_eq!(found.len(), usize::from(last.is_some()));
                if let Some((_, value)) = last {
                    prop_assert_eq!(found[0], &format!("V{name}={value}"));
                }
            }
        }
    }
}
