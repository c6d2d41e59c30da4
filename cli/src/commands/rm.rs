//! `hull rm`.

use std::time::Duration;

use super::{ending, for_each};
use crate::cli::{Global, RmArgs};
use crate::engine;
use crate::error::CliError;
use crate::state::{self, StateError};
use crate::{output, paths};

/// Removes containers and prints each name as it was given.
pub fn rm(global: &Global, args: &RmArgs) -> Result<u8, CliError> {
    let state = paths::state(global)?;
    let runtime = engine::runtime()?;
    for_each(&args.containers, |name| {
        let container = match state.find(name) {
            Err(StateError::NotFound(_)) if args.force => return Ok(()),
            found => found?,
        };
        let alive = runtime.block_on(state::observe(&container))?.is_some_and(|status| status.is_alive());
        if alive && !args.force {
            return Err(CliError::Running(container.record.name));
        }
        runtime.block_on(ending::end(&container, ending::SIGKILL, Duration::from_secs(30)))?;
        // A client in the foreground, or the shim of a `-d --rm` container, may remove it at the same time: both are right.
        container.release_network();
        state.remove(&container)?;
        output::line(name)
    })
}
