//! FUSE's numbers and structures (Linux's `include/uapi/linux/fuse.h`, protocol 7.31 and later), all little-endian.

/// Bytes of `fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_write_in`.
pub const WRITE_IN: usize = 40;

/// The protocol's version.
pub const MAJOR: u32 = 7;
/// What this side knows of it.
pub const MINOR: u32 = 38;
/// The oldest that a guest may speak.
pub const MINOR_MIN: u32 = 31;

/// The most bytes that one read or write moves.
pub const TRANSFER_MAX: usize = 1 << 20;
/// The same in pages of 4096 bytes.
pub const PAGES_MAX: u16 = 256;

/// `enum fuse_opcode`, where it is answered with more than `ENOSYS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the protocol's.
pub enum Opcode {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Symlink,
    Mknod,
    Mkdir,
    Unlink,
    Rmdir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Statfs,
    Release,
    Fsync,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Init,
    Opendir,
    Readdir,
    Releasedir,
    Fsyncdir,
    Access,
    Create,
    Interrupt,
    Destroy,
    BatchForget,
    Fallocate,
    Readdirplus,
    Rename2,
    Lseek,
    CopyFileRange,
    Tmpfile,
}

impl Opcode {
    /// From the header. What is missing here is answered with `ENOSYS`, which the kernel remembers: locks (which it
    /// then keeps itself, among the pod's own processes), `FLUSH` (there is nothing to flush: no write waits here),
    /// `IOCTL`, `POLL`, `BMAP`, `SYNCFS`, `STATX`, and the mappings of a DAX window.
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::Lookup,
            2 => Self::Forget,
            3 => Self::Getattr,
            4 => Self::Setattr,
            5 => Self::Readlink,
            6 => Self::Symlink,
            8 => Self::Mknod,
            9 => Self::Mkdir,
            10 => Self::Unlink,
            11 => Self::Rmdir,
            12 => Self::Rename,
            13 => Self::Link,
            14 => Self::Open,
            15 => Self::Read,
            16 => Self::Write,
            17 => Self::Statfs,
            18 => Self::Release,
            20 => Self::Fsync,
            21 => Self::Setxattr,
            22 => Self::Getxattr,
            23 => Self::Listxattr,
            24 => Self::Removexattr,
            26 => Self::Init,
            27 => Self::Opendir,
            28 => Self::Readdir,
            29 => Self::Releasedir,
            30 => Self::Fsyncdir,
            34 => Self::Access,
            35 => Self::Create,
            36 => Self::Interrupt,
            38 => Self::Destroy,
            42 => Self::BatchForget,
            43 => Self::Fallocate,
            44 => Self::Readdirplus,
            45 => Self::Rename2,
            46 => Self::Lseek,
            47 => Self::CopyFileRange,
            51 => Self::Tmpfile,
            _ => return None,
        })
    }
}

/// `FUSE_INIT` flags that are taken where the guest offers them.
pub mod init {
    pub const ASYNC_READ: u32 = 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const INIT_EXT: u32 = 1 << 30;
    /// In the second word: shared mappings of files that are not cached.
    pub const DIRECT_IO_ALLOW_MMAP: u32 = 1 << 4;
}

/// `FATTR_*`: which fields of `fuse_setattr_in` count.
pub mod setattr {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// `FUSE_WRITE_CACHE`: the page cache writes, so the offset counts even where the file is open for appending.
pub const WRITE_CACHE: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
pub const FSYNC_DATA: u32 = 1;

/// `FOPEN_DIRECT_IO`, `FOPEN_KEEP_CACHE`, `FOPEN_CACHE_DIR`.
pub mod open {
    pub const DIRECT_IO: u32 = 1;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
}

/// `fuse_in_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the protocol's.
pub struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub nodeid: u64,
    pub uid: u32,
    pub gid: u32,
}

impl InHeader {
    /// From the front of a request.
    pub fn parse(bytes: &[u8; IN_HEADER]) -> Self {
        let mut fields = Fields(bytes);
        // As many bytes as are read: nothing can be missing.
        Self {
            len: fields.u32().unwrap_or(0),
            opcode: fields.u32().unwrap_or(0),
            unique: fields.u64().unwrap_or(0),
            nodeid: fields.u64().unwrap_or(0),
            uid: fields.u32().unwrap_or(0),
            gid: fields.u32().unwrap_or(0),
        }
    }
}

/// A message is read from its front, field by field; `None` where it is too short.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Passes over bytes.
    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    /// Bytes up to a NUL, which is passed over.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        let (string, rest) = (&self.0[..length], &self.0[length + 1..]);
        self.0 = rest;
        Some(string)
    }
}
