//! EROFS images: written from metadata trees, merged over layers, read back. Owns the on-disk format (as in the Linux
//! kernel's `fs/erofs/erofs_fs.h`) and nothing about tar or registries.
//!
//! A *layer blob* is a complete file system by itself, with overlayfs whiteouts. A *fused index* is the merged
//! metadata of several layers; `[index | blob 0 | blob 1 | ...]`, concatenated, is one file system whose files refer
//! to the blocks of the blobs. 4096-byte blocks, uncompressed. Linux mounts the concatenation since 6.4, the parts
//! as `device=` options since 5.16.

mod blocks;
mod directory;
mod format;
pub mod fuse;
pub mod reader;
pub(crate) mod resolve;
mod sidecar;
#[cfg(test)]
mod tests;
mod tree;
mod writer;
mod xattr;

pub(crate) use blocks::BlockWriter;
#[cfg(test)]
pub(crate) use format::mode;
pub(crate) use writer::{finish_layer, start_layer};
pub(crate) use xattr::split_name as split_xattr_name;

pub use fuse::{FuseError, FusedIndex, fuse_index};
pub use reader::{Disk, ReadError};
pub use sidecar::{LayerTree, SidecarError};
pub(crate) use tree::*;

/// Bytes per block; every part of a disk is a multiple of it.
pub const BLOCK_SIZE: u32 = 4096;

/// An image that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed, as with a full disk.
    #[error("cannot write the EROFS image: {0}")]
    Io(#[from] std::io::Error),
    /// More than 2^32 blocks (16 TiB).
    #[error("the image exceeds the 16 TiB that EROFS can address")]
    TooLarge,
}
