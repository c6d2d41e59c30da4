//! What the shim has given out: directories and single files, each by a name in the root of the mount.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::fs::{ExportAccess, Name};
use nix::errno::Errno;

use super::sys;

/// The most exports of a pod.
pub const EXPORTS_MAX: usize = 256;

/// An export, by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExportId(u64);

/// A directory or a file that the guest may reach.
#[derive(Debug)]
pub struct Export {
    /// Its number.
    pub id: ExportId,
    /// Who may change it.
    pub access: ExportAccess,
    /// An `O_PATH` descriptor of it.
    pub root: OwnedFd,
}

/// Why something cannot be given out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not one component.
    #[error("the name of the export cannot be used")]
    Name(#[from] hull_protocol::fs::InvalidName),
    /// Twice the same name.
    #[error("there is an export of this name already")]
    Exists,
    /// More than [`EXPORTS_MAX`].
    #[error("there are {EXPORTS_MAX} exports already")]
    TooMany,
    /// A device, a socket, a pipe.
    #[error("neither a directory nor a regular file can be given out as an export")]
    Kind,
    /// The descriptor cannot be examined.
    #[error("the export's descriptor cannot be examined")]
    Examine(#[from] Errno),
}

/// All exports by name.
#[derive(Debug, Default)]
pub struct Exports {
    by_name: BTreeMap<Vec<u8>, Export>,
    next: u64,
}

impl Exports {
    /// Adds one.
    pub fn add(&mut self, name: &str, access: ExportAccess, root: OwnedFd) -> Result<(), ExportError> {
        let name = Name::new(name.as_bytes())?;
        let attributes = sys::attributes(root.as_fd())?;
        if !matches!(attributes.mode & libc::S_IFMT, libc::S_IFDIR | libc::S_IFREG) {
            return Err(ExportError::Kind);
        }
        if self.by_name.contains_key(name.as_bytes()) {
            return Err(ExportError::Exists);
        }
        if self.by_name.len() >= EXPORTS_MAX {
            return Err(ExportError::TooMany);
        }
        let id = ExportId(self.next);
        self.next += 1;
        self.by_name.insert(name.as_bytes().to_vec(), Export { id, access, root });
        Ok(())
    }

    /// Removes one.
    pub(super) fn remove(&mut self, name: &str) -> Option<ExportId> {
        self.by_name.remove(name.as_bytes()).map(|export| export.id)
    }

    /// By name.
    pub fn find(&self, name: &Name) -> Option<&Export> {
        self.by_name.get(name.as_bytes())
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Export)> {
        self.by_name.iter().map(|(name, export)| (name.as_slice(), export))
    }

    /// `EROFS` unless the export may be changed.
    pub fn check_writable(&self, id: ExportId) -> Result<(), Errno> {
        match self.by_name.values().find(|export| export.id == id).map(|export| export.access) {
            Some(ExportAccess::ReadWrite) => Ok(()),
            Some(ExportAccess::ReadOnly) => Err(Errno::EROFS),
            None => Err(Errno::ESTALE),
        }
    }
}
