//! Manifests, indexes and image configurations: parsed strictly, so that everything behind this module is one unambiguous image.
//!
//! OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and docker's schema 2, which has the same shape. A document that can
//! be read in two ways is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use serde_json::Value;

use crate::digest::{Digest, DigestError};
use crate::platform::Platform;

#[cfg(test)]
mod tests;

/// What a registry is asked for: every kind of manifest that [`parse`] understands.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// Largest manifest or index in bytes.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image configuration in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Most layers of one image; docker's own limit is 127.
pub const MAX_LAYERS: usize = 128;
/// Most entries of one index.
const MAX_INDEX_ENTRIES: usize = 1024;

/// Why a manifest, index or configuration cannot be used. `Display` is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not the JSON of a manifest.
    #[error("the {what} is not valid: {source}")]
    Json {
        /// manifest, index or image configuration.
        what: &'static str,
        /// The parser's complaint.
        source: serde_json::Error,
    },
    /// Schema 1, gone from docker since 2024.
    #[error("the image has the obsolete manifest schema 1: push it again with a current tool")]
    Schema1,
    /// Some other schema.
    #[error("the manifest has schemaVersion {0}, only 2 is known")]
    SchemaVersion(u64),
    /// Both an index and a manifest.
    #[error("the manifest is ambiguous: it has both \"manifests\" and {0:?}")]
    Ambiguous(&'static str),
    /// Neither an index nor a manifest.
    #[error("the document is neither an image manifest nor an index")]
    NeitherKind,
    /// The media type says something else than the content.
    #[error(
        "the manifest is ambiguous: its media type is {media_type:?} but it has the content of {content}"
    )]
    MediaType {
        /// What was declared.
        media_type: String,
        /// What is inside.
        content: &'static str,
    },
    /// A descriptor's digest.
    #[error("the manifest names a blob by an unusable digest: {0}")]
    Digest(#[from] DigestError),
    /// A configuration that is not an image's: a chart, a signature, a model.
    #[error("this is not a container image but an artifact of type {0:?}")]
    Artifact(String),
    /// A layer that cannot be unpacked.
    #[error("layer {digest} has the media type {media_type:?}, which is not supported")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// A layer that would have to be fetched from somewhere else.
    #[error(
        "layer {digest} is a foreign layer that is stored outside the registry: Hull does not fetch from other places than the registry"
    )]
    ForeignLayer {
        /// The layer.
        digest: Digest,
    },
    /// More layers than [`MAX_LAYERS`].
    #[error("the image has {0} layers, at most {MAX_LAYERS} are supported")]
    TooManyLayers(usize),
    /// More entries than sensible.
    #[error("the index has {0} entries, at most {MAX_INDEX_ENTRIES} are supported")]
    TooManyEntries(usize),
    /// Index in index in index.
    #[error("the image index is nested more than {0} deep")]
    Nested(usize),
    /// No variant for the wanted platform.
    #[error("the image is not available for {wanted}, only for {}", join(.available))]
    NoPlatform {
        /// What was asked for.
        wanted: Box<Platform>,
        /// What there is.
        available: Vec<Platform>,
    },
    /// A single-platform image for another machine.
    #[error("the image is for {got}, not for {wanted}")]
    WrongPlatform {
        /// What was asked for.
        wanted: Box<Platform>,
        /// What the configuration says.
        got: Box<Platform>,
    },
    /// Manifest and configuration disagree.
    #[error("the manifest lists {layers} layers but the image configuration {diff_ids}")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// diffIDs in the configuration.
        diff_ids: usize,
    },
    /// `rootfs.type` is not `layers`.
    #[error("the image configuration has a root file system of type {0:?}, only \"layers\" is known")]
    RootFsType(String),
    /// The same blob under two sizes or two diffIDs.
    #[error(
        "the image contradicts itself about layer {0}: it appears twice, with different sizes or contents"
    )]
    Contradiction(Digest),
}

fn join(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no platform at all".to_owned();
    }
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A reference to a blob by content (OCI image-spec descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// One entry of an index.
#[derive(Debug, Clone)]
pub(crate) struct IndexEntry {
    pub(crate) descriptor: Descriptor,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A single-platform manifest.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// What a manifest URL can return.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Index(Vec<IndexEntry>),
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u64,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    fs_layers: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    urls: Option<Vec<String>>,
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl RawDescriptor {
    fn checked(&self) -> Result<Descriptor, ManifestError> {
        Ok(Descriptor { digest: self.digest.parse()?, size: self.size })
    }
}

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Parses a manifest or index. `declared` is the media type it was served or listed with, if any.
pub(crate) fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Document, ManifestError> {
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what: "manifest", source })?;
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err(ManifestError::Schema1);
    }
    if raw.schema_version != 2 {
        return Err(ManifestError::SchemaVersion(raw.schema_version));
    }
    let declared = [declared.map(media_type_only), raw.media_type.as_deref()];
    match (raw.manifests, raw.config, raw.layers) {
        (Some(_), Some(_), _) => Err(ManifestError::Ambiguous("config")),
        (Some(_), _, Some(_)) => Err(ManifestError::Ambiguous("layers")),
        (Some(entries), None, None) => {
            refuse_types(&declared, &MANIFEST_TYPES, "an index")?;
            index(&entries).map(Document::Index)
        }
        (None, Some(config), Some(layers)) => {
            refuse_types(&declared, &INDEX_TYPES, "an image manifest")?;
            manifest(&config, &layers).map(Document::Manifest)
        }
        (None, ..) => Err(ManifestError::NeitherKind),
    }
}

/// Strips parameters: `application/json; charset=utf-8`.
fn media_type_only(header: &str) -> &str {
    header.split(';').next().unwrap_or(header).trim()
}

fn refuse_types(
    declared: &[Option<&str>],
    wrong: &[&str],
    content: &'static str,
) -> Result<(), ManifestError> {
    match declared.iter().flatten().find(|d| wrong.contains(*d)) {
        Some(media_type) => Err(ManifestError::MediaType { media_type: (*media_type).to_owned(), content }),
        None => Ok(()),
    }
}

fn index(entries: &[RawDescriptor]) -> Result<Vec<IndexEntry>, ManifestError> {
    if entries.len() > MAX_INDEX_ENTRIES {
        return Err(ManifestError::TooManyEntries(entries.len()));
    }
    entries
        .iter()
        .map(|raw| {
            let platform = raw.platform.as_ref();
            Ok(IndexEntry {
                descriptor: raw.checked()?,
                platform: platform.map(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref())),
                annotations: raw.annotations.clone().unwrap_or_default(),
            })
        })
        .collect()
}

fn manifest(config: &RawDescriptor, layers: &[RawDescriptor]) -> Result<Manifest, ManifestError> {
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        return Err(ManifestError::Artifact(config.media_type.clone()));
    }
    if layers.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(layers.len()));
    }
    let layers = layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    Ok(Manifest { config: config.checked()?, layers })
}

fn layer(raw: &RawDescriptor) -> Result<Descriptor, ManifestError> {
    let descriptor = raw.checked()?;
    let foreign =
        raw.media_type.contains(".nondistributable.") || raw.media_type.contains(".rootfs.foreign.");
    if foreign || raw.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
        return Err(ManifestError::ForeignLayer { digest: descriptor.digest });
    }
    if !LAYER_TYPES.contains(&raw.media_type.as_str()) {
        return Err(ManifestError::LayerType {
            digest: descriptor.digest,
            media_type: raw.media_type.clone(),
        });
    }
    Ok(descriptor)
}

/// Picks the entry of an index that fits `wanted` best. Attestations are not images and are never picked.
pub(crate) fn choose<'a>(
    entries: &'a [IndexEntry],
    wanted: &Platform,
) -> Result<&'a IndexEntry, ManifestError> {
    let images: Vec<&IndexEntry> = entries.iter().filter(|e| !is_attestation(e)).collect();
    // An entry without a platform is decided by its configuration, which is checked later anyway.
    const UNKNOWN: u8 = u8::MAX;
    let fit =
        |entry: &IndexEntry| entry.platform.as_ref().map_or(Some(UNKNOWN), |offered| wanted.fit(offered));
    let best = images.iter().filter_map(|entry| Some((fit(entry)?, *entry))).min_by_key(|(rank, _)| *rank);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut available: Vec<Platform> = Vec::new();
        for platform in images.iter().filter_map(|e| e.platform.clone()) {
            if !available.contains(&platform) {
                available.push(platform);
            }
        }
        ManifestError::NoPlatform { wanted: Box::new(wanted.clone()), available }
    })
}

fn is_attestation(entry: &IndexEntry) -> bool {
    entry.annotations.contains_key("vnd.docker.reference.type")
        || entry.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
}

/// An image configuration that agrees with its manifest.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) image: ImageConfiguration,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    /// Parses and checks what does not need the manifest.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let json = |source| ManifestError::Json { what: "image configuration", source };
        let image: ImageConfiguration = serde_json::from_slice(bytes).map_err(json)?;
        let kind = image.rootfs().typ();
        if kind != "layers" {
            return Err(ManifestError::RootFsType(kind.clone()));
        }
        let diff_ids =
            image.rootfs().diff_ids().iter().map(|id| id.parse()).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { image, diff_ids })
    }

    /// Checks the configuration against its manifest: one diffID per layer, and the same one for the same blob.
    pub(crate) fn check_layers(&self, layers: &[Descriptor]) -> Result<(), ManifestError> {
        if layers.len() != self.diff_ids.len() {
            return Err(ManifestError::LayerCount { layers: layers.len(), diff_ids: self.diff_ids.len() });
        }
        let mut seen = BTreeMap::new();
        for (layer, diff_id) in layers.iter().zip(&self.diff_ids) {
            let earlier = seen.insert(&layer.digest, (layer.size, diff_id));
            if earlier.is_some_and(|earlier| earlier != (layer.size, diff_id)) {
                return Err(ManifestError::Contradiction(layer.digest.clone()));
            }
        }
        Ok(())
    }

    /// Refuses an image for another machine. Old images that do not say are taken as they are.
    pub(crate) fn check_platform(&self, wanted: &Platform) -> Result<(), ManifestError> {
        let (os, architecture) = (self.image.os().to_string(), self.image.architecture().to_string());
        let got = Platform::new(&os, &architecture, self.image.variant().as_deref());
        if os.is_empty() || architecture.is_empty() || wanted.fit(&got).is_some() {
            return Ok(());
        }
        Err(ManifestError::WrongPlatform { wanted: Box::new(wanted.clone()), got: Box::new(got) })
    }
}
