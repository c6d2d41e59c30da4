//! Sequential output in blocks: buffers, pads, leaves holes, and keeps a checksum of what went through.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{BLOCK_SIZE, WriteError};

const BUFFER_SIZE: usize = 1 << 20;
/// Shorter runs of zeros are written: a hole costs a flush.
const SMALLEST_HOLE: u64 = 64 << 10;

/// Appends to a file that was empty.
#[derive(Debug)]
pub(crate) struct BlockWriter<'a> {
    file: &'a File,
    buffer: Box<[u8]>,
    filled: usize,
    /// File offset of the buffer's first byte.
    offset: u64,
    checksum: u32,
}

impl<'a> BlockWriter<'a> {
    /// Starts at block `first`; the blocks before it are for [`BlockWriter::finish`].
    pub(crate) fn new(file: &'a File, first: u32) -> BlockWriter<'a> {
        BlockWriter {
            file,
            buffer: vec![0; BUFFER_SIZE].into_boxed_slice(),
            filled: 0,
            offset: u64::from(first) * u64::from(BLOCK_SIZE),
            checksum: 0,
        }
    }

    /// Bytes from the start of the file.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.filled as u64
    }

    /// The block at which the next byte goes; the position must be aligned.
    pub(crate) fn block(&self) -> Result<u32, WriteError> {
        debug_assert_eq!(self.position() % u64::from(BLOCK_SIZE), 0);
        u32::try_from(self.position() / u64::from(BLOCK_SIZE)).map_err(|_| WriteError::TooLarge)
    }

    /// Room for the next bytes, never empty; [`BlockWriter::advance`] takes what was put there.
    pub(crate) fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    /// The first `count` bytes of [`BlockWriter::room`] are now part of the output.
    pub(crate) fn advance(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.buffer.len());
    }

    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.advance(count);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Appends `count` zeros; long runs take no space on disk.
    pub(crate) fn zeros(&mut self, count: u64) -> io::Result<()> {
        if count >= SMALLEST_HOLE {
            self.flush()?;
            self.offset += count;
            self.checksum = crc32c::crc32c_append(self.checksum, &count.to_le_bytes());
            return Ok(());
        }
        let mut left = count;
        while left > 0 {
            let room = self.room()?;
            let step = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            room[..step].fill(0);
            self.advance(step);
            left -= step as u64;
        }
        Ok(())
    }

    /// Pads to the next block.
    pub(crate) fn align(&mut self) -> io::Result<()> {
        let block = u64::from(BLOCK_SIZE);
        self.zeros(self.position().next_multiple_of(block) - self.position())
    }

    /// Identifies everything written so far.
    pub(crate) fn checksum(&mut self) -> io::Result<u32> {
        self.flush()?;
        Ok(self.checksum)
    }

    /// Writes what is buffered, and `header` at the start of the file, last.
    pub(crate) fn finish(mut self, header: &[u8]) -> io::Result<()> {
        self.flush()?;
        self.file.set_len(self.offset)?;
        self.file.write_all_at(header, 0)
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.filled];
        self.file.write_all_at(bytes, self.offset)?;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.offset += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}
