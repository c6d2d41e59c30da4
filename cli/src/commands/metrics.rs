//! `hull metrics`.

use super::DONE;
use crate::cli::{Global, MetricsArgs};
use crate::error::CliError;
use crate::{engine, metrics, output};

/// Prints what the pods of this host measure, or serves it.
pub fn metrics(global: &Global, args: &MetricsArgs) -> Result<u8, CliError> {
    let runtime = engine::runtime()?;
    match args.listen {
        Some(address) => {
            let ready = |address| output::line(&format!("http://{address}/metrics"));
            runtime.block_on(metrics::listen(address, &global.state_dir, ready))?;
        }
        None => output::print(&runtime.block_on(metrics::page(&global.state_dir))?)?,
    }
    Ok(DONE)
}
