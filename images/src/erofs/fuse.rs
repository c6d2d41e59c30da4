//! Merging layers into one index, with the semantics of OCI layers (image-spec, layer.md): whiteouts delete, opaque
//! directories hide, everything else replaces; directories merge.

use std::fs::File;

use super::resolve::{Resolved, resolve};
use super::tree::{Directory, Extent, Inode, InodeId, Kind, Origin, Tree, Visibility};
use super::{LayerTree, WriteError, writer};
use crate::layer::EntryName;

/// What [`fuse_index`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FusedIndex {
    /// Length of the index in blocks of [`BLOCK_SIZE`](super::BLOCK_SIZE).
    pub index_blocks: u32,
    /// Length of the whole disk, `[index | blobs]`, in blocks.
    pub disk_blocks: u32,
    /// Inodes in the merged tree.
    pub inodes: u64,
}

/// Layers that cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// The index cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// More layers than a disk has room for.
    #[error("an image cannot have {0} layers")]
    TooManyLayers(usize),
    /// A hard link whose target no lower layer has.
    #[error("layer {layer} has a hard link to {target}, which neither it nor a layer below has")]
    LinkTargetMissing {
        /// Number of the layer, 0 is the bottom.
        layer: u16,
        /// The target.
        target: EntryName,
    },
    /// A hard link to a directory of a lower layer.
    #[error("layer {layer} has a hard link to {target}, which is a directory")]
    LinkToDirectory {
        /// Number of the layer, 0 is the bottom.
        layer: u16,
        /// The target.
        target: EntryName,
    },
}

/// Merges `layers`, bottom first, and writes the index of `[index | blob 0 | blob 1 | ...]` to the empty file `index`.
/// The file is not synced.
///
/// # Errors
/// See [`FuseError`].
pub fn fuse_index(layers: &[LayerTree], index: &File) -> Result<FusedIndex, FuseError> {
    let merged = merge(layers.iter().map(|layer| &layer.tree))?;
    let part_blocks: Vec<u32> = layers.iter().map(|layer| layer.blob_blocks).collect();
    let written = writer::write_index(&merged, &part_blocks, index)?;
    let disk_blocks = part_blocks
        .iter()
        .try_fold(written.blocks, |sum, blocks| sum.checked_add(*blocks))
        .ok_or(WriteError::TooLarge)?;
    Ok(FusedIndex { index_blocks: written.blocks, disk_blocks, inodes: written.inodes })
}

/// The tree that a container sees. Its files name the layer that has their data.
pub(crate) fn merge<'a>(layers: impl ExactSizeIterator<Item = &'a Tree>) -> Result<Tree, FuseError> {
    let count = layers.len();
    let mut merged = Tree::new();
    for (number, layer) in layers.enumerate() {
        let part = u16::try_from(number).map_err(|_| FuseError::TooManyLayers(count))?;
        Merge::new(layer, part, &mut merged)?.run();
    }
    Ok(merged)
}

/// One layer on its way into the merged tree.
struct Merge<'a> {
    layer: &'a Tree,
    part: u16,
    merged: &'a mut Tree,
    /// Where the layer's inodes went, by their [`InodeId`]: hard links stay hard links.
    places: Vec<Option<InodeId>>,
}

impl<'a> Merge<'a> {
    /// Looks up the targets of links into lower layers, while those are as they were.
    fn new(layer: &'a Tree, part: u16, merged: &'a mut Tree) -> Result<Merge<'a>, FuseError> {
        let mut places = vec![None; layer.inodes.len()];
        for (place, inode) in places.iter_mut().zip(&layer.inodes) {
            let Kind::LowerLink(target) = &inode.kind else { continue };
            let missing = || FuseError::LinkTargetMissing { layer: part, target: EntryName::new(target) };
            let Resolved::Found(found) = resolve(merged, target) else { return Err(missing()) };
            if merged.inode(found).directory().is_some() {
                return Err(FuseError::LinkToDirectory { layer: part, target: EntryName::new(target) });
            }
            *place = Some(found);
        }
        Ok(Merge { layer, part, merged, places })
    }

    fn run(mut self) {
        let mut pending = vec![(InodeId::ROOT, InodeId::ROOT)];
        self.merge_directory(InodeId::ROOT, InodeId::ROOT);
        while let Some((upper, lower)) = pending.pop() {
            let Some(directory) = self.layer.inode(upper).directory() else { continue };
            for (name, &child) in &directory.entries {
                let place = match &self.layer.inode(child).kind {
                    Kind::Whiteout => None,
                    Kind::Directory(_) => {
                        let place = self.place_directory(child, self.merged.lookup(lower, name));
                        pending.push((child, place));
                        Some(place)
                    }
                    _ => Some(self.place(child)),
                };
                let Kind::Directory(target) = &mut self.merged.inode_mut(lower).kind else { continue };
                match place {
                    Some(place) => target.entries.insert(name.clone(), place),
                    None => target.entries.remove(name),
                };
            }
        }
    }

    /// The inode for a directory of the layer, given what is there already.
    fn place_directory(&mut self, upper: InodeId, existing: Option<InodeId>) -> InodeId {
        let lower = match existing {
            Some(id) if self.merged.inode(id).directory().is_some() => id,
            _ => self.push(Inode::implied_directory()),
        };
        self.merge_directory(upper, lower);
        lower
    }

    /// Lets the layer's directory change the merged one's metadata, or hide its entries.
    fn merge_directory(&mut self, upper: InodeId, lower: InodeId) {
        let upper = self.layer.inode(upper);
        let lower = self.merged.inode_mut(lower);
        let (Some(directory), Kind::Directory(target)) = (upper.directory(), &mut lower.kind) else { return };
        if directory.visibility == Visibility::Opaque {
            *target = Directory::new(target.origin, Visibility::Merged);
        }
        if directory.origin == Origin::Explicit {
            lower.metadata = upper.metadata.clone();
        }
    }

    /// The inode for anything else.
    fn place(&mut self, upper: InodeId) -> InodeId {
        if let Some(place) = self.places[upper.index()] {
            return place;
        }
        let mut inode = self.layer.inode(upper).clone();
        if let Kind::File(extent) = &mut inode.kind {
            *extent = Extent { part: self.part, ..*extent };
        }
        let place = self.push(inode);
        self.places[upper.index()] = Some(place);
        place
    }

    fn push(&mut self, inode: Inode) -> InodeId {
        self.merged.push(inode)
    }
}
