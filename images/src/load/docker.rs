//! What `docker save` has written since 1.10: `manifest.json` names a configuration and layers by member.
//!
//! Its layers are named by nothing but a path; the diffIDs in the configuration decide whether they are right. The store keeps a
//! manifest that says the same in OCI's form.

use serde::Deserialize;
use serde_json::json;

use super::archive::Archive;
use super::{Candidate, LoadError};
use crate::digest::Digest;
use crate::install::LayerSpec;
use crate::manifest::{Config, Descriptor, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, ManifestError};
use crate::platform::Platform;
use crate::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// All images of the archive; one for another machine is an error, because an archive has one platform.
pub(super) fn read(
    archive: &Archive,
    platform: &Platform,
    default_name: &str,
) -> Result<Vec<Candidate>, LoadError> {
    let bytes = archive.read("manifest.json", MAX_MANIFEST)?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes)
        .map_err(|source| LoadError::Json { name: "manifest.json".to_owned(), source })?;
    if entries.is_empty() {
        return Err(LoadError::Missing { name: "any image".to_owned() });
    }
    entries.into_iter().map(|entry| candidate(archive, entry, platform, default_name)).collect()
}

fn candidate(
    archive: &Archive,
    entry: Entry,
    platform: &Platform,
    default_name: &str,
) -> Result<Candidate, LoadError> {
    let config_bytes = archive.read(&entry.config, MAX_CONFIG)?;
    let config_digest = Digest::of(&config_bytes);
    let config = Config::parse(&config_bytes)?;
    config.check_platform(platform)?;
    let members = entry.layers.unwrap_or_default();
    if members.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(members.len()).into());
    }
    if members.len() != config.diff_ids.len() {
        return Err(
            ManifestError::LayerCount { layers: members.len(), diff_ids: config.diff_ids.len() }.into()
        );
    }
    let mut layers = Vec::new();
    for (member, diff_id) in members.iter().zip(&config.diff_ids) {
        let section = archive.find(member)?.ok_or_else(|| LoadError::Missing { name: member.clone() })?;
        layers.push(LayerSpec { blob: None, size: section.size(), diff_id: diff_id.clone() });
    }
    let manifest = manifest_for(&config_digest, config_bytes.len(), &layers);
    let descriptors: Vec<_> =
        layers.iter().map(|l| Descriptor { digest: l.diff_id.clone(), size: l.size }).collect();
    config.check_layers(&descriptors)?;
    let manifest_digest = Digest::of(&manifest);
    let tags = entry.repo_tags.unwrap_or_default();
    let mut references = tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Reference>, _>>()?;
    if references.is_empty() {
        references.push(format!("{default_name}@{manifest_digest}").parse()?);
    }
    Ok(Candidate {
        references,
        manifest,
        manifest_digest,
        config: config_bytes,
        config_digest,
        layers,
        members,
    })
}

/// The OCI manifest of the same image with its layers uncompressed.
fn manifest_for(config: &Digest, config_size: usize, layers: &[LayerSpec]) -> Vec<u8> {
    let layer = |layer: &LayerSpec| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.diff_id,
            "size": layer.size,
        })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": config_size,
        },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}
