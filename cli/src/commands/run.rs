//! `hull run`.

use super::DONE;
use crate::cli::{Global, RunArgs};
use crate::engine;
use crate::error::CliError;
use crate::output;
use crate::run::{self, exit_byte};

/// Creates a container and runs it, in the foreground or in the background.
pub fn run(global: &Global, args: &RunArgs) -> Result<u8, CliError> {
    let prepared = run::prepare(global, args)?;
    let runtime = engine::runtime()?;
    if args.detach {
        let container = runtime.block_on(run::start_detached(prepared))?;
        output::line(container.id.as_str())?;
        return Ok(DONE);
    }
    let ending = runtime.block_on(run::start_attached(prepared));
    // The thread that reads stdin may wait for a key for ever: do not wait for it.
    runtime.shutdown_background();
    Ok(exit_byte(ending?.status))
}
