//! OCI image layout (image-spec, image-layout.md): `index.json` names manifests by annotation.

use std::collections::BTreeMap;

use super::archive::{Archive, blob_name};
use super::{Candidate, LoadError};
use crate::digest::Digest;
use crate::manifest::{
    self, Config, Document, IndexEntry, MAX_CONFIG, MAX_MANIFEST, Manifest, ManifestError,
};
use crate::platform::Platform;
use crate::pull::layer_specs;
use crate::reference::{Reference, ReferenceError};

/// Full name of an image, by containerd and docker.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Tag, or full name, by everybody (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Deepest index within an index.
const MAX_NESTING: usize = 3;

/// All images of the layout that fit `platform`.
pub(super) fn read(
    archive: &Archive,
    platform: &Platform,
    default_name: &str,
) -> Result<Vec<Candidate>, LoadError> {
    let bytes = archive.read("index.json", MAX_MANIFEST)?;
    let Document::Index(entries) = manifest::parse(&bytes, None)? else {
        return Err(ManifestError::NeitherKind.into());
    };
    let mut candidates: Vec<Candidate> = Vec::new();
    for entry in &entries {
        // Entries for other machines, and attestations, are not what is being loaded.
        if manifest::choose(std::slice::from_ref(entry), platform).is_err() {
            continue;
        }
        let candidate = candidate(archive, entry, platform, default_name)?;
        let known = candidates.iter_mut().find(|known| known.manifest_digest == candidate.manifest_digest);
        match known {
            Some(known) => known.references.extend(candidate.references),
            None => candidates.push(candidate),
        }
    }
    if candidates.is_empty() {
        let available = entries.iter().filter_map(|e| e.platform.clone()).collect();
        return Err(ManifestError::NoPlatform { wanted: Box::new(platform.clone()), available }.into());
    }
    Ok(candidates)
}

fn candidate(
    archive: &Archive,
    entry: &IndexEntry,
    platform: &Platform,
    default_name: &str,
) -> Result<Candidate, LoadError> {
    let (manifest_digest, bytes, manifest) = follow(archive, entry, platform)?;
    if manifest.config.size > MAX_CONFIG {
        return Err(LoadError::TooLarge { name: "the image configuration".to_owned(), limit: MAX_CONFIG });
    }
    let config_bytes = archive.blob(&manifest.config.digest, MAX_CONFIG)?;
    let config = Config::parse(&config_bytes)?;
    config.check_layers(&manifest.layers)?;
    config.check_platform(platform)?;
    let mut members = Vec::new();
    for layer in &manifest.layers {
        let name = blob_name(&layer.digest);
        let size = archive.find(&name)?.ok_or_else(|| LoadError::Missing { name: name.clone() })?.size();
        if size != layer.size {
            return Err(LoadError::SizeMismatch { name, expected: layer.size, got: size });
        }
        members.push(name);
    }
    let reference = name_of(&entry.annotations, default_name, &manifest_digest)?;
    Ok(Candidate {
        references: vec![reference],
        layers: layer_specs(&manifest, &config),
        manifest: bytes,
        manifest_digest,
        config: config_bytes,
        config_digest: manifest.config.digest,
        members,
    })
}

fn follow(
    archive: &Archive,
    entry: &IndexEntry,
    platform: &Platform,
) -> Result<(Digest, Vec<u8>, Manifest), LoadError> {
    let mut digest = entry.descriptor.digest.clone();
    for _ in 0..MAX_NESTING {
        let bytes = archive.blob(&digest, MAX_MANIFEST)?;
        match manifest::parse(&bytes, None)? {
            Document::Manifest(manifest) => return Ok((digest, bytes, manifest)),
            Document::Index(entries) => {
                digest = manifest::choose(&entries, platform)?.descriptor.digest.clone();
            }
        }
    }
    Err(ManifestError::Nested(MAX_NESTING).into())
}

/// The name in the annotations; a bare tag is one of `default_name`, and without any name the digest is the name.
fn name_of(
    annotations: &BTreeMap<String, String>,
    default_name: &str,
    digest: &Digest,
) -> Result<Reference, ReferenceError> {
    if let Some(full) = annotations.get(CONTAINERD_NAME) {
        return full.parse();
    }
    match annotations.get(REF_NAME) {
        Some(name) if name.contains([':', '/']) => name.parse(),
        Some(tag) => format!("{default_name}:{tag}").parse(),
        None => format!("{default_name}@{digest}").parse(),
    }
}
