//! The metadata of a layer as a file beside its blob, so that fusing needs no blob. A compact binary format: a magic
//! number with the version, the inodes parents first, a checksum. What is read back is checked as if a stranger had
//! written it: a damaged file is an error, never a wrong image.

mod codec;

use std::io::{self, Read, Write};

use self::codec::{Decoder, Encoder};
use super::format::NAME_MAX;
use super::tree::{Device, Directory, Extent, Inode, InodeId, Kind, Metadata, Name, Origin, Time, Tree};
use super::tree::{Visibility, Xattr};
use super::{BLOCK_SIZE, xattr};

/// The last byte is the version.
const MAGIC: [u8; 8] = *b"hullidx\x01";
/// Above what [`Limits::default`](crate::layer::Limits) can produce.
const SIZE_MAX: u64 = 1 << 30;
const PATH_MAX: usize = 64 << 10;

/// Everything about a layer but the data of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTree {
    pub(crate) tree: Tree,
    pub(crate) blob_blocks: u32,
}

/// A sidecar that cannot be used; converting the layer again makes a new one.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// Reading or writing failed.
    #[error("cannot access the layer's metadata file: {0}")]
    Io(#[from] io::Error),
    /// Made by another version of this program.
    #[error("the layer's metadata file has another format version")]
    Version,
    /// Damaged.
    #[error("the layer's metadata file is damaged: {0}")]
    Corrupt(&'static str),
}

impl LayerTree {
    /// Length of the blob in blocks of [`BLOCK_SIZE`](super::BLOCK_SIZE); a blob file of another length is not the
    /// one this tree describes.
    #[must_use]
    pub fn blob_blocks(&self) -> u32 {
        self.blob_blocks
    }

    /// Writes the sidecar.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), SidecarError> {
        let (order, numbers) = number_inodes(&self.tree);
        let mut encoder = Encoder::default();
        encoder.raw(&MAGIC);
        encoder.number(self.blob_blocks.into());
        encoder.number(order.len() as u64);
        for id in order {
            encode_inode(self.tree.inode(id), &numbers, &mut encoder);
        }
        let mut bytes = encoder.finish();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        out.write_all(&bytes)?;
        Ok(())
    }

    /// Reads a sidecar and checks everything in it.
    ///
    /// # Errors
    /// See [`SidecarError`].
    pub fn read_from(input: &mut impl Read) -> Result<LayerTree, SidecarError> {
        let mut bytes = Vec::new();
        input.take(SIZE_MAX).read_to_end(&mut bytes)?;
        let Some(rest) = bytes.strip_prefix(&MAGIC) else {
            let ours = bytes.starts_with(&MAGIC[..7]);
            return Err(if ours { SidecarError::Version } else { SidecarError::Corrupt("no magic number") });
        };
        let Some((body, checksum)) = rest.split_last_chunk::<4>() else {
            return Err(SidecarError::Corrupt("cut off"));
        };
        if crc32c::crc32c(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*checksum) {
            return Err(SidecarError::Corrupt("checksum mismatch"));
        }
        decode(body).map_err(SidecarError::Corrupt)
    }
}

/// The live inodes, the root first and every directory before what it names; and the place of each in that order.
fn number_inodes(tree: &Tree) -> (Vec<InodeId>, Vec<u32>) {
    const UNSEEN: u32 = u32::MAX;
    let mut numbers = vec![UNSEEN; tree.inodes.len()];
    let mut order = vec![InodeId::ROOT];
    numbers[0] = 0;
    let (mut next, mut next_number) = (0, 1);
    while let Some(&id) = order.get(next) {
        next += 1;
        for child in tree.inode(id).directory().into_iter().flat_map(|directory| directory.entries.values()) {
            if numbers[child.index()] == UNSEEN {
                numbers[child.index()] = next_number;
                next_number += 1;
                order.push(*child);
            }
        }
    }
    (order, numbers)
}

fn encode_inode(inode: &Inode, numbers: &[u32], out: &mut Encoder) {
    let metadata = &inode.metadata;
    out.number(metadata.permissions.into());
    out.number(metadata.uid.into());
    out.number(metadata.gid.into());
    out.raw(&metadata.mtime.seconds.to_le_bytes());
    out.number(metadata.mtime.nanoseconds.into());
    out.number(metadata.xattrs.len() as u64);
    for xattr in &metadata.xattrs {
        out.bytes(&xattr.name);
        out.bytes(&xattr.value);
    }
    match &inode.kind {
        Kind::Directory(directory) => {
            out.number(0);
            out.number((directory.origin == Origin::Implied).into());
            out.number((directory.visibility == Visibility::Opaque).into());
            out.number(directory.entries.len() as u64);
            for (name, child) in &directory.entries {
                out.bytes(name);
                out.number(numbers[child.index()].into());
            }
        }
        Kind::File(extent) => {
            out.number(1);
            out.number(extent.size);
            out.number(extent.start.into());
        }
        Kind::Symlink(target) => {
            out.number(2);
            out.bytes(target);
        }
        Kind::CharDevice(device) => encode_device(3, *device, out),
        Kind::BlockDevice(device) => encode_device(4, *device, out),
        Kind::Fifo => out.number(5),
        Kind::Socket => out.number(6),
        Kind::Whiteout => out.number(7),
        Kind::LowerLink(target) => {
            out.number(8);
            out.bytes(target);
        }
    }
}

fn encode_device(tag: u64, device: Device, out: &mut Encoder) {
    out.number(tag);
    out.number(device.major.into());
    out.number(device.minor.into());
}

fn decode(body: &[u8]) -> Result<LayerTree, &'static str> {
    let mut input = Decoder::new(body);
    let blob_blocks = input.number(u32::MAX, "blob length")?;
    // Every inode takes at least a dozen bytes.
    let count: usize = input.number(body.len() / 12, "inode count")?;
    if count == 0 {
        return Err("no root");
    }
    let mut inodes = Vec::with_capacity(count);
    let mut named = vec![false; count];
    named[0] = true;
    for number in 0..count {
        if !named[number] {
            return Err("inode without a name");
        }
        let inode = decode_inode(&mut input, number, &mut named, blob_blocks)?;
        inodes.push(inode);
    }
    if !input.is_empty() {
        return Err("trailing bytes");
    }
    let tree = Tree { inodes };
    check_directories(&tree)?;
    Ok(LayerTree { tree, blob_blocks })
}

/// A directory has one name. Its parent comes before it, so there is no cycle either.
fn check_directories(tree: &Tree) -> Result<(), &'static str> {
    let mut seen = vec![false; tree.inodes.len()];
    seen[0] = true;
    if tree.inode(InodeId::ROOT).directory().is_none() {
        return Err("root is not a directory");
    }
    for child in tree.inodes.iter().filter_map(Inode::directory).flat_map(|dir| dir.entries.values()) {
        let again = std::mem::replace(&mut seen[child.index()], true);
        if again && tree.inode(*child).directory().is_some() {
            return Err("directory with two names");
        }
    }
    Ok(())
}

fn decode_inode(
    input: &mut Decoder<'_>,
    number: usize,
    named: &mut [bool],
    blob_blocks: u32,
) -> Result<Inode, &'static str> {
    let metadata = decode_metadata(input)?;
    let kind = match input.number(8_u8, "kind")? {
        0 => Kind::Directory(decode_directory(input, number, named)?),
        1 => Kind::File(decode_extent(input, blob_blocks)?),
        2 => Kind::Symlink(nonempty(input.bytes(PATH_MAX, "link target")?)?),
        3 => Kind::CharDevice(decode_device(input)?),
        4 => Kind::BlockDevice(decode_device(input)?),
        5 => Kind::Fifo,
        6 => Kind::Socket,
        7 => Kind::Whiteout,
        _ => Kind::LowerLink(nonempty(input.bytes(PATH_MAX, "link target")?)?),
    };
    Ok(Inode { metadata, kind })
}

fn nonempty(bytes: &[u8]) -> Result<Box<[u8]>, &'static str> {
    if bytes.is_empty() || bytes.contains(&0) { Err("link target") } else { Ok(bytes.into()) }
}

fn decode_metadata(input: &mut Decoder<'_>) -> Result<Metadata, &'static str> {
    let permissions = input.number(0o7777, "mode")?;
    let uid = input.number(u32::MAX, "uid")?;
    let gid = input.number(u32::MAX, "gid")?;
    let seconds = i64::from_le_bytes(input.array()?);
    let nanoseconds = input.number(999_999_999, "time")?;
    let mut xattrs: Vec<Xattr> = Vec::new();
    let mut total = 0;
    for _ in 0..input.number(64_u32 << 10, "attribute count")? {
        let name: Box<[u8]> = input.bytes(NAME_MAX, "attribute name")?.into();
        let value: Box<[u8]> = input.bytes(u16::MAX.into(), "attribute value")?.into();
        let ordered = xattrs.last().is_none_or(|last| last.name < name);
        if !ordered || name.contains(&0) || xattr::split_name(&name).is_none() {
            return Err("attribute name");
        }
        total += name.len() + value.len() + 8;
        xattrs.push(Xattr { name, value });
    }
    if total > 64 << 10 {
        return Err("too many attributes");
    }
    Ok(Metadata { permissions, uid, gid, mtime: Time { seconds, nanoseconds }, xattrs })
}

fn decode_directory(
    input: &mut Decoder<'_>,
    number: usize,
    named: &mut [bool],
) -> Result<Directory, &'static str> {
    let origin = if input.number(1_u8, "origin")? == 1 { Origin::Implied } else { Origin::Explicit };
    let visibility =
        if input.number(1_u8, "visibility")? == 1 { Visibility::Opaque } else { Visibility::Merged };
    let mut entries: Vec<(Name, InodeId)> = Vec::new();
    for _ in 0..input.number(u32::MAX, "entry count")? {
        let name: Name = input.bytes(NAME_MAX, "name")?.into();
        let forbidden =
            matches!(&*name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if forbidden || entries.last().is_some_and(|(last, _)| *last >= name) {
            return Err("name");
        }
        let child: u32 = input.number(u32::MAX, "entry")?;
        let child = InodeId(child);
        // Parents first: so there is no cycle.
        let Some(named) = named.get_mut(child.index()).filter(|_| child.index() > number) else {
            return Err("entry");
        };
        *named = true;
        entries.push((name, child));
    }
    Ok(Directory { entries: entries.into_iter().collect(), origin, visibility })
}

fn decode_extent(input: &mut Decoder<'_>, blob_blocks: u32) -> Result<Extent, &'static str> {
    let size = input.number(u64::MAX, "size")?;
    let start: u32 = input.number(blob_blocks, "start")?;
    let end = u64::from(start) + size.div_ceil(BLOCK_SIZE.into());
    if end > blob_blocks.into() || (size == 0) != (start == 0) {
        return Err("file outside the blob");
    }
    Ok(Extent { size, part: 0, start })
}

fn decode_device(input: &mut Decoder<'_>) -> Result<Device, &'static str> {
    let major = input.number((1 << 12) - 1, "device")?;
    let minor = input.number((1 << 20) - 1, "device")?;
    Ok(Device { major, minor })
}
