//! What can go wrong with the store, one clear sentence each.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::reference::Reference;

/// The store cannot do what was asked. `Display` is one sentence that stands alone.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("no space left on the disk of the image store (writing {}): free some, or remove images with hull rmi", .path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// Any other failure of the file system.
    #[error("the image store cannot use {}: {source}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An image's files are missing or changed.
    #[error("the image {reference} is damaged ({reason}): pull it again")]
    Damaged {
        /// Which image.
        reference: Box<Reference>,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing by that name.
    #[error("no such image: {name}")]
    NoSuchImage {
        /// What was asked for.
        name: String,
    },
    /// A prefix of several ids.
    #[error("{prefix} is the beginning of {} image ids ({}): give more digits", .ids.len(), list(.ids.iter().map(Digest::short)))]
    AmbiguousId {
        /// What was asked for.
        prefix: String,
        /// All ids that begin so.
        ids: Vec<Digest>,
    },
    /// An id with names in several repositories is only removed name by name, or all at once on purpose.
    #[error("the image {name} is in several repositories ({}): remove it by name, or by force", list(.references.iter().map(ToString::to_string)))]
    SeveralRepositories {
        /// What was asked for.
        name: String,
        /// All its references.
        references: Vec<Reference>,
    },
}

fn list<T: AsRef<str>>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<T> = items.collect();
    items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

/// True if the file system or the user's quota is exhausted.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl StoreError {
    /// Types a failure of the file system.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_full(&source) { Self::NoSpace { path } } else { Self::Io { path, source } }
    }
}
