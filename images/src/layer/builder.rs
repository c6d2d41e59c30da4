//! Entries of a layer, in the order of the tar, become a metadata tree: parents are made, symbolic links on the way
//! are followed inside the tree, later entries replace earlier ones.

use super::path::Meaning;
use super::{ConvertError, EntryName, LimitKind, Limits};
use crate::erofs::resolve::{Resolved, Step, Walk, resolve};
use crate::erofs::{Directory, Inode, InodeId, Kind, Metadata, Name, Origin, Tree, Visibility};

/// A tree under construction.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    limits: &'a Limits,
    tree: Tree,
    /// Bytes counted against [`Limits::metadata_bytes`].
    metadata_bytes: u64,
}

/// What an entry adds to the tree.
#[derive(Debug)]
pub(super) enum Addition<'a> {
    Directory(Metadata),
    /// Anything that has no entries below it.
    Leaf(Inode),
    /// A hard link to this name, cleaned but not resolved.
    Link(&'a [&'a [u8]]),
}

impl<'a> Builder<'a> {
    pub(super) fn new(limits: &'a Limits) -> Builder<'a> {
        Builder { limits, tree: Tree::new(), metadata_bytes: 0 }
    }

    pub(super) fn finish(self) -> Tree {
        self.tree
    }

    /// Applies one entry.
    pub(super) fn apply(
        &mut self,
        entry: &[u8],
        meaning: &Meaning<'_>,
        addition: Addition<'_>,
    ) -> Result<(), ConvertError> {
        match *meaning {
            Meaning::Ignored => Ok(()),
            Meaning::Root => self.set_root(entry, addition),
            Meaning::Whiteout(parents, name) => {
                self.charge(entry, name.len())?;
                let parent = self.parent(entry, parents)?;
                self.whiteout(parent, name);
                Ok(())
            }
            Meaning::Opaque(parents) => {
                let parent = self.parent(entry, parents)?;
                if let Kind::Directory(directory) = &mut self.tree.inode_mut(parent).kind {
                    directory.visibility = Visibility::Opaque;
                }
                Ok(())
            }
            Meaning::Entry(parents, name) => {
                self.charge(entry, name.len() + addition_bytes(&addition))?;
                let parent = self.parent(entry, parents)?;
                match addition {
                    Addition::Directory(metadata) => self.add_directory(parent, name, metadata),
                    Addition::Leaf(inode) => {
                        let id = self.tree.push(inode);
                        self.insert(parent, name, id);
                    }
                    Addition::Link(target) => self.add_link(entry, parent, name, target)?,
                }
                Ok(())
            }
        }
    }

    fn set_root(&mut self, entry: &[u8], addition: Addition<'_>) -> Result<(), ConvertError> {
        self.charge(entry, addition_bytes(&addition))?;
        let Addition::Directory(metadata) = addition else {
            return Err(ConvertError::RootNotDirectory(EntryName::new(entry)));
        };
        self.set_directory(InodeId::ROOT, metadata);
        Ok(())
    }

    fn add_directory(&mut self, parent: InodeId, name: &[u8], metadata: Metadata) {
        let existing = self.tree.lookup(parent, name);
        match existing {
            Some(id) if self.tree.inode(id).directory().is_some() => self.set_directory(id, metadata),
            // What was there, or was deleted here, has taken the place of any lower directory.
            _ => {
                let visibility = if existing.is_some() { Visibility::Opaque } else { Visibility::Merged };
                let kind = Kind::Directory(Directory::new(Origin::Explicit, visibility));
                let id = self.tree.push(Inode { metadata, kind });
                self.insert(parent, name, id);
            }
        }
    }

    fn set_directory(&mut self, id: InodeId, metadata: Metadata) {
        let inode = self.tree.inode_mut(id);
        inode.metadata = metadata;
        if let Kind::Directory(directory) = &mut inode.kind {
            directory.origin = Origin::Explicit;
        }
    }

    /// A whiteout concerns the layers below alone (image-spec, layer.md): what this layer has stays.
    fn whiteout(&mut self, parent: InodeId, name: &[u8]) {
        let existing = self.tree.lookup(parent, name);
        let Some(id) = existing else {
            let id = self.tree.push(Inode { metadata: Metadata::default(), kind: Kind::Whiteout });
            return self.insert(parent, name, id);
        };
        if let Kind::Directory(directory) = &mut self.tree.inode_mut(id).kind {
            // The lower directory is gone, and its metadata with it.
            directory.visibility = Visibility::Opaque;
            directory.origin = Origin::Explicit;
        }
    }

    fn add_link(
        &mut self,
        entry: &[u8],
        parent: InodeId,
        name: &[u8],
        target: &[&[u8]],
    ) -> Result<(), ConvertError> {
        let path = target.join(&b'/');
        let id = match resolve(&self.tree, &path) {
            Resolved::Found(id) if self.tree.inode(id).directory().is_some() => {
                let (entry, target) = (EntryName::new(entry), EntryName::new(&path));
                return Err(ConvertError::LinkToDirectory { entry, target });
            }
            Resolved::Found(id) => id,
            Resolved::Missing(path) => {
                self.charge(entry, path.len())?;
                self.tree.push(Inode { metadata: Metadata::default(), kind: Kind::LowerLink(path) })
            }
            Resolved::NotDirectory => return Err(ConvertError::ParentNotDirectory(EntryName::new(&path))),
            Resolved::Loop => return Err(ConvertError::SymlinkLoop(EntryName::new(&path))),
        };
        self.insert(parent, name, id);
        Ok(())
    }

    fn insert(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        if let Kind::Directory(directory) = &mut self.tree.inode_mut(parent).kind {
            directory.entries.insert(name.into(), id);
        }
    }

    /// The directory that these components lead to; what is missing is made.
    fn parent(&mut self, entry: &[u8], components: &[&[u8]]) -> Result<InodeId, ConvertError> {
        let mut walk = Walk::new(components.iter().copied());
        loop {
            let (directory, name) = match walk.step() {
                Step::Done(directory) => return Ok(directory),
                Step::Look(directory, name) => (directory, name),
            };
            let child = self.tree.lookup(directory, &name);
            match child.map(|id| (id, &self.tree.inode(id).kind)) {
                Some((id, Kind::Directory(_))) => walk.enter(name, id),
                Some((_, Kind::Symlink(target))) => {
                    walk.follow(target).map_err(|_| ConvertError::SymlinkLoop(EntryName::new(entry)))?;
                }
                None => {
                    let id = self.imply(entry, directory, &name)?;
                    walk.enter(name, id);
                }
                Some((_, Kind::Whiteout)) => {
                    let id = self.imply(entry, directory, &name)?;
                    self.whiteout(directory, &name);
                    walk.enter(name, id);
                }
                Some(_) => return Err(ConvertError::ParentNotDirectory(EntryName::new(entry))),
            }
            if walk.depth() > self.limits.depth {
                let limit = LimitKind::Depth(self.limits.depth);
                return Err(ConvertError::Limit { entry: EntryName::new(entry), limit });
            }
        }
    }

    fn imply(&mut self, entry: &[u8], parent: InodeId, name: &Name) -> Result<InodeId, ConvertError> {
        self.charge(entry, name.len())?;
        let id = self.tree.push(Inode::implied_directory());
        self.insert(parent, name, id);
        Ok(id)
    }

    /// Counts memory that the layer makes us keep, with the fixed cost of an inode.
    fn charge(&mut self, entry: &[u8], bytes: usize) -> Result<(), ConvertError> {
        self.metadata_bytes += (bytes + size_of::<Inode>()) as u64;
        if self.metadata_bytes > self.limits.metadata_bytes {
            let limit = LimitKind::Metadata(self.limits.metadata_bytes);
            return Err(ConvertError::Limit { entry: EntryName::new(entry), limit });
        }
        Ok(())
    }
}

fn addition_bytes(addition: &Addition<'_>) -> usize {
    let xattrs = |metadata: &Metadata| metadata.xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
    match addition {
        Addition::Directory(metadata) => xattrs(metadata),
        Addition::Leaf(inode) => match &inode.kind {
            Kind::Symlink(target) => target.len() + xattrs(&inode.metadata),
            _ => xattrs(&inode.metadata),
        },
        Addition::Link(_) => 0,
    }
}
