//! The members of an OCI layout directory or of an archive, by name.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LoadError;
use crate::compression::Decoder;
use crate::digest::{Digest, HashingReader};
use crate::store::{Layout, StoreError, TempFile};

/// Most members of an archive.
const MAX_MEMBERS: usize = 100_000;
/// Most links from one member to another.
const MAX_LINKS: usize = 8;

/// Where the members are.
pub(super) struct Archive {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Directory,
    Tar {
        file: Arc<File>,
        members: HashMap<String, Member>,
        /// The decompressed copy, if the archive was compressed or came through a pipe.
        _spool: Option<TempFile>,
    },
}

enum Member {
    Data { at: u64, size: u64 },
    Link(String),
}

/// A part of a file as a stream; several can be read at once.
pub(super) struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Section {
    pub(super) fn size(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let window = buffer.len().min(left);
        if window == 0 {
            return Ok(0);
        }
        let n = self.file.read_at(&mut buffer[..window], self.at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Archive {
    /// Opens a directory as it is; indexes an archive, decompressing it first if need be.
    pub(super) fn open(path: &Path, layout: &Layout) -> Result<Self, LoadError> {
        let unreadable = |source| LoadError::Read { path: path.to_owned(), source };
        if fs::metadata(path).map_err(unreadable)?.is_dir() {
            return Ok(Self { path: path.to_owned(), kind: Kind::Directory });
        }
        let file = File::open(path).map_err(unreadable)?;
        let seekable = file.metadata().map_err(unreadable)?.is_file();
        let again = file.try_clone().map_err(unreadable)?;
        let decoder = Decoder::new(BufReader::with_capacity(1 << 18, file)).map_err(unreadable)?;
        let (file, spool) = if seekable && matches!(decoder, Decoder::Plain(_)) {
            (again, None)
        } else {
            let spool = spool(decoder, layout, path)?;
            let file = spool.file().try_clone().map_err(|e| StoreError::io(spool.path(), e))?;
            (file, Some(spool))
        };
        let members = index(&file, path)?;
        Ok(Self { path: path.to_owned(), kind: Kind::Tar { file: Arc::new(file), members, _spool: spool } })
    }

    /// True if there is a member of that name.
    pub(super) fn contains(&self, name: &str) -> bool {
        matches!(self.find(name), Ok(Some(_)))
    }

    /// A member's content, or `None`.
    pub(super) fn find(&self, name: &str) -> Result<Option<Section>, LoadError> {
        if !is_safe(name) {
            return Err(LoadError::UnsafeName { name: name.to_owned() });
        }
        match &self.kind {
            Kind::Directory => self.find_file(name),
            Kind::Tar { file, members, .. } => {
                let mut name = name.to_owned();
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        Some(Member::Data { at, size }) => {
                            return Ok(Some(Section { file: Arc::clone(file), at: *at, end: at + size }));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    fn find_file(&self, name: &str) -> Result<Option<Section>, LoadError> {
        let path = self.path.join(name);
        let unreadable = |source| LoadError::Read { path: path.clone(), source };
        // Asked before opening: opening a fifo would wait for ever.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                let file = File::open(&path).map_err(unreadable)?;
                Ok(Some(Section { file: Arc::new(file), at: 0, end: metadata.len() }))
            }
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(unreadable(e)),
        }
    }

    /// The whole of a small member.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, LoadError> {
        let section = self.find(name)?.ok_or_else(|| LoadError::Missing { name: name.to_owned() })?;
        if section.size() > limit {
            return Err(LoadError::TooLarge { name: name.to_owned(), limit });
        }
        let mut bytes = Vec::new();
        let path = self.path.join(name);
        section.take(limit).read_to_end(&mut bytes).map_err(|source| LoadError::Read { path, source })?;
        Ok(bytes)
    }

    /// The whole of a small blob of an OCI layout, verified.
    pub(super) fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, LoadError> {
        let name = blob_name(digest);
        let bytes = self.read(&name, limit)?;
        let mut hashing = HashingReader::new(&bytes[..], digest.algorithm());
        let path = self.path.join(&name);
        io::copy(&mut hashing, &mut io::sink()).map_err(|source| LoadError::Read { path, source })?;
        let got = hashing.finish();
        if got == *digest { Ok(bytes) } else { Err(LoadError::DigestMismatch { name, got }) }
    }
}

/// Where an OCI layout keeps a blob (image-layout.md).
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Only plain relative names without surprises.
fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && !name.contains('\0')
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Writes the decompressed archive into the store's tmp/, where it has no name of its own choosing.
fn spool(mut decoder: impl Read, layout: &Layout, path: &Path) -> Result<TempFile, LoadError> {
    let spool = layout.temp_file()?;
    let mut buffer = vec![0; 1 << 18];
    let mut at = 0;
    loop {
        let n = match decoder.read(&mut buffer) {
            Ok(0) => return Ok(spool),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(LoadError::Read { path: path.to_owned(), source }),
        };
        spool.file().write_all_at(&buffer[..n], at).map_err(|e| StoreError::io(spool.path(), e))?;
        at += n as u64;
    }
}

/// Finds the members of a tar archive. A later member replaces an earlier one of the same name, as extracting would.
fn index(file: &File, path: &Path) -> Result<HashMap<String, Member>, LoadError> {
    let unreadable = |source| LoadError::Read { path: path.to_owned(), source };
    let mut file = file;
    io::Seek::rewind(&mut file).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let mut members = HashMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if members.len() == MAX_MEMBERS {
            return Err(LoadError::TooManyMembers { limit: MAX_MEMBERS });
        }
        let kind = entry.header().entry_type();
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        let name = normalised(&raw).ok_or(LoadError::UnsafeName { name: raw })?;
        let member = if kind.is_file() {
            let (at, size) = (entry.raw_file_position(), entry.size());
            if at.checked_add(size).is_none_or(|end| end > length) {
                return Err(unreadable(io::ErrorKind::UnexpectedEof.into()));
            }
            Member::Data { at, size }
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let target = String::from_utf8_lossy(&target).into_owned();
            let base =
                if kind.is_symlink() { name.rsplit_once('/').map_or("", |(folder, _)| folder) } else { "" };
            // A link that leaves the archive leads to nothing.
            let Some(target) = joined(base, &target) else { continue };
            Member::Link(target)
        } else {
            continue;
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// A member's name without `./`, or `None` if it is not safe.
fn normalised(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('/').filter(|part| *part != "." && !part.is_empty()).collect();
    let name_is_safe = !name.starts_with('/') && is_safe(&parts.join("/"));
    name_is_safe.then(|| parts.join("/"))
}

/// Resolves a link target against the folder of the link, within the archive.
fn joined(base: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            other => parts.push(other),
        }
    }
    normalised(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(normalised("./a/b").as_deref(), Some("a/b"));
        for bad in ["../a", "/etc/passwd", "a/../../b", "a/..", "", ".", "a\0b"] {
            assert_eq!(normalised(bad), None, "{bad:?}");
        }
        assert_eq!(joined("x/y", "../z/layer.tar").as_deref(), Some("x/z/layer.tar"));
        assert_eq!(joined("x", "../../z"), None);
        assert_eq!(joined("x", "/z"), None);
    }
}
