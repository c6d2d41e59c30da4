//! Pulling: from a reference to an image in the store.

use std::io::Read;
use std::num::NonZeroUsize;

use crate::credentials::{CredentialError, CredentialFiles, Credentials};
use crate::digest::Digest;
use crate::image::Image;
use crate::install::{InstallError, Installer, LayerError, LayerSource, LayerSpec};
use crate::layer::Limits;
use crate::manifest::{self, Config, Descriptor, Document, MAX_CONFIG, Manifest, ManifestError};
use crate::platform::Platform;
use crate::progress::{LayerInfo, Progress, ProgressEvent};
use crate::reference::Reference;
use crate::registry::{Cancel, Client, ClientOptions, Notify, PlainHttp, RegistryError, RetryPolicy};
use crate::store::{Store, StoreError, TagRecord, write_tag};

#[cfg(test)]
mod tests;

/// Deepest index within an index.
const MAX_NESTING: usize = 3;

/// How to pull. The default is what `docker pull` does.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which variant of the image; the host's own by default.
    pub platform: Platform,
    /// Who to be; `None` looks into `credential_files`.
    pub credentials: Option<Credentials>,
    /// Where credentials are looked for.
    pub credential_files: CredentialFiles,
    /// Which registries may be spoken to without TLS.
    pub plain_http: PlainHttp,
    /// How often failed requests are repeated.
    pub retry: RetryPolicy,
    /// Layers in transfer at a time.
    pub parallel: NonZeroUsize,
    /// What one layer may cost.
    pub limits: Limits,
}

impl Default for PullOptions {
    fn default() -> Self {
        const PARALLEL: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
        Self {
            platform: Platform::default(),
            credentials: None,
            credential_files: CredentialFiles::of_this_user(),
            plain_http: PlainHttp::loopback_only(),
            retry: RetryPolicy::default(),
            parallel: PARALLEL,
            limits: Limits::default(),
        }
    }
}

/// A pull failed. `Display` is one sentence that stands alone.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry refused, failed or lied.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What the registry has is no usable image.
    #[error("cannot pull {reference}: {source}")]
    Manifest {
        /// What was asked for.
        reference: Box<Reference>,
        /// Why not.
        source: Box<ManifestError>,
    },
    /// A layer cannot be had or used, or the store failed.
    #[error("cannot pull {reference}: {source}")]
    Install {
        /// What was asked for.
        reference: Box<Reference>,
        /// Why not.
        source: Box<InstallError>,
    },
    /// Stored credentials cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image as the registry describes it, everything verified and in agreement.
struct Resolved {
    /// What the reference names: the manifest or the index above it.
    named: Digest,
    digest: Digest,
    bytes: Vec<u8>,
    manifest: Manifest,
}

impl Store {
    /// Pulls `reference` and returns the image. What the store has already is not transferred again.
    ///
    /// After a failure of the network the layers that were complete stay, and the next pull goes on from there until garbage is
    /// collected; after any other failure nothing stays.
    ///
    /// # Errors
    /// See [`PullError`].
    pub fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        let result = {
            let _lock = self.lock_shared()?;
            self.pull_locked(reference, options, progress)
        };
        let useful = match &result {
            Ok(_) => true,
            Err(PullError::Registry(error)) => error.is_transient(),
            Err(PullError::Install { source, .. }) => source.is_transient(),
            Err(_) => false,
        };
        if !useful || self.layout().has_leftovers()? {
            // The pull's own result matters more than that the space could not be given back.
            if let Err(error) = self.collect() {
                log::warn!("cleaning up: {error}");
            }
        }
        result
    }

    fn pull_locked(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        progress.event(ProgressEvent::Resolving { reference: reference.clone() });
        let cancel = Cancel::default();
        let credentials = match &options.credentials {
            Some(given) => Some(given.clone()),
            None => options.credential_files.find(reference)?,
        };
        let client_options =
            ClientOptions { credentials, plain_http: options.plain_http.clone(), retry: options.retry };
        let client = Client::new(reference, client_options, cancel.clone())?;
        let wrong =
            |source| PullError::Manifest { reference: Box::new(reference.clone()), source: Box::new(source) };
        let resolved = resolve(&client, reference, &options.platform, progress)?;
        let config_bytes = fetch_config(&client, &resolved.manifest.config, progress)?;
        let config = Config::parse(&config_bytes).map_err(wrong)?;
        config.check_layers(&resolved.manifest.layers).map_err(wrong)?;
        config.check_platform(&options.platform).map_err(wrong)?;

        let layers = layer_specs(&resolved.manifest, &config);
        let infos = layers.iter().map(|l| LayerInfo { digest: l.name().clone(), size: l.size }).collect();
        progress.event(ProgressEvent::Resolved { digest: resolved.named.clone(), layers: infos });
        let source = RegistryLayers::new(&client, &layers, progress);
        let installer = Installer {
            layout: self.layout(),
            limits: &options.limits,
            parallel: options.parallel,
            progress,
            cancel: &cancel,
        };
        let failed =
            |source| PullError::Install { reference: Box::new(reference.clone()), source: Box::new(source) };
        installer.install(&layers, &source).map_err(failed)?;

        let record = TagRecord {
            reference: reference.without_redundant_tag(),
            index: Some(resolved.named).filter(|named| *named != resolved.digest),
            manifest: resolved.digest,
            from_registry: true,
        };
        let image = self.record(&record, &resolved.bytes, &resolved.manifest.config.digest, &config_bytes)?;
        progress.event(ProgressEvent::Done { id: image.id.clone() });
        Ok(image)
    }

    /// Writes the documents of an image whose layers and disk are there, and at last its reference. The caller holds the lock.
    pub(crate) fn record(
        &self,
        record: &TagRecord,
        manifest: &[u8],
        config_digest: &Digest,
        config: &[u8],
    ) -> Result<Image, StoreError> {
        self.layout().write(&self.layout().blob(config_digest), config)?;
        self.layout().write(&self.layout().blob(&record.manifest), manifest)?;
        write_tag(self.layout(), record)?;
        self.image_named(record)
    }
}

/// One spec per layer of a manifest that agrees with its configuration.
pub(crate) fn layer_specs(manifest: &Manifest, config: &Config) -> Vec<LayerSpec> {
    let pairs = manifest.layers.iter().zip(&config.diff_ids);
    pairs
        .map(|(layer, diff_id)| LayerSpec {
            blob: Some(layer.digest.clone()),
            size: layer.size,
            diff_id: diff_id.clone(),
        })
        .collect()
}

/// Follows indexes to the manifest for `platform`.
fn resolve(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
    progress: &dyn Progress,
) -> Result<Resolved, PullError> {
    let notify = |error: &RegistryError| {
        progress.event(ProgressEvent::Retrying { layer: None, reason: error.to_string() });
    };
    let wrong =
        |source| PullError::Manifest { reference: Box::new(reference.clone()), source: Box::new(source) };
    let mut which = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    let mut named = None;
    for _ in 0..=MAX_NESTING {
        let fetched = client.manifest(&which, &notify)?;
        let named = named.get_or_insert_with(|| fetched.digest.clone());
        match manifest::parse(&fetched.bytes, fetched.media_type.as_deref()).map_err(wrong)? {
            Document::Manifest(manifest) => {
                return Ok(Resolved {
                    named: named.clone(),
                    digest: fetched.digest,
                    bytes: fetched.bytes,
                    manifest,
                });
            }
            Document::Index(entries) => {
                let entry = manifest::choose(&entries, platform).map_err(wrong)?;
                which = entry.descriptor.digest.to_string();
            }
        }
    }
    Err(wrong(ManifestError::Nested(MAX_NESTING)))
}

fn fetch_config(client: &Client, config: &Descriptor, progress: &dyn Progress) -> Result<Vec<u8>, PullError> {
    if config.size > MAX_CONFIG {
        return Err(RegistryError::TooLarge { what: "image configuration", limit: MAX_CONFIG }.into());
    }
    let notify = |error: &RegistryError| {
        progress.event(ProgressEvent::Retrying { layer: None, reason: error.to_string() });
    };
    Ok(client.small_blob(&config.digest, config.size, &notify)?)
}

/// The layers of an image in a registry.
struct RegistryLayers<'a> {
    client: &'a Client,
    layers: &'a [LayerSpec],
    notify: Vec<Box<Notify<'a>>>,
}

impl<'a> RegistryLayers<'a> {
    fn new(client: &'a Client, layers: &'a [LayerSpec], progress: &'a dyn Progress) -> Self {
        let notify = (0..layers.len()).map(|index| -> Box<Notify<'a>> {
            Box::new(move |error| {
                progress.event(ProgressEvent::Retrying { layer: Some(index), reason: error.to_string() });
            })
        });
        Self { client, layers, notify: notify.collect() }
    }
}

impl LayerSource for RegistryLayers<'_> {
    fn open(&self, index: usize) -> Result<Box<dyn Read + Send + '_>, LayerError> {
        let layer = &self.layers[index];
        Ok(Box::new(self.client.blob(layer.name(), layer.size, &*self.notify[index])))
    }
}
