//! `hull pull`.

use super::DONE;
use crate::cli::{Global, PullArgs};
use crate::error::CliError;
use crate::progress::{Shown, Volume};
use crate::run::image::reference;
use crate::run::pull_options;
use crate::{output, paths};

/// Downloads an image; prints its whole name.
pub fn pull(global: &Global, args: &PullArgs) -> Result<u8, CliError> {
    let reference = reference(&args.image)?;
    let store = paths::store(global)?;
    let shown = Shown::new(if args.quiet { Volume::Silent } else { Volume::Normal });
    let image = store.pull(&reference, &pull_options(&args.registry), &shown)?;
    shown.finish();
    if let Some(digest) = image.digests.iter().find_map(|name| name.digest()) {
        shown.note(&format!("Digest: {digest}"));
    }
    output::line(&reference.canonical())?;
    Ok(DONE)
}
