//! The file broker's two conversations.
//!
//! *The monitor asks* ([`Request`], [`Reply`]): one `SOCK_SEQPACKET` socketpair, one [postcard] message a packet, at
//! most one file descriptor with a reply. Requests are answered one by one and in order, except [`Request::Forget`],
//! which has no answer; between answers the broker may take files back ([`Reply::Revoked`]). The monitor has parsed the guest's FUSE message; the broker believes neither: a [`Name`] is
//! checked where it is decoded, numbers where they are used.
//!
//! *The shim decides* ([`Control`], [`ControlReply`]): JSON messages with descriptors, as the monitor's control API.
//! What the broker can reach is what the shim gave it as an export, no more.
//!
//! [postcard]: https://docs.rs/postcard

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

mod channel;
mod name;
#[cfg(test)]
mod tests;

pub use channel::{BrokerChannel, ChannelError};
pub use name::{Bytes, InvalidName, Name};

/// The version of both conversations; another is refused in [`Request::Init`] and [`Control::Hello`].
pub const VERSION: u32 = 1;

/// Where the broker finds its end of the shim's socketpair.
pub const CONTROL_FD: RawFd = 3;

/// The longest message, in bytes: the largest extended attribute or directory listing, and what surrounds it.
pub const MESSAGE_MAX: usize = DATA_MAX + 1024;

/// The longest piece of data in a message: `XATTR_SIZE_MAX`, and the most of a directory that one reply lists.
pub const DATA_MAX: usize = 64 * 1024;

/// The longest name of a file (`NAME_MAX`) or of an extended attribute (`XATTR_NAME_MAX`), in bytes.
pub const NAME_MAX: usize = 255;

/// The longest target of a symbolic link, in bytes (`PATH_MAX` less its NUL).
pub const TARGET_MAX: usize = 4095;

/// An inode that the monitor holds, as FUSE's node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// The root of the mount, which lists one folder for each export (`FUSE_ROOT_ID`).
pub const ROOT: NodeId = NodeId(1);

/// An open file or directory, as FUSE's file handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HandleId(pub u64);

/// Who asks, in the guest's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

/// What the monitor asks. Flags and modes are Linux's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first message of each mount: everything that an earlier mount held is let go. Answer: `Done`.
    Init {
        /// [`VERSION`] as the monitor knows it.
        version: u32,
    },
    /// A name in a directory; the monitor holds the node once more. Answer: `Entry`.
    Lookup {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Name,
    },
    /// The monitor holds the node `count` times less. No answer.
    Forget {
        /// Which node.
        node: NodeId,
        /// How many times, as were counted by `Entry` answers.
        count: u64,
    },
    /// `stat(2)`. Answer: `Attributes`.
    GetAttributes {
        /// Which node.
        node: NodeId,
    },
    /// `chmod`, `chown`, `truncate`, `utimes`, in this order. Answer: `Attributes`.
    SetAttributes {
        /// Which node.
        node: NodeId,
        /// An open handle to truncate by.
        handle: Option<HandleId>,
        /// What to change.
        change: Change,
    },
    /// `access(2)`. Answer: `Done`.
    Access {
        /// Which node.
        node: NodeId,
        /// `R_OK`, `W_OK`, `X_OK`.
        mask: u32,
        /// Who asks.
        caller: Caller,
    },
    /// `readlink(2)`. Answer: `Data`.
    ReadLink {
        /// Which node.
        node: NodeId,
    },
    /// Makes a node that is no open file. Answer: `Entry`.
    Make {
        /// The directory.
        parent: NodeId,
        /// The new name.
        name: Name,
        /// What to make.
        what: Make,
        /// The owner.
        caller: Caller,
    },
    /// `open(2)` with `O_CREAT`. Answer: `Created` with the open file.
    Create {
        /// The directory.
        parent: NodeId,
        /// The name, or none for a file without (`O_TMPFILE`).
        name: Option<Name>,
        /// Of `open(2)`.
        flags: u32,
        /// Permission bits.
        mode: u32,
        /// The owner.
        caller: Caller,
    },
    /// `unlink(2)` or `rmdir(2)`. Answer: `Done`.
    Remove {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Name,
        /// What it must be.
        kind: Removal,
    },
    /// `renameat2(2)`. Answer: `Done`.
    Rename {
        /// The old directory.
        parent: NodeId,
        /// The old name.
        name: Name,
        /// The new directory.
        new_parent: NodeId,
        /// The new name.
        new_name: Name,
        /// `RENAME_NOREPLACE` or `RENAME_EXCHANGE`.
        flags: u32,
    },
    /// `link(2)`. Answer: `Entry`.
    Link {
        /// What to link.
        node: NodeId,
        /// The directory.
        new_parent: NodeId,
        /// The new name.
        new_name: Name,
    },
    /// `open(2)` of a regular file. Answer: `Opened` with the open file.
    Open {
        /// Which node.
        node: NodeId,
        /// Of `open(2)`.
        flags: u32,
    },
    /// `opendir(3)`. Answer: `Opened`; the descriptor stays with the broker.
    OpenDirectory {
        /// Which node.
        node: NodeId,
    },
    /// A piece of a directory. Answer: `Listing`.
    ReadDirectory {
        /// An open directory.
        handle: HandleId,
        /// [`ListedEntry::next`] of the entry before, or 0.
        offset: u64,
        /// Room for so many bytes of FUSE's directory entries.
        size: u32,
        /// What each entry comes with.
        detail: Detail,
    },
    /// `close(2)`. Answer: `Done`.
    Release {
        /// Which handle.
        handle: HandleId,
    },
    /// `fsync(2)`, `fdatasync(2)`. Answer: `Done`.
    Sync {
        /// Which handle.
        handle: HandleId,
        /// What must be on the disk.
        extent: SyncExtent,
    },
    /// `statfs(2)`. Answer: `FileSystem`.
    FileSystem {
        /// Which node.
        node: NodeId,
    },
    /// `setxattr(2)`. Answer: `Done`.
    SetXattr {
        /// Which node.
        node: NodeId,
        /// The attribute.
        name: Name,
        /// Its value.
        value: Bytes,
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
    },
    /// `getxattr(2)`. Answer: `Data`, or `Count` where `size` is 0.
    GetXattr {
        /// Which node.
        node: NodeId,
        /// The attribute.
        name: Name,
        /// Room for so many bytes.
        size: u32,
    },
    /// `listxattr(2)`. Answer: `Data`, or `Count` where `size` is 0.
    ListXattr {
        /// Which node.
        node: NodeId,
        /// Room for so many bytes.
        size: u32,
    },
    /// `removexattr(2)`. Answer: `Done`.
    RemoveXattr {
        /// Which node.
        node: NodeId,
        /// The attribute.
        name: Name,
    },
    /// `fallocate(2)`. Answer: `Done`.
    Allocate {
        /// An open file.
        handle: HandleId,
        /// `FALLOC_FL_*`.
        mode: u32,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
    },
    /// `lseek(2)` for data or a hole. Answer: `Count`.
    Seek {
        /// An open file.
        handle: HandleId,
        /// From where, in bytes.
        offset: u64,
        /// `SEEK_DATA` or `SEEK_HOLE`.
        whence: u32,
    },
    /// `copy_file_range(2)`. Answer: `Count`.
    Copy {
        /// An open file, and where in it.
        from: (HandleId, u64),
        /// An open file, and where in it.
        to: (HandleId, u64),
        /// How much, in bytes.
        length: u64,
    },
}

/// What [`Request::Make`] makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Make {
    /// `mknod(2)`: of what kind is in the mode; regular files, pipes and sockets are made.
    Node {
        /// Type and permission bits.
        mode: u32,
    },
    /// `mkdir(2)`.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// `symlink(2)`.
    Symlink {
        /// 1 to [`TARGET_MAX`] bytes, none of them NUL.
        target: Bytes,
    },
}

/// What [`Request::Remove`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Removal {
    Directory,
    NoDirectory,
}

/// What comes with each entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// The name only.
    Names,
    /// As if each name, except `.` and `..`, had been looked up too.
    Lookups,
}

/// What [`Request::Sync`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncExtent {
    /// Data, and what is needed to find it.
    Data,
    /// Everything.
    All,
}

/// Changes of attributes; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The host's time.
    Now,
    /// This.
    At(Time),
}

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// `struct stat`, without the device numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Attributes {
    pub ino: u64,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub block_size: u32,
}

/// A node that was found or made, which the monitor now holds once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Entry {
    pub node: NodeId,
    pub attributes: Attributes,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedEntry {
    /// The offset of the next entry.
    pub next: u64,
    /// The inode's number.
    pub ino: u64,
    /// `DT_*`.
    pub kind: u8,
    /// The name; `.` and `..` are listed too.
    pub name: Bytes,
    /// With [`Detail::Lookups`], unless the name is gone already.
    pub entry: Option<Entry>,
}

impl ListedEntry {
    /// Bytes of FUSE's form of an entry with a name of this length: `struct fuse_dirent`, or `struct fuse_direntplus`,
    /// padded to eight.
    pub fn fuse_length(name: usize, detail: Detail) -> usize {
        let head = match detail {
            Detail::Names => 24,
            Detail::Lookups => 24 + 128,
        };
        (head + name).next_multiple_of(8)
    }
}

/// `struct statfs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct FileSystem {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_max: u32,
}

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It failed with this `errno`.
    Error(i32),
    /// It is done.
    Done,
    /// A node.
    Entry(Entry),
    /// A node's attributes.
    Attributes(Attributes),
    /// An open file, whose descriptor comes with the reply, or an open directory, whose does not.
    Opened(HandleId),
    /// A new node and its open file, whose descriptor comes with the reply.
    Created(Entry, HandleId),
    /// Bytes.
    Data(Bytes),
    /// A count or a position.
    Count(u64),
    /// Entries of a directory; none at its end.
    Listing(Vec<ListedEntry>),
    /// Of the file system.
    FileSystem(FileSystem),
    /// No answer, and at any time: these files belong to an export that was taken away. The monitor closes them before it
    /// reads or writes again.
    Revoked(Vec<HandleId>),
}

/// The most handles of one [`Reply::Revoked`].
pub const REVOKED_MAX: usize = 4096;

/// Who may change what an export holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportAccess {
    /// Nobody: the broker refuses with `EROFS`.
    ReadOnly,
    /// The guest.
    ReadWrite,
}

/// What the shim tells the broker, before the VM runs and while it runs, with the file system mounted or not. The guest
/// finds an export that was added by looking it up in the root: nothing tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", content = "with", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// The first message.
    Hello {
        /// [`VERSION`] as the shim knows it.
        version: u32,
    },
    /// Serves a monitor. Descriptor: a `SOCK_SEQPACKET` socket whose other end the monitor has. Once only.
    Serve,
    /// Adds a folder to the root of the mount. Descriptor: the directory or the regular file, opened with `O_PATH`.
    AddExport {
        /// Its name in the root, a single component.
        name: String,
        /// Who may change it.
        access: ExportAccess,
    },
    /// Takes a folder away from the root. What the guest holds of it can no longer be used: open files neither, which the
    /// monitor closes at the guest's next request.
    RemoveExport {
        /// Its name.
        name: String,
    },
}

/// What the broker answers to the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "with", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlReply {
    /// It is done.
    Done,
    /// It is refused and nothing has changed; for a person.
    Failed(String),
}
