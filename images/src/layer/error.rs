//! Why a layer was refused. Each variant names the entry, so that the person who built the image can find it.

use std::fmt;
use std::io;

/// A name from a tar stream, shown with anything unprintable escaped.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(pub(crate) Box<[u8]>);

impl EntryName {
    pub(crate) fn new(name: &[u8]) -> EntryName {
        EntryName(name.into())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 256;
        write!(f, "\"{}\"", self.0[..self.0.len().min(SHOWN)].escape_ascii())?;
        if self.0.len() > SHOWN { f.write_str("...") } else { Ok(()) }
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The limit that a layer exceeded, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitKind {
    /// [`Limits::stream_bytes`](super::Limits::stream_bytes).
    #[error("the tar stream is longer than {0} bytes")]
    Stream(u64),
    /// [`Limits::data_bytes`](super::Limits::data_bytes).
    #[error("the files of the layer are larger than {0} bytes together")]
    Data(u64),
    /// [`Limits::file_bytes`](super::Limits::file_bytes).
    #[error("the file is larger than {0} bytes")]
    File(u64),
    /// [`Limits::entries`](super::Limits::entries).
    #[error("the layer has more than {0} entries")]
    Entries(u64),
    /// [`Limits::metadata_bytes`](super::Limits::metadata_bytes).
    #[error("names, link targets and extended attributes take more than {0} bytes")]
    Metadata(u64),
    /// [`Limits::depth`](super::Limits::depth).
    #[error("directories are nested deeper than {0}")]
    Depth(usize),
    /// [`Limits::path_bytes`](super::Limits::path_bytes).
    #[error("the path or link target is longer than {0} bytes")]
    Path(usize),
    /// A path component is longer than Linux allows.
    #[error("a name in the path is longer than {0} bytes")]
    Name(usize),
    /// [`Limits::xattr_bytes`](super::Limits::xattr_bytes).
    #[error("the extended attributes take more than {0} bytes")]
    Xattrs(usize),
    /// [`Limits::sparse_segments`](super::Limits::sparse_segments).
    #[error("the sparse file has more than {0} data segments")]
    SparseSegments(usize),
    /// An extended header record of the tar (PAX or GNU long name) is too long.
    #[error("an extended tar header is longer than {0} bytes")]
    ExtendedHeader(u64),
}

/// What is wrong with a tar header or with an extended header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TarFault {
    /// The header checksum does not match.
    #[error("header checksum mismatch")]
    Checksum,
    /// A block of zeros that is not followed by the end of the archive.
    #[error("a lone zero block in the middle of the archive")]
    LoneZeroBlock,
    /// A numeric field is neither octal nor base-256, or is out of range.
    #[error("bad {0} field")]
    Number(&'static str),
    /// A PAX record that does not follow `length key=value\n`, or whose value is malformed.
    #[error("malformed PAX record ({0})")]
    Pax(&'static str),
    /// A global PAX header that would change how entries are understood.
    #[error("global PAX header that changes entries")]
    GlobalPax,
    /// Two extended headers say different things about one entry.
    #[error("conflicting extended headers")]
    Conflict,
    /// An extended header with no entry after it.
    #[error("extended header without an entry")]
    Dangling,
    /// Data attached to an entry that is no regular file.
    #[error("data attached to an entry that is not a regular file")]
    UnexpectedData,
    /// A malformed map of a sparse file.
    #[error("malformed sparse file map")]
    Sparse,
    /// A type of entry that has no meaning in an image layer.
    #[error("unsupported entry type {:?}", char::from(*.0))]
    EntryType(u8),
}

/// A layer that cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Reading the tar stream failed (this includes failures of a decompressor below).
    #[error("cannot read the layer: {0}")]
    Read(#[source] io::Error),
    /// Writing the blob failed, as with a full disk.
    #[error("cannot write the layer blob: {0}")]
    Write(#[source] io::Error),
    /// The stream ended inside an entry.
    #[error("layer is truncated after {0} bytes")]
    Truncated(u64),
    /// The tar stream is malformed or ambiguous.
    #[error("bad tar entry {entry} at offset {offset}: {fault}")]
    Tar {
        /// The name as far as it is known.
        entry: EntryName,
        /// Position of the header in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        fault: TarFault,
    },
    /// A bound of [`Limits`](super::Limits) was exceeded.
    #[error("layer entry {entry} exceeds a limit: {limit}")]
    Limit {
        /// The entry at which it happened.
        entry: EntryName,
        /// Which limit.
        limit: LimitKind,
    },
    /// An empty name, or one with a NUL byte.
    #[error("layer entry {0} has an invalid name")]
    InvalidName(EntryName),
    /// A name or a hard link target that climbs above the root of the image.
    #[error("layer entry {0} escapes the root of the image with \"..\"")]
    EscapesRoot(EntryName),
    /// The hard link target climbs above the root of the image.
    #[error("hard link {entry} has a target outside the root of the image: {target}")]
    LinkEscapesRoot {
        /// The link.
        entry: EntryName,
        /// Its target.
        target: EntryName,
    },
    /// The root of the image was declared as something that is no directory.
    #[error("layer entry {0} replaces the root of the image by something that is not a directory")]
    RootNotDirectory(EntryName),
    /// A parent of the entry is a file, device or other non-directory.
    #[error("layer entry {0} lies below something that is not a directory")]
    ParentNotDirectory(EntryName),
    /// Too many symbolic links on the way to the entry.
    #[error("layer entry {0} lies below a loop of symbolic links")]
    SymlinkLoop(EntryName),
    /// A symbolic or hard link without a target, or with a NUL byte in it.
    #[error("link {0} has an invalid target")]
    InvalidLinkTarget(EntryName),
    /// A hard link to a directory.
    #[error("hard link {entry} refers to a directory: {target}")]
    LinkToDirectory {
        /// The link.
        entry: EntryName,
        /// Its target.
        target: EntryName,
    },
    /// A whiteout that names nothing, or the directory itself.
    #[error("layer entry {0} is not a valid whiteout")]
    InvalidWhiteout(EntryName),
    /// An extended attribute with an impossible name.
    #[error("layer entry {0} has an extended attribute with an invalid name")]
    InvalidXattr(EntryName),
    /// A device number that Linux cannot represent.
    #[error("device {entry} has an impossible number {major}:{minor}")]
    DeviceNumber {
        /// The entry.
        entry: EntryName,
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// The image would not fit EROFS's 32-bit block addresses.
    #[error(transparent)]
    Image(#[from] crate::erofs::WriteError),
}
