//! What a pull or load tells its caller while it works. Nothing here decides anything.

use crate::digest::Digest;
use crate::reference::Reference;

/// Receives events from several threads at once; must return quickly.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: ProgressEvent);
}

/// One layer as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the compressed layer: what docker shows.
    pub digest: Digest,
    /// Compressed size in bytes.
    pub size: u64,
}

/// A step of a pull or load. `layer` is the index into the layers of the last [`Resolved`](Self::Resolved).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// The registry is being asked what the reference names.
    Resolving {
        /// What was asked for.
        reference: Reference,
    },
    /// The image and its layers are known; layers are listed from the bottom to the top.
    Resolved {
        /// Digest of the manifest or index that the reference names (docker's "Digest:").
        digest: Digest,
        /// One entry per layer, duplicates included.
        layers: Vec<LayerInfo>,
    },
    /// The layer is in the store already, or is the same as an earlier one of this image.
    LayerExists {
        /// Index of the layer.
        layer: usize,
    },
    /// The layer's transfer begins.
    LayerStarted {
        /// Index of the layer.
        layer: usize,
    },
    /// The layer's transfer goes on.
    LayerProgress {
        /// Index of the layer.
        layer: usize,
        /// Compressed bytes so far.
        received: u64,
        /// Uncompressed bytes so far.
        unpacked: u64,
    },
    /// A connection broke or the registry was busy; the request is repeated.
    Retrying {
        /// Index of the layer; `None` while the manifest or configuration is fetched.
        layer: Option<usize>,
        /// What went wrong, one sentence.
        reason: String,
    },
    /// The layer is verified and on disk.
    LayerDone {
        /// Index of the layer.
        layer: usize,
    },
    /// All layers are there; the disk's index is being written.
    Assembling,
    /// The image can be used.
    Done {
        /// Digest of its configuration.
        id: Digest,
    },
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: ProgressEvent) {}
}
