//! Guest memory that the host works on while the monitor does other things: checked pieces, with a share in the mapping
//! they lie in. Whoever holds it may give its addresses to the kernel, and gives it up only when the kernel is done.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::segments::{Segments, retry};
use crate::memory::GuestMemory;

/// The most pieces the kernel takes at once (`IOV_MAX`).
const IOVECS_MAX: usize = 1024;

/// A run of bytes in guest memory that stays mapped.
pub struct Pinned {
    /// In order; those before `done` are used up.
    iovecs: Box<[libc::iovec]>,
    done: usize,
    length: usize,
    _memory: GuestMemory,
}

// SAFETY: the pointers lead into mappings that `_memory` keeps, shared with the guest anyway, and are only given to the
// kernel or accessed as volatile bytes.
unsafe impl Send for Pinned {}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({} bytes)", self.length)
    }
}

impl Pinned {
    /// Keeps `run`. `None` if it is not wholly inside `memory`.
    pub fn new(memory: &GuestMemory, run: Segments<'_, '_>) -> Option<Self> {
        let iovecs = run.pieces().map(|piece| {
            let start = piece.ptr_guard_mut().as_ptr();
            lies_in(memory, start as usize, piece.len())
                .then_some(libc::iovec { iov_base: start.cast(), iov_len: piece.len() })
        });
        let iovecs = iovecs.collect::<Option<_>>()?;
        Some(Self { iovecs, done: 0, length: run.len(), _memory: memory.clone() })
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Leaves out the first `count` bytes, or all if there are not that many.
    pub fn advance(&mut self, count: usize) {
        let mut left = count.min(self.length);
        self.length -= left;
        while let Some(iovec) = self.iovecs.get_mut(self.done) {
            if left < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(left);
                iovec.iov_len -= left;
                return;
            }
            left -= iovec.iov_len;
            self.done += 1;
        }
    }

    /// The pieces for one system call, which need not be all. They stay where they are in memory as long as `self` is
    /// neither advanced nor dropped, even if it moves.
    pub fn iovecs(&self) -> &[libc::iovec] {
        let rest = self.iovecs.get(self.done..).unwrap_or_default();
        &rest[..rest.len().min(IOVECS_MAX)]
    }

    /// Copies `data` to the front; answers how many bytes there was room for.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for iovec in self.iovecs() {
            // SAFETY: the piece was checked to lie in a mapping that `_memory` keeps; nobody refers to it otherwise.
            let piece = unsafe { VolatileSlice::new(iovec.iov_base.cast(), iovec.iov_len) };
            let count = piece.len().min(data.len() - done);
            piece.copy_from(&data[done..done + count]);
            done += count;
        }
        done
    }

    /// One `preadv(2)` to the front. May be short.
    pub fn read_at(&self, file: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let iovecs = self.iovecs();
        // SAFETY: the pieces were checked to lie in a mapping that `_memory` keeps, which no Rust reference aliases.
        retry(|| unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count(iovecs), offset) })
    }

    /// One `pwritev(2)` from the front. May be short.
    pub fn write_at(&self, file: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let iovecs = self.iovecs();
        // SAFETY: as in `read_at`; the kernel only reads.
        retry(|| unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count(iovecs), offset) })
    }
}

/// [`IOVECS_MAX`] at most.
fn count(iovecs: &[libc::iovec]) -> i32 {
    i32::try_from(iovecs.len()).unwrap_or(0)
}

/// Whether host addresses belong to one region of guest memory.
fn lies_in(memory: &GuestMemory, start: usize, length: usize) -> bool {
    memory.iter().any(|region| {
        let base = region.as_ptr() as usize;
        let size = usize::try_from(region.len()).unwrap_or(0);
        start.checked_sub(base).and_then(|inside| size.checked_sub(inside)).is_some_and(|room| length <= room)
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::testing::{BASE, Memory, file_with};

    fn slices(memory: &Memory, pieces: &[(u64, usize)]) -> Vec<VolatileSlice<'static>> {
        let slice = |(offset, length): &(u64, usize)| {
            let slice = memory.guest.get_slice(GuestAddress(BASE + offset), *length).unwrap();
            // SAFETY: the tests keep the memory for longer than the slices.
            unsafe { VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), *length) }
        };
        pieces.iter().map(slice).collect()
    }

    #[test]
    fn it_is_worked_off_from_the_front() {
        let memory = Memory::new(&[(BASE, 0x2000)]);
        let slices = slices(&memory, &[(0, 3), (10, 4), (0x1ffb, 5)]);
        let mut pinned = Pinned::new(&memory.guest, Segments::new(&slices)).unwrap();
        let file = file_with(b"abcdefghijkl");
        let fd = std::os::fd::AsFd::as_fd(&file);
        assert_eq!((pinned.len(), pinned.read_at(fd, 0).unwrap()), (12, 12));
        let mut bytes = [0; 5];
        memory.guest.read_slice(&mut bytes, GuestAddress(BASE + 0x1ffb)).unwrap();
        assert_eq!(&bytes, b"hijkl");
        pinned.advance(2);
        assert_eq!((pinned.len(), pinned.iovecs().len()), (10, 3));
        pinned.advance(1);
        assert_eq!((pinned.len(), pinned.iovecs().len()), (9, 2));
        pinned.advance(6);
        assert_eq!((pinned.len(), pinned.iovecs().len()), (3, 1));
        assert_eq!(pinned.write_at(fd, 0).unwrap(), 3);
        assert_eq!(pinned.copy_from(b"wxyz"), 3);
        memory.guest.read_slice(&mut bytes, GuestAddress(BASE + 0x1ffb)).unwrap();
        assert_eq!(&bytes, b"hiwxy");
        pinned.advance(100);
        assert!(pinned.is_empty() && pinned.iovecs().is_empty());
        let mut head = [0; 5];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).unwrap();
        assert_eq!(&head, b"jklde");
    }

    #[test]
    fn what_is_not_guest_memory_cannot_be_pinned() {
        let (memory, other) = (Memory::new(&[(BASE, 0x1000)]), Memory::new(&[(BASE, 0x2000)]));
        for piece in [(0, 1), (0x1fff, 1), (0, 0x2000)] {
            assert!(Pinned::new(&memory.guest, Segments::new(&slices(&other, &[piece]))).is_none());
        }
        let half = [slices(&memory, &[(0, 8)]), slices(&other, &[(0, 8)])].concat();
        assert!(Pinned::new(&memory.guest, Segments::new(&half)).is_none());
        assert!(Pinned::new(&memory.guest, Segments::new(&slices(&memory, &[(0, 0x1000)]))).is_some());
    }
}
