//! `hull kill`.

use super::{ending, for_each};
use crate::cli::{Global, KillArgs};
use crate::engine;
use crate::error::CliError;
use crate::{output, paths, spec};

/// Sends a signal to containers and prints each name as it was given.
pub fn kill(global: &Global, args: &KillArgs) -> Result<u8, CliError> {
    let signal = spec::signal(&args.signal)?;
    let state = paths::state(global)?;
    let runtime = engine::runtime()?;
    for_each(&args.containers, |name| {
        let container = state.find(name)?;
        runtime.block_on(ending::send(&container, signal))?;
        output::line(name)
    })
}
