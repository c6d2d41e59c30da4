//! What commands print on stdout: tables, JSON, sizes and ages, in docker's shapes.

use std::io::{self, Write};

use serde::Serialize;

pub mod age;
mod filter;
mod table;
pub mod time;

pub use age::{human_age, human_size};
pub use filter::{Filter, FilterError, Subject};
pub use table::Table;

use crate::error::CliError;

/// Writes `text` to stdout as it is.
pub fn print(text: &str) -> Result<(), CliError> {
    finish(io::stdout().write_all(text.as_bytes()))
}

/// Writes one line to stdout.
pub fn line(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

/// Writes one JSON object a line.
pub fn json_lines<T: Serialize>(items: &[T]) -> Result<(), CliError> {
    for item in items {
        line(&serde_json::to_string(item)?)?;
    }
    Ok(())
}

/// Writes JSON for people.
pub fn json_pretty<T: Serialize>(value: &T) -> Result<(), CliError> {
    line(&serde_json::to_string_pretty(value)?)
}

/// A reader that has gone away (`hull ps | head -1`) wants no more and is no error.
fn finish(written: io::Result<()>) -> Result<(), CliError> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(CliError::io("cannot write to stdout")),
    }
}
