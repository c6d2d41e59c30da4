//! References in the store: one small JSON file each.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::{Layout, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;

/// What one reference names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TagRecord {
    /// Tag or digest form, never both.
    pub(crate) reference: Reference,
    /// The manifest for one platform.
    pub(crate) manifest: Digest,
    /// The index it was chosen from, if there was one.
    pub(crate) index: Option<Digest>,
    /// False for images that were loaded from a file: no registry knows them by digest.
    pub(crate) from_registry: bool,
}

impl TagRecord {
    /// True if `repository@digest` means this record.
    pub(super) fn resolves_to(&self, digest: &Digest) -> bool {
        self.manifest == *digest || self.index.as_ref() == Some(digest)
    }
}

/// All records, sorted by reference.
pub(super) fn list(layout: &Layout) -> Result<Vec<TagRecord>, StoreError> {
    let folder = layout.folder("tags");
    let mut records = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|e| StoreError::io(&folder, e))? {
        let path = entry.map_err(|e| StoreError::io(&folder, e))?.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            // Removed by another process since the folder was read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(StoreError::io(&path, e)),
        };
        let record = serde_json::from_slice(&text).map_err(|e| StoreError::io(&path, e.into()))?;
        records.push(record);
    }
    records.sort_by(|a: &TagRecord, b| a.reference.cmp(&b.reference));
    Ok(records)
}

/// Makes `record.reference` name `record.manifest` from now on.
pub(crate) fn write(layout: &Layout, record: &TagRecord) -> Result<(), StoreError> {
    let path = layout.tag(&record.reference);
    let text = serde_json::to_vec(record).map_err(|e| StoreError::io(&path, e.into()))?;
    layout.write(&path, &text)
}

/// Forgets a reference; it is no error if another process was faster.
pub(super) fn delete(layout: &Layout, record: &TagRecord) -> Result<(), StoreError> {
    let path = layout.tag(&record.reference);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io(&path, e)),
        _ => Ok(()),
    }
}
