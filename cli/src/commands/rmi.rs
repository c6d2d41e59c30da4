//! `hull rmi`.

use hull_images::{Image, Store, StoreError};

use super::for_each;
use crate::cli::{Global, RmiArgs};
use crate::engine;
use crate::error::CliError;
use crate::state::{self, State};
use crate::{output, paths};

/// Removes images, and prints what became of them as docker does.
pub fn rmi(global: &Global, args: &RmiArgs) -> Result<u8, CliError> {
    let store = paths::store(global)?;
    let containers = paths::state(global)?;
    for_each(&args.images, |name| {
        let Some(image) = store.find(name)? else {
            return if args.force { Ok(()) } else { Err(CliError::NoSuchImage(name.to_owned())) };
        };
        let by_id = is_id_of(name, &image);
        if by_id || image.references.len() <= 1 {
            check_use(&containers, &image, name, args.force)?;
        }
        remove(&store, &image, name, by_id && args.force)
    })
}

/// A prefix of an id removes the image, a name only the name.
fn is_id_of(name: &str, image: &Image) -> bool {
    let id = image.id.to_string();
    id.starts_with(name) || id.split_once(':').is_some_and(|(_, hex)| hex.starts_with(name))
}

/// docker's rule: a running container keeps its image, a stopped one unless forced.
fn check_use(containers: &State, image: &Image, name: &str, force: bool) -> Result<(), CliError> {
    let runtime = engine::runtime()?;
    for container in
        containers.containers()?.into_iter().filter(|c| c.record.image_id == image.id.to_string())
    {
        let alive = runtime.block_on(state::observe(&container))?.is_some_and(|status| status.is_alive());
        let (state, remedy) = match (alive, force) {
            (true, _) => ("running", "stop and remove it first"),
            (false, false) => ("stopped", "remove it first, or use --force"),
            (false, true) => continue,
        };
        return Err(CliError::ImageInUse {
            image: name.to_owned(),
            container: container.id.short().to_owned(),
            state,
            remedy,
        });
    }
    Ok(())
}

fn remove(store: &Store, image: &Image, name: &str, all_names: bool) -> Result<(), CliError> {
    let removed = if all_names { store.remove_image(image) } else { store.remove(name) };
    let removed = match removed {
        Err(StoreError::NoSuchImage { .. }) => return Err(CliError::NoSuchImage(name.to_owned())),
        other => other?,
    };
    for reference in &removed.untagged {
        output::line(&format!("Untagged: {reference}"))?;
    }
    if let Some(id) = &removed.deleted {
        output::line(&format!("Deleted: {id}"))?;
    }
    Ok(())
}
