//! The metadata of a layer as a file beside its blob, so that fusing needs no blob.

use std::io::{self, Read, Write};

use super::Tree;

/// Everything about a layer but the data of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTree {
    pub(crate) tree: Tree,
    pub(crate) blob_blocks: u32,
}

/// A sidecar that cannot be used; converting the layer again makes a new one.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// Reading or writing failed.
    #[error("cannot access the layer's metadata file: {0}")]
    Io(#[from] io::Error),
    /// Made by another version of this program.
    #[error("the layer's metadata file has another format version")]
    Version,
    /// Damaged.
    #[error("the layer's metadata file is damaged: {0}")]
    Corrupt(&'static str),
}

impl LayerTree {
    /// Length of the blob in blocks of [`BLOCK_SIZE`](super::BLOCK_SIZE); a blob file of another length is not the
    /// one this tree describes.
    #[must_use]
    pub fn blob_blocks(&self) -> u32 {
        self.blob_blocks
    }

    /// Writes the sidecar.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), SidecarError> {
        let _ = (out, &self.tree);
        Err(SidecarError::Version)
    }

    /// Reads a sidecar and checks everything in it.
    ///
    /// # Errors
    /// See [`SidecarError`].
    pub fn read_from(input: &mut impl Read) -> Result<LayerTree, SidecarError> {
        let _ = input;
        Err(SidecarError::Version)
    }
}
