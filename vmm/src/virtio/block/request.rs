//! One request of the block driver (virtio 1.3 §5.2.6): parsed, checked against the disk, carried out, answered.

use std::io;

use super::disk::Disk;
use super::extents::Erase;
use super::{FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, SECTOR};
use crate::virtio::chain::Chain;
use crate::virtio::segments::Segments;

const HEADER_LENGTH: usize = 16;
const ERASE_SEGMENT_LENGTH: usize = 16;
/// The most sectors one discard or write-zeroes request may name.
pub const ERASE_SECTORS_MAX: u32 = 1 << 22;
/// `virtio_blk_discard_write_zeroes.flags` bit 0.
const UNMAP: u32 = 1;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPP: u8 = 2;

/// What the request moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub to_guest: u64,
    pub from_guest: u64,
}

/// How a request ended, when it did not end well. The driver is told the kind only.
#[derive(Debug)]
enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`.
    Failed,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Self::Unsupported,
            _ => Self::Failed,
        }
    }
}

/// Carries out a request and writes its status. Answers what it moved and how many bytes of the chain were written.
pub fn execute(chain: Chain<'_, '_>, disk: &Disk, features: u64) -> (Moved, u32) {
    let Some(data_length) = chain.writable.len().checked_sub(1) else {
        // No place for a status: there is nobody to tell.
        return (Moved::default(), 0);
    };
    let (data, status) = chain.writable.split_at(data_length);
    let (moved, written, code) = match carry_out(chain.readable, data, disk, features) {
        Ok(moved) => (moved, moved.to_guest, STATUS_OK),
        Err(Refusal::Failed) => (Moved::default(), 0, STATUS_IOERR),
        Err(Refusal::Unsupported) => (Moved::default(), 0, STATUS_UNSUPP),
    };
    status.copy_from(&[code]);
    // The chain is at most 2^32 - 1 bytes long (chain.rs).
    (moved, u32::try_from(written + 1).unwrap_or(u32::MAX))
}

fn carry_out(
    readable: Segments<'_, '_>,
    writable: Segments<'_, '_>,
    disk: &Disk,
    features: u64,
) -> Result<Moved, Refusal> {
    let mut header = [0; HEADER_LENGTH];
    if readable.copy_to(&mut header) < HEADER_LENGTH {
        return Err(Refusal::Failed);
    }
    let data = readable.after(HEADER_LENGTH);
    let sector = u64_at(&header, 8);
    match u32_at(&header, 0) {
        TYPE_IN => {
            let position = range(disk, sector, writable.len() as u64)?;
            disk.extents().read(writable, position)?;
            Ok(Moved { to_guest: writable.len() as u64, from_guest: 0 })
        }
        TYPE_OUT => {
            let position = range(disk, sector, data.len() as u64)?;
            disk.writable().ok_or(Refusal::Failed)?.write(data, position)?;
            Ok(Moved { to_guest: 0, from_guest: data.len() as u64 })
        }
        TYPE_FLUSH if features & FEATURE_FLUSH != 0 => {
            disk.extents().flush()?;
            Ok(Moved::default())
        }
        TYPE_GET_ID => {
            let copied = writable.copy_from(disk.serial());
            Ok(Moved { to_guest: copied as u64, from_guest: 0 })
        }
        TYPE_DISCARD if features & FEATURE_DISCARD != 0 => erase(data, disk, TYPE_DISCARD),
        TYPE_WRITE_ZEROES if features & FEATURE_WRITE_ZEROES != 0 => erase(data, disk, TYPE_WRITE_ZEROES),
        _ => Err(Refusal::Unsupported),
    }
}

/// Checks that whole sectors are meant and that they are on the disk; answers where they start, in bytes.
fn range(disk: &Disk, sector: u64, length: u64) -> Result<u64, Refusal> {
    let position = sector.checked_mul(SECTOR).ok_or(Refusal::Failed)?;
    let end = position.checked_add(length).ok_or(Refusal::Failed)?;
    if !length.is_multiple_of(SECTOR) || end > disk.extents().length() {
        return Err(Refusal::Failed);
    }
    Ok(position)
}

/// Exactly one range: `max_discard_seg` and `max_write_zeroes_seg` are 1.
fn erase(data: Segments<'_, '_>, disk: &Disk, kind: u32) -> Result<Moved, Refusal> {
    let mut segment = [0; ERASE_SEGMENT_LENGTH];
    if data.len() != ERASE_SEGMENT_LENGTH || data.copy_to(&mut segment) < ERASE_SEGMENT_LENGTH {
        return Err(Refusal::Failed);
    }
    let (sector, count, flags) = (u64_at(&segment, 0), u32_at(&segment, 8), u32_at(&segment, 12));
    let how = match (kind, flags) {
        (TYPE_DISCARD, 0) => Erase::Discard,
        (TYPE_WRITE_ZEROES, 0) => Erase::Zero,
        (TYPE_WRITE_ZEROES, UNMAP) => Erase::ZeroAndUnmap,
        // Unknown flags, or unmap for a discard (§5.2.6.2).
        _ => return Err(Refusal::Unsupported),
    };
    if count > ERASE_SECTORS_MAX {
        return Err(Refusal::Failed);
    }
    let length = u64::from(count) * SECTOR;
    let position = range(disk, sector, length)?;
    disk.writable().ok_or(Refusal::Failed)?.erase(position, length, how)?;
    Ok(Moved::default())
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    bytes[at..].first_chunk().copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}
