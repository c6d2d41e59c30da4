//! `hull version`.

use serde::Serialize;

use super::DONE;
use crate::cli::{Format, VersionArgs};
use crate::error::CliError;
use crate::output;

/// What is known about this program.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

/// Shows the version.
pub fn version(args: &VersionArgs) -> Result<u8, CliError> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    match args.format {
        Format::Json => output::json_lines(&[version])?,
        Format::Table => {
            output::line(&format!("hull {} ({}/{})", version.version, version.os, version.arch))?;
        }
    }
    Ok(DONE)
}
