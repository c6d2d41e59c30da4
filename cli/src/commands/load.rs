//! `hull load`.

use super::DONE;
use crate::cli::{Global, LoadArgs};
use crate::error::CliError;
use crate::progress::{Shown, Volume};
use crate::{output, paths};

/// Loads images and prints what they are called.
pub fn load(global: &Global, args: &LoadArgs) -> Result<u8, CliError> {
    let store = paths::store(global)?;
    let shown = Shown::new(if args.quiet { Volume::Silent } else { Volume::Normal });
    let images = store.load(&args.input, &shown)?;
    shown.finish();
    for image in images {
        if image.references.is_empty() {
            output::line(&format!("Loaded image ID: {}", image.id))?;
        }
        for reference in &image.references {
            output::line(&format!("Loaded image: {reference}"))?;
        }
    }
    Ok(DONE)
}
