//! Loading images from files: an OCI layout directory, the same as a tar archive, or what `docker save` writes; archives may be
//! compressed. Nothing is ever extracted by a name from an archive: members are found by name in memory and read by position.

mod archive;
mod docker;
mod oci;

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use crate::digest::{Digest, DigestError};
use crate::image::Image;
use crate::install::{InstallError, Installer, LayerError, LayerSource, LayerSpec};
use crate::layer::Limits;
use crate::manifest::ManifestError;
use crate::platform::Platform;
use crate::progress::{LayerInfo, Progress, ProgressEvent};
use crate::reference::{Reference, ReferenceError};
use crate::registry::Cancel;
use crate::store::{Store, StoreError, TagRecord};

use archive::Archive;

#[cfg(test)]
mod tests;

/// Loading failed. `Display` is one sentence that stands alone.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else than an image.
    #[error("{} is neither an OCI layout nor a docker archive", .path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// A member of the archive would land outside of it.
    #[error("the archive has a member with the unsafe name {name:?}")]
    UnsafeName {
        /// The name.
        name: String,
    },
    /// More members than sensible.
    #[error("the archive has more than {limit} members")]
    TooManyMembers {
        /// The limit.
        limit: usize,
    },
    /// A file that is referred to is not there.
    #[error("{name} is missing in the archive")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A file is larger than it may be.
    #[error("{name} is larger than {limit} bytes")]
    TooLarge {
        /// Its name.
        name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Content and name disagree.
    #[error("{name} does not match its digest: it has {got}")]
    DigestMismatch {
        /// The file.
        name: String,
        /// What it really has.
        got: Digest,
    },
    /// Content and announced size disagree.
    #[error("{name} has {got} bytes instead of {expected}")]
    SizeMismatch {
        /// The file.
        name: String,
        /// What the manifest says.
        expected: u64,
        /// What it has.
        got: u64,
    },
    /// Not the JSON that belongs there.
    #[error("{name} is not valid: {source}")]
    Json {
        /// The file.
        name: String,
        /// The parser's complaint.
        source: serde_json::Error,
    },
    /// A name in the archive cannot be used.
    #[error("the archive names an image in a way that is not valid: {0}")]
    Reference(#[from] ReferenceError),
    /// A digest in the archive cannot be used.
    #[error("the archive names a blob in a way that is not valid: {0}")]
    Digest(#[from] DigestError),
    /// No usable image inside.
    #[error("cannot load the image: {0}")]
    Manifest(#[from] ManifestError),
    /// A layer cannot be used, or the store failed.
    #[error("cannot load the image: {0}")]
    Install(#[from] InstallError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image found in an archive, read and checked up to its layers.
struct Candidate {
    references: Vec<Reference>,
    manifest: Vec<u8>,
    manifest_digest: Digest,
    config: Vec<u8>,
    config_digest: Digest,
    layers: Vec<LayerSpec>,
    /// The member that holds each layer.
    members: Vec<String>,
}

impl Store {
    /// Loads all images for this host's platform from `path`: an OCI layout directory, an OCI archive or a docker archive, which may
    /// be compressed with gzip or zstd, or come through a pipe.
    ///
    /// An image without a name gets one from the file's own, below `localhost/`. The returned images carry only the references that
    /// this archive gave them.
    ///
    /// # Errors
    /// See [`LoadError`]. Nothing stays in the store after an error, except images of the same archive that were complete.
    pub fn load(&self, path: &Path, progress: &dyn Progress) -> Result<Vec<Image>, LoadError> {
        let result = {
            let _lock = self.lock_shared()?;
            self.load_locked(path, progress)
        };
        if result.is_err() || self.layout().has_leftovers()? {
            // The load's own result matters more than that the space could not be given back.
            if let Err(error) = self.collect() {
                log::warn!("cleaning up: {error}");
            }
        }
        result
    }

    fn load_locked(&self, path: &Path, progress: &dyn Progress) -> Result<Vec<Image>, LoadError> {
        let archive = Archive::open(path, self.layout())?;
        let platform = Platform::default();
        let candidates = if archive.contains("oci-layout") || archive.contains("index.json") {
            oci::read(&archive, &platform, &default_name(path))?
        } else if archive.contains("manifest.json") {
            docker::read(&archive, &platform, &default_name(path))?
        } else {
            return Err(LoadError::NotAnImage { path: path.to_owned() });
        };
        candidates.iter().map(|candidate| self.load_one(candidate, &archive, progress)).collect()
    }

    fn load_one(
        &self,
        found: &Candidate,
        archive: &Archive,
        progress: &dyn Progress,
    ) -> Result<Image, LoadError> {
        let infos =
            found.layers.iter().map(|l| LayerInfo { digest: l.name().clone(), size: l.size }).collect();
        progress.event(ProgressEvent::Resolved { digest: found.manifest_digest.clone(), layers: infos });
        let installer = Installer {
            layout: self.layout(),
            limits: &Limits::default(),
            // Reading a file needs no waiting that could be filled: two layers keep two cores busy.
            parallel: NonZeroUsize::MIN.saturating_add(1),
            progress,
            cancel: &Cancel::default(),
        };
        installer.install(&found.layers, &ArchiveLayers { archive, found })?;
        let mut image = None;
        for reference in &found.references {
            let record = TagRecord {
                reference: reference.without_redundant_tag(),
                manifest: found.manifest_digest.clone(),
                index: None,
                from_registry: false,
            };
            image = Some(self.record(&record, &found.manifest, &found.config_digest, &found.config)?);
        }
        let mut image = image.ok_or_else(|| LoadError::Missing { name: "the image's name".to_owned() })?;
        // What was loaded, not what else the store calls the same image.
        image.references.clone_from(&found.references);
        progress.event(ProgressEvent::Done { id: image.id.clone() });
        Ok(image)
    }
}

/// A repository name made of the file's name, for images that come without one.
fn default_name(path: &Path) -> String {
    let stem = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    let stem = [".gz", ".zst", ".tgz", ".tar", ".oci"]
        .iter()
        .fold(stem.as_str(), |s, end| s.strip_suffix(end).unwrap_or(s));
    let words = stem.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-");
    format!("localhost/{}", if name.is_empty() { "image" } else { &name })
}

/// The layers of one image in an archive.
struct ArchiveLayers<'a> {
    archive: &'a Archive,
    found: &'a Candidate,
}

impl LayerSource for ArchiveLayers<'_> {
    fn open(&self, index: usize) -> Result<Box<dyn Read + Send + '_>, LayerError> {
        let member = &self.found.members[index];
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("{member} is missing in the archive"));
        let found = self.archive.find(member).map_err(|e| LayerError::Read(io::Error::other(e)))?;
        Ok(Box::new(found.ok_or_else(missing).map_err(LayerError::Read)?))
    }
}
