//! The broker's answers in FUSE's form.

use hull_protocol::fs::{Attributes, Detail, Entry, ListedEntry, Reply};
use hull_protocol::vmm::FsCache;

use super::fuse::{MAJOR, MINOR, OUT_HEADER, PAGES_MAX, TRANSFER_MAX, init, open};
use super::request::Init;

/// How long names and attributes are good for, in seconds.
fn seconds(cache: FsCache) -> u64 {
    match cache {
        FsCache::None => 0,
        FsCache::Auto => 1,
        FsCache::Always => 86_400,
    }
}

/// What was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// An answer being written, its header left for the end.
#[derive(Debug)]
pub struct Body {
    bytes: Vec<u8>,
    cache: FsCache,
}

impl Body {
    /// An empty answer.
    pub fn new(cache: FsCache) -> Self {
        Self { bytes: vec![0; OUT_HEADER], cache }
    }

    /// The answer with its header (`fuse_out_header`).
    pub fn finish(mut self, unique: u64) -> Vec<u8> {
        let header = header(self.bytes.len(), 0, unique);
        self.bytes[..OUT_HEADER].copy_from_slice(&header);
        self.bytes
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    /// What was asked for; `opened` is what the request opens, if it opens anything.
    pub fn reply(mut self, reply: &Reply, opened: Opened, detail: Detail) -> Self {
        match reply {
            Reply::Error(_) | Reply::Done | Reply::Revoked(_) => {}
            Reply::Entry(entry) => self.entry(Some(entry)),
            Reply::Attributes(attributes) => {
                let valid = seconds(self.cache);
                self.u64(valid).u64(0).attributes(attributes);
            }
            Reply::Opened(handle) => self.open(handle.0, opened),
            Reply::Created(entry, handle) => {
                self.entry(Some(entry));
                self.open(handle.0, opened);
            }
            Reply::Data(data) => self.bytes.extend_from_slice(&data.0),
            // A position of eight bytes; or a count of four, and four unused.
            Reply::Count(count) => {
                self.u64(*count);
            }
            Reply::Listing(entries) => entries.iter().for_each(|entry| self.listed(entry, detail)),
            Reply::FileSystem(stat) => {
                self.u64(stat.blocks).u64(stat.blocks_free).u64(stat.blocks_available);
                self.u64(stat.files).u64(stat.files_free);
                self.u32(stat.block_size).u32(stat.name_max).u32(stat.fragment_size);
                self.bytes.extend([0; 28]);
            }
        }
        self
    }

    /// `fuse_init_out`.
    pub fn init(mut self, guest: &Init) -> Self {
        let wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::INIT_EXT;
        let wanted = match self.cache {
            FsCache::None | FsCache::Auto => wanted | init::AUTO_INVAL_DATA,
            FsCache::Always => wanted,
        };
        let transfer = u32::try_from(TRANSFER_MAX).unwrap_or(u32::MAX);
        self.u32(MAJOR).u32(MINOR.min(guest.minor)).u32(guest.max_readahead.min(transfer));
        self.u32(guest.flags & wanted);
        // How much the guest does in the background: max_background and congestion_threshold.
        self.u32(64 | 48 << 16);
        // The largest write, and the granularity of times in nanoseconds.
        self.u32(transfer).u32(1);
        self.u32(u32::from(PAGES_MAX)).u32(guest.flags2 & init::DIRECT_IO_ALLOW_MMAP);
        self.bytes.extend([0; 28]);
        self
    }

    /// `write_out`.
    pub fn written(mut self, count: usize) -> Self {
        self.u64(count as u64);
        self
    }

    /// `fuse_entry_out`; all zero is an entry that was not looked up.
    fn entry(&mut self, entry: Option<&Entry>) {
        let Some(entry) = entry else { return self.bytes.extend([0; 128]) };
        let valid = seconds(self.cache);
        self.u64(entry.node.0).u64(0).u64(valid).u64(valid).u64(0).attributes(&entry.attributes);
    }

    /// `fuse_attr`. Device numbers are not shown: they would be the guest's own devices.
    fn attributes(&mut self, attributes: &Attributes) {
        let Attributes { ino, size, blocks, atime, mtime, ctime, mode, nlink, uid, gid, block_size } =
            *attributes;
        self.u64(ino).u64(size).u64(blocks);
        for time in [atime, mtime, ctime] {
            self.u64(time.seconds.cast_unsigned());
        }
        for time in [atime, mtime, ctime] {
            self.u32(time.nanoseconds);
        }
        self.u32(mode).u32(nlink).u32(uid).u32(gid).u32(0).u32(block_size).u32(0);
    }

    /// `fuse_open_out`.
    fn open(&mut self, handle: u64, opened: Opened) {
        let flags = match (self.cache, opened) {
            (FsCache::None, Opened::File) => open::DIRECT_IO,
            (FsCache::Auto, _) | (FsCache::None, Opened::Directory) => 0,
            (FsCache::Always, Opened::File) => open::KEEP_CACHE,
            (FsCache::Always, Opened::Directory) => open::KEEP_CACHE | open::CACHE_DIR,
        };
        self.u64(handle).u32(flags).u32(0);
    }

    /// `fuse_dirent`, or `fuse_direntplus`.
    fn listed(&mut self, listed: &ListedEntry, detail: Detail) {
        let start = self.bytes.len();
        if detail == Detail::Lookups {
            self.entry(listed.entry.as_ref());
        }
        let name = &listed.name.0;
        self.u64(listed.ino).u64(listed.next);
        self.u32(u32::try_from(name.len()).unwrap_or(0)).u32(u32::from(listed.kind));
        self.bytes.extend_from_slice(name);
        self.bytes.resize(start + ListedEntry::fuse_length(name.len(), detail), 0);
    }
}

/// `fuse_out_header`.
pub fn header(length: usize, errno: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
    header[4..8].copy_from_slice(&errno.wrapping_neg().to_le_bytes());
    header[8..].copy_from_slice(&unique.to_le_bytes());
    header
}
