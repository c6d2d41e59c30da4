//! Opens the two folders that Hull keeps: images and containers.

use hull_images::Store;

use crate::cli::Global;
use crate::error::CliError;
use crate::state::State;

/// The image store.
pub fn store(global: &Global) -> Result<Store, CliError> {
    Ok(Store::open(&global.data_dir)?)
}

/// The containers.
pub fn state(global: &Global) -> Result<State, CliError> {
    Ok(State::open(&global.state_dir)?)
}
