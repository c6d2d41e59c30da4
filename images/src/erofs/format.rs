//! The on-disk structures of EROFS, as `fs/erofs/erofs_fs.h` of Linux defines them; only those this crate writes.
//! Encoding and decoding stand side by side, so that writer and reader cannot disagree.

use super::{BLOCK_SIZE, Device, Time};

/// Byte offset of the superblock in block 0.
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;
/// Bytes of the superblock without extension slots.
pub(crate) const SUPERBLOCK_SIZE: usize = 128;
/// Bytes of one slot of the device table, which starts right after the superblock.
pub(crate) const DEVICE_SLOT_SIZE: usize = 128;
/// Inodes are addressed in units of 32 bytes from the start of the metadata area.
pub(crate) const INODE_SLOT: u64 = 32;
/// Bytes of a directory entry without its name.
pub(crate) const DIRENT_SIZE: usize = 12;
/// The longest file name.
pub(crate) const NAME_MAX: usize = 255;
/// Bytes of the header before the extended attributes of an inode.
pub(crate) const XATTR_HEADER_SIZE: usize = 12;
/// Bytes of an extended attribute's own header.
pub(crate) const XATTR_ENTRY_SIZE: usize = 4;

/// Where the device table starts, in slots from the start of the disk.
const FIRST_DEVICE_SLOT: u16 = 9;
const _: () = assert!(FIRST_DEVICE_SLOT as usize * DEVICE_SLOT_SIZE == SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE);

const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 12;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// File type bits of a mode.
pub(crate) mod mode {
    pub(crate) const TYPE: u16 = 0o170_000;
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const CHAR: u16 = 0o020_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const BLOCK: u16 = 0o060_000;
    pub(crate) const REGULAR: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
    pub(crate) const SOCKET: u16 = 0o140_000;
}

/// Where an inode's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Whole blocks.
    Plain,
    /// Whole blocks, the rest right behind the inode and its attributes, in the same block as the inode.
    Inline,
}

/// The fields of the superblock that vary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Blocks of the primary device.
    pub(crate) blocks: u32,
    /// First block of the metadata area.
    pub(crate) meta_block: u32,
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    /// Modification time of every compact inode.
    pub(crate) build_time: Time,
    pub(crate) uuid: [u8; 16],
    pub(crate) devices: u16,
}

/// One further part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceSlot {
    pub(crate) blocks: u32,
    /// Block at which the part is found when all parts are concatenated.
    pub(crate) mapped_block: u32,
}

/// An inode as it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskInode {
    /// 32 bytes without a time of its own, or 64.
    pub(crate) extended: bool,
    pub(crate) layout: Layout,
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) links: u32,
    pub(crate) size: u64,
    /// First data block, or the encoded device number.
    pub(crate) address: u32,
    /// Inode number shown to programs that know only 32 bits.
    pub(crate) number: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Bytes of the attribute area: 0, or more than [`XATTR_HEADER_SIZE`] and a multiple of 4.
    pub(crate) xattr_bytes: usize,
}

/// Blocks before the first data block: superblock and device table.
pub(crate) fn header_blocks(devices: u16) -> u32 {
    let bytes = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE + usize::from(devices) * DEVICE_SLOT_SIZE;
    // At most 65535 slots: 2049 blocks.
    u32::try_from(bytes.div_ceil(BLOCK_SIZE as usize)).unwrap_or(u32::MAX)
}

/// The header blocks, with the checksum.
pub(crate) fn encode_header(superblock: &Superblock, slots: &[DeviceSlot]) -> Vec<u8> {
    let mut out = vec![0; header_blocks(superblock.devices) as usize * BLOCK_SIZE as usize];
    let sb = &mut out[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE];
    sb[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    sb[8..12].copy_from_slice(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
    sb[12] = BLOCK_BITS;
    sb[14..16].copy_from_slice(&superblock.root_nid.to_le_bytes());
    sb[16..24].copy_from_slice(&superblock.inodes.to_le_bytes());
    sb[24..32].copy_from_slice(&superblock.build_time.seconds.to_le_bytes());
    sb[32..36].copy_from_slice(&superblock.build_time.nanoseconds.to_le_bytes());
    sb[36..40].copy_from_slice(&superblock.blocks.to_le_bytes());
    sb[40..44].copy_from_slice(&superblock.meta_block.to_le_bytes());
    sb[48..64].copy_from_slice(&superblock.uuid);
    if superblock.devices > 0 {
        sb[80..84].copy_from_slice(&INCOMPAT_DEVICE_TABLE.to_le_bytes());
        sb[86..88].copy_from_slice(&superblock.devices.to_le_bytes());
        sb[88..90].copy_from_slice(&FIRST_DEVICE_SLOT.to_le_bytes());
    }
    let table = &mut out[SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE..];
    for (bytes, slot) in table.chunks_exact_mut(DEVICE_SLOT_SIZE).zip(slots) {
        bytes[64..68].copy_from_slice(&slot.blocks.to_le_bytes());
        bytes[68..72].copy_from_slice(&slot.mapped_block.to_le_bytes());
    }
    let checksum = checksum(&out[SUPERBLOCK_OFFSET..BLOCK_SIZE as usize]);
    out[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// Reads the superblock from block 0; `None` unless it is one that this crate writes.
pub(crate) fn decode_superblock(block: &[u8; BLOCK_SIZE as usize]) -> Option<Superblock> {
    let sb = &block[SUPERBLOCK_OFFSET..];
    let mut unsigned = sb.to_vec();
    unsigned[4..8].fill(0);
    let known_features = u32_at(sb, 8) == COMPAT_CHECKSUM | COMPAT_MTIME
        && u32_at(sb, 80) & !INCOMPAT_DEVICE_TABLE == 0
        && sb[12] == BLOCK_BITS
        && sb[13] == 0;
    if u32_at(sb, 0) != MAGIC || !known_features || u32_at(sb, 4) != checksum(&unsigned) {
        return None;
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sb[48..64]);
    Some(Superblock {
        blocks: u32_at(sb, 36),
        meta_block: u32_at(sb, 40),
        root_nid: u16_at(sb, 14),
        inodes: u64_at(sb, 16),
        build_time: Time { seconds: u64_at(sb, 24).cast_signed(), nanoseconds: u32_at(sb, 32) },
        uuid,
        devices: u16_at(sb, 86),
    })
}

impl DiskInode {
    /// Bytes of the compact form.
    pub(crate) const COMPACT_SIZE: usize = 32;
    /// Bytes of the extended form.
    pub(crate) const EXTENDED_SIZE: usize = 64;

    /// Bytes of this inode without attributes and data.
    pub(crate) fn encoded_size(&self) -> usize {
        if self.extended { Self::EXTENDED_SIZE } else { Self::COMPACT_SIZE }
    }

    /// Appends the inode to `out`. A compact one must have values that fit: the writer chooses the form by them.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let layout: u16 = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
        };
        let format = u16::from(self.extended) | layout << 1;
        let xattr_count = match self.xattr_bytes.checked_sub(XATTR_HEADER_SIZE) {
            Some(bytes) => low16(1 + bytes as u64 / 4),
            None => 0,
        };
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&xattr_count.to_le_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        if self.extended {
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&self.size.to_le_bytes());
            out.extend_from_slice(&self.address.to_le_bytes());
            out.extend_from_slice(&self.number.to_le_bytes());
            out.extend_from_slice(&self.uid.to_le_bytes());
            out.extend_from_slice(&self.gid.to_le_bytes());
            out.extend_from_slice(&self.mtime.seconds.to_le_bytes());
            out.extend_from_slice(&self.mtime.nanoseconds.to_le_bytes());
            out.extend_from_slice(&self.links.to_le_bytes());
            out.extend_from_slice(&[0; 16]);
        } else {
            out.extend_from_slice(&low16(self.links.into()).to_le_bytes());
            out.extend_from_slice(&self.size.to_le_bytes()); // 32 bits of size, then 32 reserved: zero
            out.extend_from_slice(&self.address.to_le_bytes());
            out.extend_from_slice(&self.number.to_le_bytes());
            out.extend_from_slice(&low16(self.uid.into()).to_le_bytes());
            out.extend_from_slice(&low16(self.gid.into()).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
    }

    /// Reads an inode from `bytes`, of which the second half may be missing for a compact one at the end of the disk.
    pub(crate) fn decode(bytes: &[u8; Self::EXTENDED_SIZE], build_time: Time) -> Option<DiskInode> {
        let format = u16_at(bytes, 0);
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            _ => return None,
        };
        let xattr_bytes = match u16_at(bytes, 2) {
            0 => 0,
            count => XATTR_HEADER_SIZE + (usize::from(count) - 1) * 4,
        };
        let mode = u16_at(bytes, 4);
        let inode = if format & 1 == 1 {
            DiskInode {
                extended: true,
                layout,
                mode,
                links: u32_at(bytes, 44),
                size: u64_at(bytes, 8),
                address: u32_at(bytes, 16),
                number: u32_at(bytes, 20),
                uid: u32_at(bytes, 24),
                gid: u32_at(bytes, 28),
                mtime: Time { seconds: u64_at(bytes, 32).cast_signed(), nanoseconds: u32_at(bytes, 40) },
                xattr_bytes,
            }
        } else {
            DiskInode {
                extended: false,
                layout,
                mode,
                links: u16_at(bytes, 6).into(),
                size: u32_at(bytes, 8).into(),
                address: u32_at(bytes, 16),
                number: u32_at(bytes, 20),
                uid: u16_at(bytes, 24).into(),
                gid: u16_at(bytes, 26).into(),
                mtime: build_time,
                xattr_bytes,
            }
        };
        Some(inode)
    }
}

/// The file type in a directory entry.
pub(crate) fn dirent_type(file_mode: u16) -> u8 {
    match file_mode & mode::TYPE {
        mode::REGULAR => 1,
        mode::DIRECTORY => 2,
        mode::CHAR => 3,
        mode::BLOCK => 4,
        mode::FIFO => 5,
        mode::SOCKET => 6,
        mode::SYMLINK => 7,
        _ => 0,
    }
}

/// A device number in Linux's 32-bit form.
pub(crate) fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// The inverse of [`encode_device`].
#[cfg(test)]
pub(crate) fn decode_device(encoded: u32) -> Device {
    Device { major: (encoded >> 8) & 0xfff, minor: (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00) }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32C without the final inversion, as the kernel computes it.
fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c(bytes)
}

/// The low 16 bits of a value that the caller has found to fit them.
pub(crate) fn low16(value: u64) -> u16 {
    (value & 0xffff) as u16
}
