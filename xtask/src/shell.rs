//! Running other programs, with errors that name them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program cannot be started.
    #[error("cannot run {program}: {source}")]
    Spawn { program: String, source: std::io::Error },
    /// The program ran and failed.
    #[error("{program} failed ({status})")]
    Failed { program: String, status: ExitStatus },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// Something else that a person has to mend.
    #[error("{0}")]
    Other(String),
}

/// Attaches the path to an I/O error.
pub fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::File { path: path.to_owned(), source })
}

/// The repository's root: this crate is built from within it.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The cargo that runs us, or the one in `PATH`.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Says what happens next, on stderr.
pub fn say(what: &str) {
    eprintln!("==> {what}");
}

/// Runs to the end and fails unless it exits with 0.
pub fn run(command: &mut Command) -> Result<(), Error> {
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(Error::Failed { program: name(command), status }) }
}

/// Runs to the end.
pub fn status(command: &mut Command) -> Result<ExitStatus, Error> {
    command.status().map_err(|source| Error::Spawn { program: name(command), source })
}

/// Runs to the end and returns its standard output; fails unless it exits with 0.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|source| Error::Spawn { program: name(command), source })?;
    if !output.status.success() {
        return Err(Error::Failed { program: name(command), status: output.status });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
