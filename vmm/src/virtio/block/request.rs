//! One request of the block driver (virtio 1.3 §5.2.6): parsed and checked against the disk. What it asks for is
//! carried out elsewhere.

use std::io;

use super::disk::Disk;
use super::engine::{Action, Step};
use super::erase::Erase;
use super::{FEATURE_DISCARD, FEATURE_FLUSH, FEATURE_WRITE_ZEROES, SECTOR};
use crate::virtio::chain::Chain;
use crate::virtio::pinned::Pinned;
use crate::virtio::segments::Segments;

const HEADER_LENGTH: usize = 16;
const ERASE_SEGMENT_LENGTH: usize = 16;
/// The most ranges that one discard or write-zeroes request may name.
pub const ERASE_SEGMENTS_MAX: u32 = 16;
/// The most sectors of a range to discard.
pub const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// The most sectors of a range to make zeroes: 32 MiB, for they may have to be written one by one.
pub const WRITE_ZEROES_SECTORS_MAX: u32 = 1 << 16;
/// `virtio_blk_discard_write_zeroes.flags` bit 0.
const UNMAP: u32 = 1;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

/// `virtio_blk_req.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`.
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`.
    Failed = 1,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported = 2,
}

/// What a request asks for, with all that it takes.
#[derive(Debug)]
pub enum Order {
    /// Sectors to the guest, or from it.
    Transfer {
        /// What moves if all goes well.
        moved: Moved,
        /// The way there, in order.
        steps: Vec<Step>,
    },
    /// Everything written before must become durable.
    Flush(Vec<Step>),
    /// Ranges to erase.
    Erase(Vec<Range>),
    /// The guest wants to know the disk's name.
    Identify,
}

/// A range to erase, checked to be on the disk. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub position: u64,
    pub length: u64,
    pub how: Erase,
}

/// Bytes of payload that a request moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub to_guest: u64,
    pub from_guest: u64,
}

/// Why a request is not carried out. The driver is told the kind only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It breaks a rule, or the disk's limits.
    Invalid,
    /// There is no such request.
    Unsupported,
}

impl Refusal {
    /// What the driver is told.
    pub fn status(self) -> Status {
        match self {
            Self::Invalid => Status::Failed,
            Self::Unsupported => Status::Unsupported,
        }
    }
}

/// What the driver is told about an error of the host.
pub fn status_of(error: &io::Error) -> Status {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Status::Unsupported,
        _ => Status::Failed,
    }
}

/// The two parts of what the device writes: data, and at the end the status byte. `None` if there is no room for a
/// status: then there is nobody to tell anything.
pub fn answer<'a, 'm>(chain: &Chain<'a, 'm>) -> Option<(Segments<'a, 'm>, Segments<'a, 'm>)> {
    Some(chain.writable.split_at(chain.writable.len().checked_sub(1)?))
}

/// Reads a request. `data` is the first part of its [`answer`].
pub fn parse(
    chain: &Chain<'_, '_>,
    data: Segments<'_, '_>,
    disk: &Disk,
    features: u64,
) -> Result<Order, Refusal> {
    let mut header = [0; HEADER_LENGTH];
    if chain.readable.copy_to(&mut header) < HEADER_LENGTH {
        return Err(Refusal::Invalid);
    }
    let payload = chain.readable.after(HEADER_LENGTH);
    let sector = u64_at(&header, 8);
    match u32_at(&header, 0) {
        TYPE_IN => {
            let position = range(disk, sector, data.len() as u64)?;
            let steps =
                transfer(chain, data, disk, position, |buffer, offset| Action::Read { buffer, offset })?;
            Ok(Order::Transfer { moved: Moved { to_guest: data.len() as u64, from_guest: 0 }, steps })
        }
        TYPE_OUT => {
            let position = range(disk, sector, payload.len() as u64)?;
            if disk.writable().is_none() {
                return Err(Refusal::Invalid);
            }
            let mut steps =
                transfer(chain, payload, disk, position, |buffer, offset| Action::Write { buffer, offset })?;
            if features & FEATURE_FLUSH == 0 {
                // A driver that cannot flush is promised that what is written is durable (§5.2.6.2).
                let touched = syncs(steps.iter().map(|step| step.file));
                steps.extend(touched);
            }
            Ok(Order::Transfer { moved: Moved { to_guest: 0, from_guest: payload.len() as u64 }, steps })
        }
        TYPE_FLUSH if features & FEATURE_FLUSH != 0 => {
            Ok(Order::Flush(syncs((0..).zip(disk.extents().files()).map(|(file, _)| file))))
        }
        TYPE_GET_ID => Ok(Order::Identify),
        TYPE_DISCARD if features & FEATURE_DISCARD != 0 => {
            erase(payload, disk, DISCARD_SECTORS_MAX, |flags| {
                // Unmap is for the other request (§5.2.6.2).
                (flags == 0).then_some(Erase::Discard)
            })
        }
        TYPE_WRITE_ZEROES if features & FEATURE_WRITE_ZEROES != 0 => {
            erase(payload, disk, WRITE_ZEROES_SECTORS_MAX, |flags| match flags {
                0 => Some(Erase::Zero),
                UNMAP => Some(Erase::ZeroAndUnmap),
                _ => None,
            })
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// One step for each file that the range touches.
fn transfer(
    chain: &Chain<'_, '_>,
    mut run: Segments<'_, '_>,
    disk: &Disk,
    position: u64,
    action: impl Fn(Pinned, u64) -> Action,
) -> Result<Vec<Step>, Refusal> {
    let pieces = disk.extents().pieces(position, run.len() as u64);
    pieces
        .map(|piece| {
            let (part, rest) = run.split_at(usize::try_from(piece.length).unwrap_or(usize::MAX));
            run = rest;
            let buffer = chain.pin(part).ok_or(Refusal::Invalid)?;
            Ok(Step { file: piece.file, action: action(buffer, piece.offset) })
        })
        .collect()
}

fn syncs(files: impl Iterator<Item = u16>) -> Vec<Step> {
    files.map(|file| Step { file, action: Action::Sync }).collect()
}

/// Checks that whole sectors are meant and that they are on the disk; answers where they start, in bytes.
fn range(disk: &Disk, sector: u64, length: u64) -> Result<u64, Refusal> {
    let position = sector.checked_mul(SECTOR).ok_or(Refusal::Invalid)?;
    let end = position.checked_add(length).ok_or(Refusal::Invalid)?;
    if !length.is_multiple_of(SECTOR) || end > disk.extents().length() {
        return Err(Refusal::Invalid);
    }
    Ok(position)
}

/// Checks all ranges before the first is touched.
fn erase(
    mut payload: Segments<'_, '_>,
    disk: &Disk,
    sectors_max: u32,
    how: impl Fn(u32) -> Option<Erase>,
) -> Result<Order, Refusal> {
    let count = payload.len() / ERASE_SEGMENT_LENGTH;
    let whole = payload.len().is_multiple_of(ERASE_SEGMENT_LENGTH);
    if !whole || count == 0 || count > usize::try_from(ERASE_SEGMENTS_MAX).unwrap_or(0) {
        return Err(Refusal::Invalid);
    }
    let mut ranges = Vec::with_capacity(count);
    while !payload.is_empty() {
        let mut segment = [0; ERASE_SEGMENT_LENGTH];
        payload.copy_to(&mut segment);
        payload = payload.after(ERASE_SEGMENT_LENGTH);
        let (sector, sectors, flags) = (u64_at(&segment, 0), u32_at(&segment, 8), u32_at(&segment, 12));
        // Unknown flags make the whole request one that is not known (§5.2.6.2).
        let how = how(flags).ok_or(Refusal::Unsupported)?;
        if sectors > sectors_max {
            return Err(Refusal::Invalid);
        }
        let length = u64::from(sectors) * SECTOR;
        ranges.push(Range { position: range(disk, sector, length)?, length, how });
    }
    disk.writable().ok_or(Refusal::Invalid)?;
    Ok(Order::Erase(ranges))
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    bytes[at..].first_chunk().copied().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    bytes[at..].first_chunk().copied().map_or(0, u64::from_le_bytes)
}
