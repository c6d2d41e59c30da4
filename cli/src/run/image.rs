//! From the name of an image to the image, with the user's pull policy; and to its users and groups.

use hull_images::{Image, PlainHttp, Platform, PullOptions, Reference, Store};

use crate::cli::{PullPolicy, RegistryArgs};
use crate::error::CliError;
use crate::progress;
use crate::spec::user::{Database, MAX_FILE};

/// How to pull, as the command line says.
pub fn pull_options(registry: &RegistryArgs) -> PullOptions {
    PullOptions {
        platform: registry.platform.clone().unwrap_or_default(),
        plain_http: PlainHttp::also(registry.insecure_registries.iter().cloned()),
        ..PullOptions::default()
    }
}

/// What a name on the command line refers to.
pub fn reference(name: &str) -> Result<Reference, CliError> {
    name.parse().map_err(|source| CliError::Reference { name: name.to_owned(), source })
}

/// The image for `run`: from the store, or pulled, as the policy says.
pub fn obtain(
    store: &Store,
    name: &str,
    policy: PullPolicy,
    registry: &RegistryArgs,
    volume: progress::Volume,
) -> Result<Image, CliError> {
    if policy != PullPolicy::Always
        && let Some(image) = store.find(name)?
    {
        let wanted = registry.platform.clone().unwrap_or_default();
        if registry.platform.is_none() || fits(&image, &wanted) {
            return runnable(image);
        }
    }
    if policy == PullPolicy::Never {
        return Err(CliError::ImageMissing(name.to_owned()));
    }
    let reference = reference(name)?;
    let shown = progress::Shown::new(volume);
    if policy == PullPolicy::Missing {
        shown.note(&format!("Unable to find image '{reference}' locally"));
    }
    let image = store.pull(&reference, &pull_options(registry), &shown)?;
    shown.finish();
    runnable(image)
}

fn offered(image: &Image) -> Platform {
    let config = &image.config;
    Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone(),
    }
}

fn fits(image: &Image, wanted: &Platform) -> bool {
    let offered = offered(image);
    offered.os == wanted.os && offered.architecture == wanted.architecture
}

/// A microVM runs the host's own kind of code only.
fn runnable(image: Image) -> Result<Image, CliError> {
    let host = Platform::default();
    if fits(&image, &host) {
        Ok(image)
    } else {
        Err(CliError::Platform { image: offered(&image).to_string(), host: host.to_string() })
    }
}

/// The image's `/etc/passwd` and `/etc/group`.
pub fn user_database(image: &Image) -> Result<Database, CliError> {
    let read = |path: &'static str| {
        let content =
            image.disk.read_file(path, MAX_FILE).map_err(|error| CliError::ImageFile(path, error))?;
        Ok::<_, CliError>(content.unwrap_or_default())
    };
    Ok(Database::new(read("/etc/passwd")?, read("/etc/group")?))
}
