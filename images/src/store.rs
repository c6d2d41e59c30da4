//! The content store on disk: which images there are, finding and removing them, and garbage collection.
//!
//! ```text
//! <root>/lock                      shared by pulls and readers, exclusive for garbage collection
//! <root>/blobs/<algorithm>/<hex>   manifests and configurations
//! <root>/layers/<diffID>.v1.erofs  one EROFS blob per layer, and its metadata in .v1.tree
//! <root>/disks/<key>.v1.erofs      the fused index of an image; key is a hash over its diffIDs
//! <root>/tags/<key>.json           reference -> manifest; key is a hash of the reference
//! <root>/tmp/                      files being written; what is here while nobody holds the lock is left from a crash
//! ```
//! Every file appears complete and synced under its final name or not at all, so that any number of processes may work in one store.

mod collect;
mod error;
mod files;
mod lock;
mod tags;

use std::fs;
use std::path::{Path, PathBuf};

pub use collect::Collected;
pub use error::StoreError;
pub(crate) use error::is_full;
pub(crate) use files::{Layout, TempFile};
pub(crate) use lock::SharedLock;
pub(crate) use tags::{TagRecord, write as write_tag};

use crate::digest::Digest;
use crate::image::{Image, ImageDisk};
use crate::manifest::{self, Config, Document, Manifest, ManifestError};
use crate::reference::Reference;

#[cfg(test)]
mod tests;

/// A store, opened. Cheap; holds no lock and no open file.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

/// What [`Store::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// References that no longer exist.
    pub untagged: Vec<Reference>,
    /// The image's id, if that was its last reference.
    pub deleted: Option<Digest>,
    /// What became of the space.
    pub space: Collected,
}

/// An image's documents, read back from the store and checked.
pub(crate) struct Documents {
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
}

impl Store {
    /// Opens or creates the store below `root`, and removes what crashed processes left in it.
    ///
    /// # Errors
    /// When the folders cannot be created or written.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self { layout: Layout::create(root)? };
        if store.layout.has_leftovers()? {
            store.collect()?;
        }
        Ok(store)
    }

    /// The folder that was opened.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All images, sorted by their first reference. A damaged image is left out and logged.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let _lock = self.lock_shared()?;
        let records = tags::list(&self.layout)?;
        let mut images: Vec<Image> = Vec::new();
        for record in &records {
            match self.image_of(record, &records) {
                Ok(image) if images.iter().any(|known| known.id == image.id) => {}
                Ok(image) => images.push(image),
                Err(StoreError::Damaged { reference, reason }) => {
                    log::warn!("{reference} is damaged: {reason}");
                }
                Err(other) => return Err(other),
            }
        }
        Ok(images)
    }

    /// Finds an image by a reference in any docker spelling, by `repository@digest`, or by its id or a prefix of it.
    ///
    /// # Errors
    /// [`StoreError::AmbiguousId`] when a prefix fits several images, [`StoreError::Damaged`] when the image is there but unusable.
    pub fn find(&self, name: &str) -> Result<Option<Image>, StoreError> {
        let _lock = self.lock_shared()?;
        let records = tags::list(&self.layout)?;
        match select(name, &records, |record| self.id_of(record))? {
            Selection::None => Ok(None),
            Selection::Named(selected) | Selection::ById(selected) => {
                selected.first().map(|record| self.image_of(record, &records)).transpose()
            }
        }
    }

    /// Removes a reference; with the last reference of an image goes the image. Given an id, removes all its references if they are
    /// in one repository.
    ///
    /// Space that a pull in another process may still need is given back when that pull has ended. A running container keeps its
    /// files open and is not disturbed.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], [`StoreError::SeveralRepositories`], [`StoreError::AmbiguousId`], or failures of the disk.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let removed = {
            let _lock = self.lock_shared()?;
            let records = tags::list(&self.layout)?;
            match select(name, &records, |record| self.id_of(record))? {
                Selection::None => return Err(StoreError::NoSuchImage { name: name.to_owned() }),
                Selection::Named(selected) => self.untag(&selected, &records)?,
                Selection::ById(selected) => {
                    let first = selected.first();
                    if selected
                        .iter()
                        .any(|r| first.is_some_and(|f| !f.reference.same_repository(&r.reference)))
                    {
                        let references = selected.iter().map(|r| r.reference.clone()).collect();
                        return Err(StoreError::SeveralRepositories { name: name.to_owned(), references });
                    }
                    self.untag(&selected, &records)?
                }
            }
        };
        self.finish_removal(removed)
    }

    /// Removes an image with all its references.
    ///
    /// # Errors
    /// Failures of the disk.
    pub fn remove_image(&self, image: &Image) -> Result<Removed, StoreError> {
        let removed = {
            let _lock = self.lock_shared()?;
            let records = tags::list(&self.layout)?;
            let selected: Vec<&TagRecord> =
                records.iter().filter(|r| self.id_of(r).is_ok_and(|id| id == image.id)).collect();
            self.untag(&selected, &records)?
        };
        self.finish_removal(removed)
    }

    fn untag(&self, selected: &[&TagRecord], all: &[TagRecord]) -> Result<Removed, StoreError> {
        // A damaged image has no readable id, and must be removable all the same.
        let id = selected.first().and_then(|record| self.id_of(record).ok());
        for record in selected {
            tags::delete(&self.layout, record)?;
        }
        let gone = |record: &TagRecord| selected.iter().any(|s| s.reference == record.reference);
        let others = all.iter().filter(|record| !gone(record));
        let still_named =
            others.filter_map(|record| self.id_of(record).ok()).any(|other| Some(&other) == id.as_ref());
        let untagged = selected.iter().map(|record| record.reference.clone()).collect();
        Ok(Removed { untagged, deleted: id.filter(|_| !still_named), space: Collected::Later })
    }

    fn finish_removal(&self, mut removed: Removed) -> Result<Removed, StoreError> {
        removed.space = self.collect()?;
        Ok(removed)
    }

    /// Deletes everything that no reference needs, unless a pull is going on: then it is done later.
    pub(crate) fn collect(&self) -> Result<Collected, StoreError> {
        collect::run(self)
    }

    /// Keeps garbage collection away while it is held.
    pub(crate) fn lock_shared(&self) -> Result<SharedLock, StoreError> {
        SharedLock::wait(&self.layout.lock_file())
    }

    fn id_of(&self, record: &TagRecord) -> Result<Digest, StoreError> {
        Ok(self.manifest_of(record)?.config.digest)
    }

    fn manifest_of(&self, record: &TagRecord) -> Result<Manifest, StoreError> {
        let bytes = self.blob(&record.manifest, record)?;
        match manifest::parse(&bytes, None) {
            Ok(Document::Manifest(manifest)) => Ok(manifest),
            Ok(Document::Index(_)) => Err(damaged(record, "its manifest is an index")),
            Err(error) => Err(damaged(record, &error.to_string())),
        }
    }

    pub(crate) fn documents_of(&self, record: &TagRecord) -> Result<Documents, StoreError> {
        let manifest = self.manifest_of(record)?;
        let bad = |error: ManifestError| damaged(record, &error.to_string());
        let config = Config::parse(&self.blob(&manifest.config.digest, record)?).map_err(bad)?;
        config.check_layers(&manifest.layers).map_err(bad)?;
        Ok(Documents { manifest, config })
    }

    /// Reads a manifest or configuration and verifies it.
    fn blob(&self, digest: &Digest, record: &TagRecord) -> Result<Vec<u8>, StoreError> {
        let path = self.layout.blob(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(damaged(record, &format!("{} is missing", path.display())));
            }
            Err(e) => return Err(StoreError::io(&path, e)),
        };
        if files::digest_of(&bytes, digest.algorithm()) != *digest {
            return Err(damaged(record, &format!("{} was changed", path.display())));
        }
        Ok(bytes)
    }

    /// The image of one record, with all references to it.
    fn image_of(&self, record: &TagRecord, all: &[TagRecord]) -> Result<Image, StoreError> {
        let Documents { manifest, config } = self.documents_of(record)?;
        let id = manifest.config.digest;
        let named = all.iter().filter(|r| self.id_of(r).is_ok_and(|other| other == id));
        let (mut references, mut digests) = (Vec::new(), Vec::new());
        for other in named {
            references.push(other.reference.clone());
            let named = other.reference.at(other.index.clone().unwrap_or_else(|| other.manifest.clone()));
            if other.from_registry && !digests.contains(&named) {
                digests.push(named);
            }
        }
        let disk = self.disk_of(&config.diff_ids);
        let size =
            size_of(&disk).map_err(|path| damaged(record, &format!("{} is missing", path.display())))?;
        Ok(Image {
            id,
            references,
            digests,
            manifest_digest: record.manifest.clone(),
            created: config.image.created().clone(),
            size,
            config: config.image,
            disk,
        })
    }

    /// The image of a record that was just written.
    pub(crate) fn image_named(&self, record: &TagRecord) -> Result<Image, StoreError> {
        self.image_of(record, &tags::list(&self.layout)?)
    }

    fn disk_of(&self, diff_ids: &[Digest]) -> ImageDisk {
        let layers = diff_ids.iter().map(|diff_id| self.layout.layer(diff_id)).collect();
        ImageDisk { index: self.layout.disk(diff_ids), layers }
    }
}

fn damaged(record: &TagRecord, reason: &str) -> StoreError {
    StoreError::Damaged { reference: Box::new(record.reference.clone()), reason: reason.to_owned() }
}

/// Bytes of all different parts of a disk, or the part that is missing.
fn size_of(disk: &ImageDisk) -> Result<u64, PathBuf> {
    let mut parts: Vec<&PathBuf> = std::iter::once(&disk.index).chain(&disk.layers).collect();
    parts.sort();
    parts.dedup();
    let length = |path: &PathBuf| fs::metadata(path).map(|m| m.len()).map_err(|_| path.clone());
    parts.into_iter().map(length).sum()
}

/// How a name fits the records.
enum Selection<'a> {
    None,
    /// By reference: these are the references meant.
    Named(Vec<&'a TagRecord>),
    /// By id: all references of one image.
    ById(Vec<&'a TagRecord>),
}

fn select<'a>(
    name: &str,
    records: &'a [TagRecord],
    id_of: impl Fn(&TagRecord) -> Result<Digest, StoreError>,
) -> Result<Selection<'a>, StoreError> {
    if let Ok(reference) = name.parse::<Reference>() {
        let wanted = reference.without_redundant_tag();
        let exact: Vec<_> = records.iter().filter(|r| r.reference == wanted).collect();
        if !exact.is_empty() {
            return Ok(Selection::Named(exact));
        }
        if let Some(digest) = wanted.digest() {
            let pulled = |r: &&TagRecord| r.reference.same_repository(&wanted) && r.resolves_to(digest);
            let named: Vec<_> = records.iter().filter(pulled).collect();
            return Ok(if named.is_empty() { Selection::None } else { Selection::Named(named) });
        }
    }
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    if prefix.is_empty() || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(Selection::None);
    }
    let mut ids: Vec<Digest> = Vec::new();
    let mut selected = Vec::new();
    for record in records {
        // A damaged image has no id to be found by; it is still found by its references.
        let Ok(id) = id_of(record) else { continue };
        if id.hex().starts_with(prefix) || record.manifest.hex() == prefix {
            selected.push(record);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    match ids.len() {
        0 => Ok(Selection::None),
        1 => Ok(Selection::ById(selected)),
        _ => Err(StoreError::AmbiguousId { prefix: name.to_owned(), ids }),
    }
}
