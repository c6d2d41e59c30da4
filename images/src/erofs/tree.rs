//! The metadata of a file tree in memory: inodes in one vector, directories that name them. The tar builder fills
//! it, the sidecar stores it, the fuser merges several, the writer turns one into EROFS metadata.

use std::collections::BTreeMap;

/// Position of an inode in [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InodeId(pub(crate) u32);

impl InodeId {
    /// The root directory of every tree.
    pub(crate) const ROOT: InodeId = InodeId(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// One name in a directory: not empty, no `/`, no NUL, at most 255 bytes, neither `.` nor `..`.
pub(crate) type Name = Box<[u8]>;

/// Seconds and nanoseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Time {
    /// Whole seconds, rounded down; negative before 1970.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999.
    pub(crate) nanoseconds: u32,
}

/// An extended attribute under its full Linux name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xattr {
    /// As in `security.capability`.
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// What inodes of every kind have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Metadata {
    /// Permission, setuid, setgid and sticky bits (07777).
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Sorted by name, each name once.
    pub(crate) xattrs: Vec<Xattr>,
}

/// Linux device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    /// Below 4096.
    pub(crate) major: u32,
    /// Below 2^20.
    pub(crate) minor: u32,
}

/// Where a directory's own metadata comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The layer has an entry for it.
    Explicit,
    /// It exists only because something lies below it: a directory of a lower layer keeps its metadata.
    Implied,
}

/// Whether a directory shows what lower layers have under the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    /// Merged with the lower directory.
    Merged,
    /// Hides the lower directory (`.wh..wh..opq`).
    Opaque,
}

/// The data of a regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes.
    pub(crate) size: u64,
    /// The layer whose blob has the data; 0 in the tree of a layer.
    pub(crate) part: u16,
    /// First block in that blob; 0 when the file is empty.
    pub(crate) start: u32,
}

/// A directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) entries: BTreeMap<Name, InodeId>,
    pub(crate) origin: Origin,
    pub(crate) visibility: Visibility,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory(Directory),
    File(Extent),
    Symlink(Box<[u8]>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Socket,
    /// The name is deleted from the layers below.
    Whiteout,
    /// A hard link to a path (clean, relative to the root) of the layers below.
    LowerLink(Box<[u8]>),
}

/// One inode; hard links are several names for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) metadata: Metadata,
    pub(crate) kind: Kind,
}

/// Inodes, the root first. Inodes that no directory names any more are dead and are never written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) inodes: Vec<Inode>,
}

impl Directory {
    pub(crate) fn new(origin: Origin, visibility: Visibility) -> Directory {
        Directory { entries: BTreeMap::new(), origin, visibility }
    }
}

impl Inode {
    /// A directory that the layer has no entry for: 0755, root's, empty.
    pub(crate) fn implied_directory() -> Inode {
        Inode {
            metadata: Metadata { permissions: 0o755, ..Metadata::default() },
            kind: Kind::Directory(Directory::new(Origin::Implied, Visibility::Merged)),
        }
    }

    pub(crate) fn directory(&self) -> Option<&Directory> {
        match &self.kind {
            Kind::Directory(directory) => Some(directory),
            Kind::File(_)
            | Kind::Symlink(_)
            | Kind::CharDevice(_)
            | Kind::BlockDevice(_)
            | Kind::Fifo
            | Kind::Socket
            | Kind::Whiteout
            | Kind::LowerLink(_) => None,
        }
    }
}

impl Tree {
    /// A tree that is only an implied root.
    pub(crate) fn new() -> Tree {
        Tree { inodes: vec![Inode::implied_directory()] }
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.index()]
    }

    /// Adds an inode, which no directory names yet.
    #[expect(clippy::cast_possible_truncation, reason = "memory ends long before 2^32 inodes")]
    pub(crate) fn push(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        InodeId((self.inodes.len() - 1) as u32)
    }

    /// What `directory` has under `name`; nothing when it is no directory.
    pub(crate) fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.inode(directory).directory()?.entries.get(name).copied()
    }
}
