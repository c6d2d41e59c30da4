//! What the rest of Hull gets: an image, ready to be attached to a microVM.

use std::fs::File;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::erofs::{Disk, ReadError};
use crate::reference::Reference;

/// An image in the store, complete and verified when it was put there.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration: docker's IMAGE ID.
    pub id: Digest,
    /// Every reference in the store that names this image.
    pub references: Vec<Reference>,
    /// `repository@digest` as the registry knows it: docker's RepoDigests. Empty for an image that was loaded from a file.
    pub digests: Vec<Reference>,
    /// Digest of the manifest for this platform.
    pub manifest_digest: Digest,
    /// When it was built, RFC 3339, if the image says.
    pub created: Option<String>,
    /// Bytes on disk, layers shared with other images included.
    pub size: u64,
    /// The OCI image configuration: environment, command, user, ...
    pub config: ImageConfiguration,
    /// The files that make up its disk.
    pub disk: ImageDisk,
}

/// A read-only EROFS file system in parts.
///
/// Concatenated in this order, `index` first, the parts are one file system; the length of each is a multiple of 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDisk {
    /// The merged metadata.
    pub index: PathBuf,
    /// One blob per layer from the bottom to the top; the same file more than once if the image has a layer more than once.
    pub layers: Vec<PathBuf>,
}

impl ImageDisk {
    /// The content of a regular file of at most `limit` bytes, `None` if there is none of that name. Symbolic links are resolved
    /// inside the image.
    ///
    /// # Errors
    /// When the disk cannot be read, is damaged, or the file is larger than `limit`.
    pub fn read_file(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, ReadError> {
        let parts = std::iter::once(&self.index).chain(&self.layers);
        let parts = parts.map(File::open).collect::<Result<Vec<_>, _>>()?;
        Disk::open(parts)?.read_file(path, limit)
    }
}
