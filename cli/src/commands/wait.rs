//! `hull wait`.

use super::{ending, for_each};
use crate::cli::{ContainersArgs, Global};
use crate::engine;
use crate::error::CliError;
use crate::{output, paths};

/// Waits for containers one after the other and prints their exit codes.
pub fn wait(global: &Global, args: &ContainersArgs) -> Result<u8, CliError> {
    let state = paths::state(global)?;
    let runtime = engine::runtime()?;
    for_each(&args.containers, |name| {
        let container = state.find(name)?;
        let exit = runtime.block_on(ending::wait(&container))?;
        let exit = exit.ok_or_else(|| CliError::ExitUnknown(container.record.name.clone()))?;
        output::line(&exit.exit_code.to_string())
    })
}
