//! Garbage collection: what no reference needs is deleted, while nobody else is in the store.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::lock::ExclusiveLock;
use super::{Store, StoreError, tags};

/// What became of the space of things that nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collected {
    /// It was given back: so many bytes.
    Freed(u64),
    /// Another process is using the store; it is given back when that has ended.
    Later,
}

/// Folders whose files are either needed by a reference or garbage.
const FOLDERS: [&str; 5] = ["blobs/sha256", "blobs/sha512", "layers", "disks", "tmp"];

pub(super) fn run(store: &Store) -> Result<Collected, StoreError> {
    let layout = store.layout();
    let pending = layout.pending_file();
    let Some(_lock) = ExclusiveLock::try_now(&layout.lock_file())? else {
        // Not written atomically on purpose: only its existence counts, and the disk may be full.
        fs::File::create(&pending).map_err(|e| StoreError::io(&pending, e))?;
        return Ok(Collected::Later);
    };
    let needed = needed(store)?;
    let mut freed = 0;
    for folder in FOLDERS {
        freed += sweep(&layout.folder(folder), &needed)?;
    }
    match fs::remove_file(&pending) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io(&pending, e)),
        _ => Ok(Collected::Freed(freed)),
    }
}

/// Every file that some reference needs. What a damaged image needed is garbage: pulling it again fetches all of it.
fn needed(store: &Store) -> Result<HashSet<PathBuf>, StoreError> {
    let layout = store.layout();
    let mut needed = HashSet::new();
    for record in tags::list(layout)? {
        needed.insert(layout.blob(&record.manifest));
        let documents = match store.documents_of(&record) {
            Ok(documents) => documents,
            Err(StoreError::Damaged { reference, reason }) => {
                log::warn!("{reference} is damaged: {reason}");
                continue;
            }
            Err(other) => return Err(other),
        };
        needed.insert(layout.blob(&documents.manifest.config.digest));
        let diff_ids = &documents.config.diff_ids;
        needed.insert(layout.disk(diff_ids));
        needed.extend(diff_ids.iter().flat_map(|diff_id| [layout.layer(diff_id), layout.tree(diff_id)]));
    }
    Ok(needed)
}

/// Deletes what is not needed in one folder and says how many bytes that were.
fn sweep(folder: &Path, needed: &HashSet<PathBuf>) -> Result<u64, StoreError> {
    let mut freed = 0;
    for entry in fs::read_dir(folder).map_err(|e| StoreError::io(folder, e))? {
        let path = entry.map_err(|e| StoreError::io(folder, e))?.path();
        if needed.contains(&path) {
            continue;
        }
        let length = fs::symlink_metadata(&path).map_or(0, |m| m.len());
        fs::remove_file(&path).map_err(|e| StoreError::io(&path, e))?;
        freed += length;
    }
    Ok(freed)
}
