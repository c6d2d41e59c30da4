//! Sparse files: where the stored segments belong in the file.

use std::io::Read;

use super::header::{BLOCK, GnuSparse, Header, sparse_slots};
use super::input::Input;
use super::pax::PaxSparse;
use crate::layer::{ConvertError, TarFault};

/// Offset and length of each stored segment, in order and apart, all within `size`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::layer) struct SparseMap {
    /// Bytes of the whole file.
    pub(in crate::layer) size: u64,
    pub(in crate::layer) segments: Vec<(u64, u64)>,
}

/// Why a map was not accepted.
#[derive(Debug)]
pub(super) enum SparseError {
    Stream(ConvertError),
    Fault(TarFault),
    TooManySegments,
}

impl From<ConvertError> for SparseError {
    fn from(error: ConvertError) -> SparseError {
        SparseError::Stream(error)
    }
}

impl From<TarFault> for SparseError {
    fn from(fault: TarFault) -> SparseError {
        SparseError::Fault(fault)
    }
}

impl SparseMap {
    /// Checks that the segments are in order, do not overlap, fit the file, and that exactly `stored` bytes follow.
    fn new(size: u64, segments: Vec<(u64, u64)>, stored: u64) -> Result<SparseMap, SparseError> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for &(offset, length) in &segments {
            if offset < end {
                return Err(TarFault::Sparse.into());
            }
            end = offset.checked_add(length).ok_or(TarFault::Sparse)?;
            sum = sum.checked_add(length).ok_or(TarFault::Sparse)?;
        }
        if end > size || sum != stored {
            return Err(TarFault::Sparse.into());
        }
        Ok(SparseMap { size, segments })
    }

    /// The old GNU format: segments in the header and in blocks behind it.
    pub(super) fn from_gnu<R: Read>(
        header: &Header,
        stored: u64,
        input: &mut Input<R>,
        max_segments: usize,
    ) -> Result<SparseMap, SparseError> {
        let GnuSparse { mut segments, real_size, mut more } = header.gnu_sparse()?;
        while more {
            let mut block = [0; BLOCK];
            input.read_exact(&mut block)?;
            segments.extend(sparse_slots(&block[..504])?);
            if segments.len() > max_segments {
                return Err(SparseError::TooManySegments);
            }
            more = block[504] != 0;
        }
        SparseMap::new(real_size, segments, stored)
    }

    /// The PAX formats; 1.0 has its map in front of the data, so `stored` shrinks by the map. `None` for a file that
    /// is not sparse.
    pub(super) fn from_pax<R: Read>(
        pax: &PaxSparse,
        stored: &mut u64,
        input: &mut Input<R>,
        max_segments: usize,
    ) -> Result<Option<SparseMap>, SparseError> {
        let segments = match pax.version {
            None if !pax.has_map => return Ok(None),
            None | Some((0, 0 | 1)) => pairs(&pax.numbers)?,
            Some((1, 0)) => read_map(stored, input, max_segments)?,
            Some(_) => return Err(TarFault::Sparse.into()),
        };
        if segments.len() > max_segments {
            return Err(SparseError::TooManySegments);
        }
        let size = pax.real_size.ok_or(TarFault::Sparse)?;
        SparseMap::new(size, segments, *stored).map(Some)
    }
}

fn pairs(numbers: &[u64]) -> Result<Vec<(u64, u64)>, TarFault> {
    if !numbers.len().is_multiple_of(2) {
        return Err(TarFault::Sparse);
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Decimal numbers, one a line: their count in pairs, then the pairs; padded to a whole block.
fn read_map<R: Read>(
    stored: &mut u64,
    input: &mut Input<R>,
    max_segments: usize,
) -> Result<Vec<(u64, u64)>, SparseError> {
    let mut lines = Lines { block: [0; BLOCK], at: BLOCK, stored };
    let count = lines.number(input)?;
    let count = usize::try_from(count).ok().filter(|count| *count <= max_segments);
    let count = count.ok_or(SparseError::TooManySegments)?;
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push((lines.number(input)?, lines.number(input)?));
    }
    Ok(segments)
}

struct Lines<'a> {
    block: [u8; BLOCK],
    at: usize,
    stored: &'a mut u64,
}

impl Lines<'_> {
    fn number<R: Read>(&mut self, input: &mut Input<R>) -> Result<u64, SparseError> {
        let mut value = None;
        loop {
            if self.at == BLOCK {
                *self.stored = self.stored.checked_sub(BLOCK as u64).ok_or(TarFault::Sparse)?;
                input.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            value = match byte {
                b'0'..=b'9' => value
                    .unwrap_or(0_u64)
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                    .ok_or(TarFault::Sparse)?
                    .into(),
                b'\n' => return Ok(value.ok_or(TarFault::Sparse)?),
                _ => return Err(TarFault::Sparse.into()),
            };
        }
    }
}
