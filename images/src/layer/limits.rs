//! What a layer may cost at most. A layer comes from a stranger; every quantity that it controls has a bound here.

/// Upper bounds for one layer. [`Limits::default`] admits every layer that is built in practice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the whole uncompressed tar stream, headers and padding included.
    pub stream_bytes: u64,
    /// Bytes of file data in the blob, holes of sparse files included.
    pub data_bytes: u64,
    /// Bytes of one file, holes included.
    pub file_bytes: u64,
    /// Entries of the tar, whiteouts and replaced entries included.
    pub entries: u64,
    /// Bytes of names, link targets and extended attributes that are kept in memory.
    pub metadata_bytes: u64,
    /// Directories between the root and an entry, counted where the entry lands.
    pub depth: usize,
    /// Bytes of a path or of a link target.
    pub path_bytes: usize,
    /// Bytes of all extended attributes of one entry, names included. At most 64 KiB, as in Linux.
    pub xattr_bytes: usize,
    /// Data segments of one sparse file.
    pub sparse_segments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Limits {
            stream_bytes: 256 * GIB,
            data_bytes: 256 * GIB,
            file_bytes: 128 * GIB,
            entries: 2_000_000,
            metadata_bytes: GIB / 2,
            depth: 1024,
            path_bytes: 4096,
            xattr_bytes: 64 * 1024,
            sparse_segments: 1 << 20,
        }
    }
}
