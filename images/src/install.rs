//! Putting an image into the store, wherever its layers come from: the common part of pulling and loading.
//!
//! Layers that the store has are not touched; the others are transferred, verified and converted by a few threads, the largest
//! first. Only when every layer is there are the disk, the documents and at last the reference written.

mod layer;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

pub use layer::LayerError;

use crate::digest::Digest;
use crate::erofs::{BLOCK_SIZE, FuseError, LayerTree, WriteError, fuse_index};
use crate::layer::Limits;
use crate::progress::{Progress, ProgressEvent};
use crate::registry::Cancel;
use crate::store::{Layout, StoreError, is_full};

/// One layer of an image that is being installed.
#[derive(Debug, Clone)]
pub(crate) struct LayerSpec {
    /// Digest of the compressed blob; `None` where the source does not name one and the diffID alone decides.
    pub(crate) blob: Option<Digest>,
    /// Bytes of the blob.
    pub(crate) size: u64,
    /// Digest of the uncompressed tar stream.
    pub(crate) diff_id: Digest,
}

impl LayerSpec {
    /// What to call it: docker shows the digest of the blob.
    pub(crate) fn name(&self) -> &Digest {
        self.blob.as_ref().unwrap_or(&self.diff_id)
    }
}

/// Where the layers come from.
pub(crate) trait LayerSource: Sync {
    /// The blob of the layer with this index, as a stream of exactly its size.
    fn open(&self, index: usize) -> Result<Box<dyn Read + Send + '_>, LayerError>;
}

/// Installing failed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// One layer cannot be had or used.
    #[error("layer {}: {source}", .digest.short())]
    Layer {
        /// Which one.
        digest: Digest,
        /// Why.
        source: LayerError,
    },
    /// The layers do not make a disk together.
    #[error("the layers cannot be merged into one disk: {0}")]
    Fuse(FuseError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl InstallError {
    /// True if another attempt may go on where this one stopped.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Layer { source, .. } => source.is_transient(),
            Self::Fuse(_) | Self::Store(_) => false,
        }
    }
}

/// What installing needs besides the layers.
pub(crate) struct Installer<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) limits: &'a Limits,
    /// Layers in transfer at a time.
    pub(crate) parallel: NonZeroUsize,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

impl Installer<'_> {
    /// Makes sure that all `layers` and the disk over them are in the store. The caller holds the store's lock.
    pub(crate) fn install(&self, layers: &[LayerSpec], source: &dyn LayerSource) -> Result<(), InstallError> {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let disk = self.layout.disk(&diff_ids);
        let (mut trees, missing) = self.present(layers);
        for index in (0..layers.len()).filter(|index| !missing.contains(index)) {
            self.progress.event(ProgressEvent::LayerExists { layer: index });
        }
        let complete = missing.is_empty() && disk.exists();
        if complete {
            return Ok(());
        }
        trees.extend(self.transfer(layers, missing, source)?);
        self.progress.event(ProgressEvent::Assembling);
        let trees: Vec<LayerTree> = diff_ids.iter().filter_map(|id| trees.get(id).cloned()).collect();
        let index = self.layout.temp_file()?;
        fuse_index(&trees, index.file()).map_err(|error| match error {
            FuseError::Write(WriteError::Io(e)) if is_full(&e) => StoreError::io(index.path(), e).into(),
            other => InstallError::Fuse(other),
        })?;
        Ok(index.commit(&disk)?)
    }

    /// The metadata of the layers that are there, and the indexes of those that must be fetched: each diffID once, largest first.
    fn present(&self, layers: &[LayerSpec]) -> (HashMap<Digest, LayerTree>, Vec<usize>) {
        let mut trees = HashMap::new();
        let mut missing: Vec<usize> = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let known = trees.contains_key(&layer.diff_id)
                || missing.iter().any(|m| layers[*m].diff_id == layer.diff_id);
            if known {
                continue;
            }
            match self.read_tree(&layer.diff_id) {
                Some(tree) => {
                    trees.insert(layer.diff_id.clone(), tree);
                }
                None => missing.push(index),
            }
        }
        missing.sort_by_key(|index| std::cmp::Reverse(layers[*index].size));
        (trees, missing)
    }

    /// The metadata of a layer that is in the store. A layer that is incomplete or damaged counts as missing and is replaced.
    fn read_tree(&self, diff_id: &Digest) -> Option<LayerTree> {
        let length = std::fs::metadata(self.layout.layer(diff_id)).ok()?.len();
        let file = File::open(self.layout.tree(diff_id)).ok()?;
        match LayerTree::read_from(&mut BufReader::with_capacity(1 << 18, file)) {
            Ok(tree) if u64::from(tree.blob_blocks()) * u64::from(BLOCK_SIZE) == length => Some(tree),
            Ok(_) => {
                log::warn!(
                    "layer {diff_id} has {length} bytes, which does not fit its metadata: fetching it again"
                );
                None
            }
            Err(error) => {
                log::warn!("layer {diff_id}: {error}: fetching it again");
                None
            }
        }
    }

    /// Fetches the layers with these indexes, several at a time. After a failure the others stop, and the failure is returned.
    fn transfer(
        &self,
        layers: &[LayerSpec],
        missing: Vec<usize>,
        source: &dyn LayerSource,
    ) -> Result<HashMap<Digest, LayerTree>, InstallError> {
        let threads = self.parallel.get().min(missing.len());
        let queue = Mutex::new(missing.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let done = Mutex::new(HashMap::new());
        let failure: Mutex<Option<InstallError>> = Mutex::new(None);
        let work = || {
            while let Some(index) = next() {
                let layer = &layers[index];
                if self.cancel.is_cancelled() {
                    return;
                }
                match self.one_layer(index, layer, source) {
                    Ok(tree) => {
                        done.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(layer.diff_id.clone(), tree);
                    }
                    Err(source) => {
                        // The first failure is the cause; the others are its consequences.
                        let digest = layer.name().clone();
                        let error = InstallError::Layer { digest, source };
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        self.cancel.cancel();
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(InstallError::Layer { source: LayerError::Store(error), .. }) => Err(error.into()),
            Some(error) => Err(error),
            None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn one_layer(
        &self,
        index: usize,
        spec: &LayerSpec,
        source: &dyn LayerSource,
    ) -> Result<LayerTree, LayerError> {
        self.progress.event(ProgressEvent::LayerStarted { layer: index });
        let stream = source.open(index)?;
        let report = |received, unpacked| {
            self.progress.event(ProgressEvent::LayerProgress { layer: index, received, unpacked });
        };
        let tree = layer::ingest(spec, stream, self.layout, self.limits, &report)?;
        self.progress.event(ProgressEvent::LayerDone { layer: index });
        Ok(tree)
    }
}
