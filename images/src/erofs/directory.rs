//! Directory content: blocks of entries, each with its names behind it, sorted by name over the whole directory so
//! that the kernel finds a name by binary search.

use super::BLOCK_SIZE;
use super::format::{DIRENT_SIZE, NAME_MAX, low16, u16_at, u64_at};
use super::tree::Name;

const BLOCK: usize = BLOCK_SIZE as usize;

/// One entry as it is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: u64,
    pub(crate) file_type: u8,
}

/// Bytes of a directory with names of these lengths, in this order.
pub(crate) fn encoded_size(name_lengths: impl IntoIterator<Item = usize>) -> u64 {
    let mut full_blocks = 0;
    let mut used = 0;
    for length in name_lengths {
        let needed = DIRENT_SIZE + length;
        if used + needed > BLOCK {
            full_blocks += 1;
            used = 0;
        }
        used += needed;
    }
    full_blocks * BLOCK as u64 + used as u64
}

/// The content of a directory; every block but the last is padded.
pub(crate) fn encode(mut entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    while !entries.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        let mut used = 0;
        let count = entries
            .iter()
            .take_while(|entry| {
                used += DIRENT_SIZE + entry.name.len();
                used <= BLOCK
            })
            .count();
        let (now, later) = entries.split_at(count);
        let mut name_offset = count * DIRENT_SIZE;
        for entry in now {
            out.extend_from_slice(&entry.nid.to_le_bytes());
            out.extend_from_slice(&low16(name_offset as u64).to_le_bytes());
            out.extend_from_slice(&[entry.file_type, 0]);
            name_offset += entry.name.len();
        }
        for entry in now {
            out.extend_from_slice(entry.name);
        }
        entries = later;
    }
    out
}

/// The entries of one block of a directory (the last one may be shorter); `None` when it is malformed.
pub(crate) fn decode_block(block: &[u8]) -> Option<Vec<(Name, u64)>> {
    if block.len() < DIRENT_SIZE {
        return None;
    }
    let names_start = usize::from(u16_at(block, 8));
    if names_start == 0 || names_start % DIRENT_SIZE != 0 || names_start > block.len() {
        return None;
    }
    let count = names_start / DIRENT_SIZE;
    let mut entries = Vec::with_capacity(count);
    for index in 0..count {
        let at = index * DIRENT_SIZE;
        let start = usize::from(u16_at(block, at + 8));
        let end = if index + 1 < count {
            usize::from(u16_at(block, at + DIRENT_SIZE + 8))
        } else {
            let rest = block.get(start..)?;
            start + rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len())
        };
        let name = block.get(start..end)?;
        if name.is_empty() || name.len() > NAME_MAX {
            return None;
        }
        entries.push((name.into(), u64_at(block, at)));
    }
    Some(entries)
}
