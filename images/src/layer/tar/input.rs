//! The byte stream below the tar parser: buffered, counted, bounded.

use std::io::Read;

use crate::erofs::BlockWriter;
use crate::layer::{ConvertError, EntryName, LimitKind};

const BUFFER_SIZE: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Input<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// Unread bytes are `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Bytes handed out.
    consumed: u64,
    limit: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R, limit: u64) -> Input<R> {
        let buffer = vec![0; BUFFER_SIZE].into_boxed_slice();
        Input { reader, buffer, start: 0, end: 0, consumed: 0, limit }
    }

    /// Position in the stream.
    pub(super) fn position(&self) -> u64 {
        self.consumed
    }

    /// The next `N` bytes; `None` at the end of the stream.
    pub(super) fn block<const N: usize>(&mut self) -> Result<Option<[u8; N]>, ConvertError> {
        if self.start == self.end && self.fill()? == 0 {
            return Ok(None);
        }
        let mut block = [0; N];
        self.read_exact(&mut block)?;
        Ok(Some(block))
    }

    pub(super) fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), ConvertError> {
        while !out.is_empty() {
            if self.start == self.end && self.fill()? == 0 {
                return Err(ConvertError::Truncated(self.consumed));
            }
            let count = out.len().min(self.end - self.start);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&self.buffer[self.start..self.start + count]);
            self.take(count);
            out = later;
        }
        Ok(())
    }

    pub(super) fn skip(&mut self, mut count: u64) -> Result<(), ConvertError> {
        while count > 0 {
            if self.start == self.end && self.fill()? == 0 {
                return Err(ConvertError::Truncated(self.consumed));
            }
            let step = (self.end - self.start).min(usize::try_from(count).unwrap_or(usize::MAX));
            self.take(step);
            count -= step as u64;
        }
        Ok(())
    }

    /// Moves `count` bytes to `out`; long runs are read straight into its buffer.
    pub(super) fn copy(&mut self, mut count: u64, out: &mut BlockWriter<'_>) -> Result<(), ConvertError> {
        while count > 0 {
            let wanted = usize::try_from(count).unwrap_or(usize::MAX);
            let step = if self.start == self.end && wanted >= BUFFER_SIZE {
                self.check_limit()?;
                let room = out.room().map_err(ConvertError::Write)?;
                let wanted = wanted.min(room.len());
                let step = read_some(&mut self.reader, &mut room[..wanted])?;
                out.advance(step);
                self.consumed += step as u64;
                step
            } else {
                if self.start == self.end {
                    self.fill()?;
                }
                let step = wanted.min(self.end - self.start);
                out.append(&self.buffer[self.start..self.start + step]).map_err(ConvertError::Write)?;
                self.take(step);
                step
            };
            if step == 0 {
                return Err(ConvertError::Truncated(self.consumed));
            }
            count -= step as u64;
        }
        Ok(())
    }

    /// Reads to the end of the stream and throws it away.
    pub(super) fn drain(&mut self) -> Result<(), ConvertError> {
        loop {
            self.take(self.end - self.start);
            if self.fill()? == 0 {
                return Ok(());
            }
        }
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        self.consumed += count as u64;
    }

    /// Fills the empty buffer; 0 at the end of the stream.
    fn fill(&mut self) -> Result<usize, ConvertError> {
        self.check_limit()?;
        self.start = 0;
        self.end = read_some(&mut self.reader, &mut self.buffer)?;
        Ok(self.end)
    }

    fn check_limit(&self) -> Result<(), ConvertError> {
        if self.consumed > self.limit {
            return Err(ConvertError::Limit {
                entry: EntryName::new(b""),
                limit: LimitKind::Stream(self.limit),
            });
        }
        Ok(())
    }
}

fn read_some(reader: &mut impl Read, out: &mut [u8]) -> Result<usize, ConvertError> {
    loop {
        match reader.read(out) {
            Ok(count) => return Ok(count.min(out.len())),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ConvertError::Read(error)),
        }
    }
}
