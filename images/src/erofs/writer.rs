//! From a metadata tree to EROFS metadata: a plan that places every inode, then one sequential pass that writes
//! directory blocks, inodes and, last, the superblock. The same tree always gives the same bytes.

use std::collections::HashMap;
use std::fs::File;

use sha2::{Digest, Sha256};

use super::blocks::BlockWriter;
use super::directory::{self, Dirent};
use super::format::{
    DeviceSlot, DiskInode, INODE_SLOT, Layout, Superblock, dirent_type, encode_device, encode_header,
    header_blocks, mode,
};
use super::tree::{Device, Extent, Inode, InodeId, Kind, Time, Tree, Visibility, Xattr};
use super::{BLOCK_SIZE, WriteError, xattr};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Slot 0 stays empty: inode number 0 means "no file" to some programs.
const FIRST_INODE: u64 = INODE_SLOT;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) blocks: u32,
    pub(crate) inodes: u64,
}

/// Starts a layer blob: the file data goes to the writer, then [`finish_layer`] adds the metadata.
pub(crate) fn start_layer(blob: &File) -> BlockWriter<'_> {
    BlockWriter::new(blob, header_blocks(0))
}

/// Completes a layer blob with the metadata of `tree`, whose files are in the blocks written so far.
pub(crate) fn finish_layer(tree: &Tree, data: BlockWriter<'_>) -> Result<Written, WriteError> {
    let plan = Plan::new(tree)?;
    emit(tree, &plan, data, &[], &[0])
}

/// Writes an index whose files are in further parts of the given lengths (in blocks).
pub(crate) fn write_index(tree: &Tree, part_blocks: &[u32], index: &File) -> Result<Written, WriteError> {
    let devices = u16::try_from(part_blocks.len()).map_err(|_| WriteError::TooLarge)?;
    let plan = Plan::new(tree)?;
    let header = header_blocks(devices);
    let mut next = u64::from(header) + plan.content_blocks + plan.meta_bytes.div_ceil(BLOCK);
    let mut slots = Vec::with_capacity(part_blocks.len());
    for &blocks in part_blocks {
        slots.push(DeviceSlot {
            blocks,
            mapped_block: u32::try_from(next).map_err(|_| WriteError::TooLarge)?,
        });
        next += u64::from(blocks);
    }
    u32::try_from(next).map_err(|_| WriteError::TooLarge)?;
    let bases: Vec<u32> = slots.iter().map(|slot| slot.mapped_block).collect();
    emit(tree, &plan, BlockWriter::new(index, header), &slots, &bases)
}

/// One inode with its place.
#[derive(Debug)]
struct Planned {
    id: InodeId,
    /// The directory that names it (the last one, for hard links).
    parent: InodeId,
    extended: bool,
    layout: Layout,
    xattr_bytes: usize,
    /// Bytes of content: of a file, directory or link target.
    size: u64,
}

#[derive(Debug)]
struct Plan {
    /// Every live inode, the root first, then directory by directory.
    order: Vec<Planned>,
    /// By [`InodeId`]; 0 for dead ones.
    nids: Vec<u64>,
    /// By [`InodeId`].
    links: Vec<u32>,
    build_time: Time,
    /// Blocks of directories and link targets that are not inline.
    content_blocks: u64,
    meta_bytes: u64,
}

impl Plan {
    fn new(tree: &Tree) -> Result<Plan, WriteError> {
        let mut plan = Plan {
            order: Vec::with_capacity(tree.inodes.len()),
            nids: vec![0; tree.inodes.len()],
            links: vec![0; tree.inodes.len()],
            build_time: Time::default(),
            content_blocks: 0,
            meta_bytes: FIRST_INODE,
        };
        plan.collect(tree);
        plan.build_time = most_common_time(tree, &plan.order);
        plan.place(tree);
        // 32 bits of slots are 128 GiB of metadata: far beyond what fits in memory, but an address is an address.
        if plan.meta_bytes / INODE_SLOT > u64::from(u32::MAX) {
            return Err(WriteError::TooLarge);
        }
        Ok(plan)
    }

    /// Finds the live inodes and counts their names. The order keeps the children of a directory together.
    fn collect(&mut self, tree: &Tree) {
        let planned = |id, parent| Planned {
            id,
            parent,
            extended: false,
            layout: Layout::Plain,
            xattr_bytes: 0,
            size: 0,
        };
        self.order.push(planned(InodeId::ROOT, InodeId::ROOT));
        self.links[0] = 2;
        let mut next = 0;
        while let Some(current) = self.order.get(next).map(|entry| entry.id) {
            next += 1;
            let Some(directory) = tree.inode(current).directory() else { continue };
            for &child in directory.entries.values() {
                match tree.inode(child).kind {
                    Kind::LowerLink(_) => continue,
                    Kind::Directory(_) => {
                        self.links[current.index()] += 1;
                        self.links[child.index()] = 2;
                        self.order.push(planned(child, current));
                    }
                    _ => {
                        self.links[child.index()] += 1;
                        if self.links[child.index()] == 1 {
                            self.order.push(planned(child, current));
                        }
                    }
                }
            }
        }
    }

    /// Chooses form and place of every inode.
    fn place(&mut self, tree: &Tree) {
        let mut position = FIRST_INODE;
        for entry in &mut self.order {
            let inode = tree.inode(entry.id);
            let metadata = &inode.metadata;
            entry.size = content_size(tree, entry);
            entry.xattr_bytes = xattr::encoded_size(xattrs(inode));
            entry.extended = metadata.mtime != self.build_time
                || metadata.uid > u16::MAX.into()
                || metadata.gid > u16::MAX.into()
                || self.links[entry.id.index()] > u16::MAX.into()
                || entry.size > u32::MAX.into();
            let form = if entry.extended { DiskInode::EXTENDED_SIZE } else { DiskInode::COMPACT_SIZE };
            let fixed = (form + entry.xattr_bytes) as u64;
            let is_file = matches!(inode.kind, Kind::File(_));
            let tail = if is_file { 0 } else { entry.size % BLOCK };
            let inline = tail > 0 && fixed + tail <= BLOCK;
            entry.layout = if inline { Layout::Inline } else { Layout::Plain };
            if !is_file {
                self.content_blocks += if inline { entry.size / BLOCK } else { entry.size.div_ceil(BLOCK) };
            }
            let length = fixed + if inline { tail } else { 0 };
            position = position.next_multiple_of(INODE_SLOT);
            // The kernel wants inline data in the inode's block, and is fastest when the rest is there too.
            if length <= BLOCK && position % BLOCK + length > BLOCK {
                position = position.next_multiple_of(BLOCK);
            }
            self.nids[entry.id.index()] = position / INODE_SLOT;
            position += length;
        }
        self.meta_bytes = position;
    }
}

/// The modification time that most inodes share: those need only the compact form.
fn most_common_time(tree: &Tree, order: &[Planned]) -> Time {
    let mut counts: HashMap<Time, u32> = HashMap::new();
    for entry in order {
        *counts.entry(tree.inode(entry.id).metadata.mtime).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(time, count)| (*count, *time)).map(|(time, _)| time).unwrap_or_default()
}

/// The attributes of an inode, with overlayfs's mark if it hides what lies below.
fn xattrs(inode: &Inode) -> impl Iterator<Item = &Xattr> + Clone {
    static OPAQUE: std::sync::LazyLock<Xattr> = std::sync::LazyLock::new(|| Xattr {
        name: (*b"trusted.overlay.opaque").into(),
        value: (*b"y").into(),
    });
    let opaque = inode.directory().is_some_and(|directory| directory.visibility == Visibility::Opaque);
    inode.metadata.xattrs.iter().chain(opaque.then(|| &*OPAQUE))
}

/// The names of a directory in order, with `.` and `..`.
fn names(tree: &Tree, id: InodeId, parent: InodeId) -> Vec<(&[u8], InodeId)> {
    let entries = tree.inode(id).directory().map(|directory| directory.entries.iter());
    let mut names: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter(|(_, child)| !matches!(tree.inode(**child).kind, Kind::LowerLink(_)))
        .map(|(name, child)| (&**name, *child))
        .collect();
    names.push((b".", id));
    names.push((b"..", parent));
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}

fn content_size(tree: &Tree, entry: &Planned) -> u64 {
    match &tree.inode(entry.id).kind {
        Kind::Directory(_) => {
            directory::encoded_size(names(tree, entry.id, entry.parent).iter().map(|(name, _)| name.len()))
        }
        Kind::File(extent) => extent.size,
        Kind::Symlink(target) => target.len() as u64,
        Kind::CharDevice(_)
        | Kind::BlockDevice(_)
        | Kind::Fifo
        | Kind::Socket
        | Kind::Whiteout
        | Kind::LowerLink(_) => 0,
    }
}

/// The content of a directory or link target.
fn content(tree: &Tree, plan: &Plan, entry: &Planned) -> Vec<u8> {
    match &tree.inode(entry.id).kind {
        Kind::Directory(_) => {
            let entries: Vec<Dirent<'_>> = names(tree, entry.id, entry.parent)
                .into_iter()
                .map(|(name, child)| Dirent {
                    name,
                    nid: plan.nids[child.index()],
                    file_type: dirent_type(file_type(&tree.inode(child).kind)),
                })
                .collect();
            directory::encode(&entries)
        }
        Kind::Symlink(target) => target.to_vec(),
        _ => Vec::new(),
    }
}

fn file_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => mode::DIRECTORY,
        Kind::File(_) | Kind::LowerLink(_) => mode::REGULAR,
        Kind::Symlink(_) => mode::SYMLINK,
        Kind::CharDevice(_) | Kind::Whiteout => mode::CHAR,
        Kind::BlockDevice(_) => mode::BLOCK,
        Kind::Fifo => mode::FIFO,
        Kind::Socket => mode::SOCKET,
    }
}

/// Writes metadata and header. `bases[n]` is the address of part `n`'s first block.
fn emit(
    tree: &Tree,
    plan: &Plan,
    mut out: BlockWriter<'_>,
    slots: &[DeviceSlot],
    bases: &[u32],
) -> Result<Written, WriteError> {
    // Two layers with the same metadata and other data must not share an identity.
    let mut identity = Sha256::new_with_prefix(out.checksum()?.to_le_bytes());
    let mut put = |out: &mut BlockWriter<'_>, bytes: &[u8]| {
        identity.update(bytes);
        out.append(bytes)
    };

    let mut next_content = out.block()?;
    for entry in &plan.order {
        let blocks = external_blocks(tree, entry);
        if blocks > 0 {
            let mut bytes = content(tree, plan, entry);
            bytes.resize(to_bytes(blocks)?, 0);
            put(&mut out, &bytes)?;
        }
    }

    let meta_block = out.block()?;
    let meta_start = out.position();
    let mut record = Vec::new();
    for (number, entry) in plan.order.iter().enumerate() {
        let gap = meta_start + plan.nids[entry.id.index()] * INODE_SLOT - out.position();
        out.zeros(gap)?;
        let blocks = external_blocks(tree, entry);
        let inode = tree.inode(entry.id);
        let address = match &inode.kind {
            Kind::File(extent) => file_address(extent, bases)?,
            Kind::CharDevice(device) | Kind::BlockDevice(device) => encode_device(*device),
            Kind::Whiteout => encode_device(Device { major: 0, minor: 0 }),
            _ if blocks > 0 => next_content,
            _ => 0,
        };
        next_content += u32::try_from(blocks).map_err(|_| WriteError::TooLarge)?;
        let on_disk = DiskInode {
            extended: entry.extended,
            layout: entry.layout,
            mode: file_type(&inode.kind) | inode.metadata.permissions,
            links: plan.links[entry.id.index()],
            size: entry.size,
            address,
            number: u32::try_from(number + 1).map_err(|_| WriteError::TooLarge)?,
            uid: inode.metadata.uid,
            gid: inode.metadata.gid,
            mtime: inode.metadata.mtime,
            xattr_bytes: entry.xattr_bytes,
        };
        record.clear();
        on_disk.encode(&mut record);
        xattr::encode(xattrs(inode), &mut record);
        if entry.layout == Layout::Inline {
            record.extend_from_slice(&content(tree, plan, entry)[to_bytes(blocks)?..]);
        }
        put(&mut out, &record)?;
    }
    out.align()?;

    let blocks = out.block()?;
    for slot in slots {
        identity.update(slot.blocks.to_le_bytes());
    }
    let header = Superblock {
        blocks,
        meta_block,
        root_nid: u16::try_from(plan.nids[0]).map_err(|_| WriteError::TooLarge)?,
        inodes: plan.order.len() as u64,
        build_time: plan.build_time,
        uuid: uuid(&identity.finalize()),
        devices: u16::try_from(slots.len()).map_err(|_| WriteError::TooLarge)?,
    };
    out.finish(&encode_header(&header, slots))?;
    Ok(Written { blocks, inodes: header.inodes })
}

/// Blocks of a directory or link target outside the metadata area.
fn external_blocks(tree: &Tree, entry: &Planned) -> u64 {
    match (&tree.inode(entry.id).kind, entry.layout) {
        (Kind::File(_), _) => 0,
        (_, Layout::Plain) => entry.size.div_ceil(BLOCK),
        (_, Layout::Inline) => entry.size / BLOCK,
    }
}

fn to_bytes(blocks: u64) -> Result<usize, WriteError> {
    usize::try_from(blocks * BLOCK).map_err(|_| WriteError::TooLarge)
}

fn file_address(extent: &Extent, bases: &[u32]) -> Result<u32, WriteError> {
    if extent.size == 0 {
        return Ok(0);
    }
    let base = bases.get(usize::from(extent.part)).ok_or(WriteError::TooLarge)?;
    base.checked_add(extent.start).ok_or(WriteError::TooLarge)
}

/// A version 8 UUID (RFC 9562 § 5.8) from a hash.
fn uuid(hash: &[u8]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
