//! Small images with every document consistent, to be damaged by the tests.

use std::collections::HashMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::digest::Digest;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A tar stream with these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that no compression makes smaller, the same for the same seed.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |state: &mut u64| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| step(&mut state)).collect()
}

/// An image as a registry holds it: documents as JSON that can be changed, and blobs by digest.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) manifest: Value,
    pub(crate) config: Value,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
}

impl TestImage {
    /// One layer per tar stream, compressed with gzip.
    pub(crate) fn of(tars: &[Vec<u8>]) -> Self {
        let layers: Vec<_> = tars.iter().map(|tar| (gzip(tar), Digest::of(tar))).collect();
        Self::with_layers(&layers)
    }

    /// Two layers with known files.
    pub(crate) fn small() -> Self {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n";
        let data = noise(300_000, 1);
        Self::of(&[tar(&[("etc/passwd", passwd), ("data", &data)]), tar(&[("etc/group", b"root:x:0:\n")])])
    }

    /// Compressed layers with their diffIDs.
    pub(crate) fn with_layers(layers: &[(Vec<u8>, Digest)]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(_, diff_id)| diff_id.to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z",
            "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let descriptor = |(blob, _): &(Vec<u8>, Digest)| json!({"mediaType": GZIP_LAYER, "digest": Digest::of(blob), "size": blob.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
        });
        let blobs = layers.iter().map(|(blob, _)| (Digest::of(blob).to_string(), blob.clone())).collect();
        let mut image = Self { manifest, config, blobs };
        image.seal();
        image
    }

    /// Makes the manifest name the configuration as it is now.
    pub(crate) fn seal(&mut self) {
        let config = self.config.to_string().into_bytes();
        self.manifest["config"]["digest"] = json!(Digest::of(&config));
        self.manifest["config"]["size"] = json!(config.len());
        self.blobs.insert(Digest::of(&config).to_string(), config);
    }

    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::of(&self.manifest_bytes())
    }

    pub(crate) fn layer_digest(&self, index: usize) -> String {
        self.manifest["layers"][index]["digest"].as_str().unwrap().to_owned()
    }
}
