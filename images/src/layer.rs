//! One OCI layer: from its tar stream to an EROFS blob and a metadata tree, in one pass. Owns the tar parser, the
//! rules about names, links and whiteouts, and the limits; touches no path of the host, ever.
//!
//! Paths, links, devices and setuid bits of a layer are data in the blob; nothing is unpacked. So names are checked
//! for what they mean inside the image: a name that climbs above its root is refused, a symbolic link is followed
//! within it.

mod builder;
mod error;
mod limits;
mod path;
mod tar;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;

use self::builder::{Addition, Builder};
pub use self::error::{ConvertError, EntryName, LimitKind, TarFault};
pub use self::limits::Limits;
use self::path::Meaning;
use self::tar::{Entry, EntryKind, SparseMap, TarStream};
use crate::erofs::{
    BlockWriter, Device, Extent, Inode, Kind, LayerTree, Metadata, finish_layer, split_xattr_name,
    start_layer,
};

/// Names of overlayfs's own attributes: state of a mounted overlay, never content of an image.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";
/// What Linux allows for one file.
const XATTRS_MAX: usize = 64 << 10;
const MAJOR_MAX: u64 = (1 << 12) - 1;
const MINOR_MAX: u64 = (1 << 20) - 1;

/// Converts the uncompressed tar stream of a layer to an EROFS blob in the empty file `blob`. Reads `tar` to its end.
/// The file is not synced.
///
/// # Errors
/// See [`ConvertError`]; the blob is then useless.
pub fn convert_layer(tar: impl Read, blob: &File, limits: &Limits) -> Result<LayerTree, ConvertError> {
    let mut conversion = Conversion {
        limits,
        stream: TarStream::new(tar, limits),
        out: start_layer(blob),
        builder: Builder::new(limits),
        entries: 0,
        data_bytes: 0,
    };
    while let Some(entry) = conversion.stream.next_entry()? {
        conversion.convert(entry)?;
    }
    let tree = conversion.builder.finish();
    let written = finish_layer(&tree, conversion.out)?;
    Ok(LayerTree { tree, blob_blocks: written.blocks })
}

struct Conversion<'a, R> {
    limits: &'a Limits,
    stream: TarStream<R>,
    out: BlockWriter<'a>,
    builder: Builder<'a>,
    entries: u64,
    /// Bytes of file data so far.
    data_bytes: u64,
}

impl<R: Read> Conversion<'_, R> {
    fn convert(&mut self, entry: Entry) -> Result<(), ConvertError> {
        let Entry { name, mut metadata, kind } = entry;
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.limit(&name, LimitKind::Entries(self.limits.entries)));
        }
        let components = path::components(&name, self.limits)?;
        let meaning =
            path::meaning(&components).ok_or_else(|| ConvertError::InvalidWhiteout(EntryName::new(&name)))?;
        if !matches!(meaning, Meaning::Entry(..) | Meaning::Root) {
            // Only its name counts; the stream skips data that it may have.
            return self.builder.apply(&name, &meaning, Addition::Directory(metadata));
        }
        self.check_xattrs(&name, &mut metadata)?;

        let leaf = |kind| Addition::Leaf(Inode { metadata: metadata.clone(), kind });
        let target_components;
        let addition = match kind {
            EntryKind::Directory => Addition::Directory(metadata),
            EntryKind::File(size, sparse) => {
                let extent = self.copy_file(&name, size, sparse.as_ref())?;
                Addition::Leaf(Inode { metadata, kind: Kind::File(extent) })
            }
            EntryKind::HardLink(target) => {
                target_components = self.link_target(&name, target)?;
                let borrowed: Vec<&[u8]> = target_components.iter().map(AsRef::as_ref).collect();
                return self.builder.apply(&name, &meaning, Addition::Link(&borrowed));
            }
            EntryKind::Symlink(target) => {
                self.check_target(&name, &target)?;
                leaf(Kind::Symlink(target.into()))
            }
            EntryKind::CharDevice(0, 0) if let Meaning::Entry(parents, hidden) = meaning => {
                // How overlayfs itself spells a whiteout.
                return self.builder.apply(
                    &name,
                    &Meaning::Whiteout(parents, hidden),
                    Addition::Directory(metadata),
                );
            }
            EntryKind::CharDevice(major, minor) => leaf(Kind::CharDevice(device(&name, major, minor)?)),
            EntryKind::BlockDevice(major, minor) => leaf(Kind::BlockDevice(device(&name, major, minor)?)),
            EntryKind::Fifo => leaf(Kind::Fifo),
        };
        self.builder.apply(&name, &meaning, addition)
    }

    fn copy_file(
        &mut self,
        name: &[u8],
        size: u64,
        sparse: Option<&SparseMap>,
    ) -> Result<Extent, ConvertError> {
        if size > self.limits.file_bytes {
            return Err(self.limit(name, LimitKind::File(self.limits.file_bytes)));
        }
        self.data_bytes = self.data_bytes.saturating_add(size);
        if self.data_bytes > self.limits.data_bytes {
            return Err(self.limit(name, LimitKind::Data(self.limits.data_bytes)));
        }
        if size == 0 {
            return Ok(Extent { size, part: 0, start: 0 });
        }
        let start = self.out.block()?;
        self.stream.copy_file(size, sparse, &mut self.out)?;
        self.out.align().map_err(ConvertError::Write)?;
        Ok(Extent { size, part: 0, start })
    }

    /// The cleaned target of a hard link.
    fn link_target(&self, name: &[u8], target: Vec<u8>) -> Result<Vec<Box<[u8]>>, ConvertError> {
        self.check_target(name, &target)?;
        match path::components(&target, self.limits) {
            Ok(components) if !components.is_empty() => Ok(components.into_iter().map(Into::into).collect()),
            Ok(_) => Err(ConvertError::LinkToDirectory {
                entry: EntryName::new(name),
                target: EntryName(target.into()),
            }),
            Err(ConvertError::EscapesRoot(_)) => Err(ConvertError::LinkEscapesRoot {
                entry: EntryName::new(name),
                target: EntryName(target.into()),
            }),
            Err(error) => Err(error),
        }
    }

    fn check_target(&self, name: &[u8], target: &[u8]) -> Result<(), ConvertError> {
        if target.is_empty() || target.contains(&0) {
            return Err(ConvertError::InvalidLinkTarget(EntryName::new(name)));
        }
        if target.len() >= self.limits.path_bytes {
            return Err(self.limit(name, LimitKind::Path(self.limits.path_bytes)));
        }
        Ok(())
    }

    /// Keeps the attributes that EROFS can hold, as a file system that unpacks a layer does.
    fn check_xattrs(&self, name: &[u8], metadata: &mut Metadata) -> Result<(), ConvertError> {
        let bytes: usize = metadata.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len() + 8).sum();
        let largest = metadata.xattrs.iter().map(|xattr| xattr.value.len()).max();
        if bytes > self.limits.xattr_bytes.min(XATTRS_MAX) || largest > Some(usize::from(u16::MAX)) {
            return Err(self.limit(name, LimitKind::Xattrs(self.limits.xattr_bytes)));
        }
        if metadata.xattrs.iter().any(|xattr| xattr.name.contains(&0) || xattr.name.len() > 255) {
            return Err(ConvertError::InvalidXattr(EntryName::new(name)));
        }
        metadata.xattrs.retain(|xattr| {
            let kept = split_xattr_name(&xattr.name).is_some() && !xattr.name.starts_with(OVERLAY_XATTRS);
            if !kept {
                log::debug!("{}: left out attribute {}", EntryName::new(name), EntryName::new(&xattr.name));
            }
            kept
        });
        Ok(())
    }

    fn limit(&self, name: &[u8], limit: LimitKind) -> ConvertError {
        ConvertError::Limit { entry: EntryName::new(name), limit }
    }
}

fn device(name: &[u8], major: u64, minor: u64) -> Result<Device, ConvertError> {
    let number = |value, max| u32::try_from(value).ok().filter(|_| value <= max);
    match (number(major, MAJOR_MAX), number(minor, MINOR_MAX)) {
        (Some(major), Some(minor)) => Ok(Device { major, minor }),
        _ => Err(ConvertError::DeviceNumber { entry: EntryName::new(name), major, minor }),
    }
}
