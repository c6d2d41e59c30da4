//! `hull stop`.

use std::time::Duration;

use super::{ending, for_each};
use crate::cli::{Global, StopArgs};
use crate::engine;
use crate::error::CliError;
use crate::{output, paths, spec};

/// Seconds of grace where neither the user nor the container says otherwise.
const GRACE: u32 = 10;

/// Stops containers one after the other and prints each name as it was given.
pub fn stop(global: &Global, args: &StopArgs) -> Result<u8, CliError> {
    let signal = args.signal.as_deref().map(spec::signal).transpose()?;
    let state = paths::state(global)?;
    let runtime = engine::runtime()?;
    for_each(&args.containers, |name| {
        let container = state.find(name)?;
        let grace = args.timeout.or(container.record.stop_timeout).unwrap_or(GRACE);
        let signal = signal.unwrap_or(container.record.stop_signal);
        runtime.block_on(ending::end(&container, signal, Duration::from_secs(u64::from(grace))))?;
        output::line(name)
    })
}
