//! Where everything is in the store, and how files get there: written under tmp/, synced, renamed, folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::StoreError;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::reference::Reference;

/// Raised whenever layers or disks of older versions cannot be used any more.
const FORMAT: &str = "v1";

/// The names in a store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

pub(super) fn digest_of(bytes: &[u8], algorithm: Algorithm) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

impl Layout {
    /// Creates the folders, for their owner only: images hold setuid programs and secrets alike.
    pub(super) fn create(root: &Path) -> Result<Self, StoreError> {
        let layout = Self { root: root.to_owned() };
        let folders =
            ["blobs/sha256", "blobs/sha512", "layers", "disks", "tags", "tmp"].map(|name| root.join(name));
        for folder in folders {
            let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            created.map_err(|e| StoreError::io(&folder, e))?;
        }
        Ok(layout)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Exists while there is garbage that could not be collected yet.
    pub(super) fn pending_file(&self) -> PathBuf {
        self.root.join("collect-pending")
    }

    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    /// The EROFS blob of a layer.
    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!(
            "{}-{}.{FORMAT}.erofs",
            diff_id.algorithm().name(),
            diff_id.hex()
        ))
    }

    /// The metadata beside the blob of a layer.
    pub(crate) fn tree(&self, diff_id: &Digest) -> PathBuf {
        self.layer(diff_id).with_extension("tree")
    }

    /// The fused index over these layers.
    pub(crate) fn disk(&self, diff_ids: &[Digest]) -> PathBuf {
        let text: String = diff_ids.iter().map(|id| format!("{id}\n")).collect();
        self.root.join("disks").join(format!("{}.{FORMAT}.erofs", Digest::of(text.as_bytes()).hex()))
    }

    pub(super) fn tag(&self, reference: &Reference) -> PathBuf {
        self.root.join("tags").join(format!("{}.json", Digest::of(reference.canonical().as_bytes()).hex()))
    }

    /// A new empty file in tmp/, removed again unless it is committed. The caller holds the store's lock.
    pub(crate) fn temp_file(&self) -> Result<TempFile, StoreError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let name = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
            let path = self.root.join("tmp").join(name);
            // Another process in another pid namespace, or a crashed one, may have used the name.
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok(TempFile { file, path, committed: false }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(StoreError::io(&path, e)),
            }
        }
    }

    /// Writes a small file, all or nothing.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let mut temp = self.temp_file()?;
        temp.file.write_all(content).map_err(|e| StoreError::io(path, e))?;
        temp.commit(path)
    }

    /// True if a crashed process or an unfinished collection left something.
    pub(crate) fn has_leftovers(&self) -> Result<bool, StoreError> {
        let tmp = self.folder("tmp");
        let mut entries = fs::read_dir(&tmp).map_err(|e| StoreError::io(&tmp, e))?;
        Ok(entries.next().is_some() || self.pending_file().exists())
    }
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct TempFile {
    file: File,
    path: PathBuf,
    committed: bool,
}

impl TempFile {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the content durable under its final name, replacing what was there.
    pub(crate) fn commit(mut self, target: &Path) -> Result<(), StoreError> {
        let failed = |e| StoreError::io(target, e);
        self.file.sync_data().map_err(failed)?;
        fs::rename(&self.path, target).map_err(failed)?;
        self.committed = true;
        let folder = target.parent().unwrap_or(target);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            // The next process that opens the store tries again.
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
