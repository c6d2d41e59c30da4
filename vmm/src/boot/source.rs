//! A file that is read into guest memory: by position, so that an open file may be shared with others, and in one go,
//! so that the host need not fault in guest memory page by page.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

const PAGE: usize = 4096;

/// Reads a file from a position of its own.
#[derive(Debug)]
pub struct Source<'a> {
    file: &'a File,
    position: u64,
}

impl<'a> Source<'a> {
    /// From the file's beginning.
    pub fn new(file: &'a File) -> Self {
        Self { file, position: 0 }
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => self.file.metadata()?.len().checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Source<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        populate(buffer);
        let position = i64::try_from(self.position)
            .map_err(|_| VolatileMemoryError::IOError(io::ErrorKind::InvalidInput.into()))?;
        let guard = buffer.ptr_guard_mut();
        // SAFETY: the slice is valid for writes of its length, and the guard keeps it so during the call.
        let length =
            unsafe { libc::pread(self.file.as_raw_fd(), guard.as_ptr().cast(), buffer.len(), position) };
        match usize::try_from(length) {
            Ok(length) => {
                buffer.bitmap().mark_dirty(0, length);
                self.position += length as u64;
                Ok(length)
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                // Part of it may have been written.
                buffer.bitmap().mark_dirty(0, buffer.len());
                Err(VolatileMemoryError::IOError(error))
            }
        }
    }
}

/// Gives all pages that lie within the slice at once.
fn populate<B: BitmapSlice>(buffer: &mut VolatileSlice<'_, B>) {
    let guard = buffer.ptr_guard_mut();
    let before = guard.as_ptr().align_offset(PAGE);
    let Some(length) =
        buffer.len().checked_sub(before).map(|length| length & !(PAGE - 1)).filter(|length| *length > 0)
    else {
        return;
    };
    // SAFETY: the range lies within the slice; populating it changes no contents. It is only faster: where it fails, as
    // on kernels before 5.14, the read faults page by page and reports what is really wrong.
    unsafe { libc::madvise(guard.as_ptr().add(before).cast(), length, libc::MADV_POPULATE_WRITE) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn whatever_the_alignment_the_bytes_arrive() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3 * PAGE + 7).map(|n| u8::try_from(n % 251).unwrap()).collect();
        file.write_all(&bytes).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 * PAGE)]).unwrap();
        for at in [0, 1, 4095, 4096, 5000] {
            let mut source = Source::new(&file);
            source.seek(SeekFrom::Start(3)).unwrap();
            let length = bytes.len() - 3;
            memory.read_exact_volatile_from(GuestAddress(at), &mut source, length).unwrap();
            let mut read = vec![0; length];
            memory.read_slice(&mut read, GuestAddress(at)).unwrap();
            assert_eq!(read, bytes[3..]);
            assert_eq!(source.stream_position().unwrap(), bytes.len() as u64);
            assert!(memory.read_exact_volatile_from(GuestAddress(at), &mut source, 1).is_err(), "the end");
        }
    }

    #[test]
    fn seeking_stays_in_bounds() {
        let file = tempfile::tempfile().unwrap();
        let mut source = Source::new(&file);
        assert!(source.seek(SeekFrom::Current(-1)).is_err());
        assert_eq!(source.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
        assert!(source.read(&mut [0]).is_err());
        assert!(source.seek(SeekFrom::Current(1)).is_err());
        assert_eq!(source.seek(SeekFrom::End(0)).unwrap(), 0);
    }
}
