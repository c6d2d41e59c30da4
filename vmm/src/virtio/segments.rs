//! Scattered pieces of guest memory as one run of bytes, and the few system calls that move data straight into them.
//!
//! Here and in [`pinned`](super::pinned) alone the kernel is given pointers into guest memory. Guest memory is never seen
//! as a Rust reference: the guest writes to it at any time.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use vm_memory::VolatileSlice;

/// Pieces given to one system call.
const IOVECS: usize = 64;

/// Of memory, as the host's kernel gives it on this architecture.
const PAGE: usize = 4096;

/// What became of memory that was to be given back, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// The host has it.
    pub bytes: u64,
    /// It stays where it is: it was not a whole page, or the host did not want it.
    pub refused: u64,
}

impl GivenBack {
    /// Sums up.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.refused += other.refused;
    }
}

/// A run of bytes in guest memory, checked to be inside it. A cheap, copyable view.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a, 'm> {
    slices: &'a [VolatileSlice<'m>],
    /// Bytes of the first slice that come before the run.
    skip: usize,
    len: usize,
}

impl<'a, 'm> Segments<'a, 'm> {
    /// All bytes of the slices, in order.
    pub fn new(slices: &'a [VolatileSlice<'m>]) -> Self {
        Self { slices, skip: 0, len: slices.iter().map(VolatileSlice::len).sum() }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `count` bytes and the rest; all and nothing if there are not that many.
    pub fn split_at(mut self, count: usize) -> (Self, Self) {
        let count = count.min(self.len);
        let first = Self { len: count, ..self };
        self.len -= count;
        let mut skip = self.skip + count;
        while let [head, rest @ ..] = self.slices
            && skip >= head.len()
        {
            skip -= head.len();
            self.slices = rest;
        }
        self.skip = skip;
        (first, self)
    }

    /// What remains after the first `count` bytes.
    pub fn after(self, count: usize) -> Self {
        self.split_at(count).1
    }

    /// The contiguous pieces, none of them empty.
    pub(super) fn pieces(self) -> impl Iterator<Item = VolatileSlice<'m>> + 'a {
        let mut skip = self.skip;
        let mut left = self.len;
        self.slices.iter().map_while(move |slice| {
            let count = slice.len().checked_sub(skip)?.min(left);
            let piece = slice.subslice(skip, count).ok()?;
            skip = 0;
            left -= count;
            (count > 0).then_some(piece)
        })
    }

    /// Copies from the front into `data`; answers how many bytes there were.
    pub fn copy_to(self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.split_at(data.len()).0.pieces() {
            done += piece.copy_to(&mut data[done..]);
        }
        done
    }

    /// Copies `data` to the front; answers how many bytes there was room for.
    pub fn copy_from(self, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.split_at(data.len()).0.pieces() {
            piece.copy_from(&data[done..done + piece.len()]);
            done += piece.len();
        }
        done
    }

    /// One `preadv(2)` into the run. May be short.
    pub fn read_at(self, file: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (iovecs, count) = self.iovecs();
        // SAFETY: every iovec lies inside a live mapping of guest memory ('m), which only the kernel writes here and
        // which no Rust reference aliases.
        retry(|| unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset) })
    }

    /// One `pwritev(2)` of the run. May be short.
    pub fn write_at(self, file: BorrowedFd<'_>, offset: i64) -> io::Result<usize> {
        let (iovecs, count) = self.iovecs();
        // SAFETY: as in `read_at`; the kernel only reads.
        retry(|| unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, offset) })
    }

    /// One `pwritev2(2)` of the run to the end of the file, wherever that is by then. May be short.
    pub fn append_to(self, file: BorrowedFd<'_>) -> io::Result<usize> {
        let (iovecs, count) = self.iovecs();
        // SAFETY: as in `read_at`; the kernel only reads.
        retry(|| unsafe { libc::pwritev2(file.as_raw_fd(), iovecs.as_ptr(), count, 0, libc::RWF_APPEND) })
    }

    /// One receive from a socket, without waiting. May be short; zero is the end of the stream if the run has room.
    pub fn receive(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (mut iovecs, count) = self.iovecs();
        let mut message = message(&mut iovecs, count);
        // SAFETY: the header is initialised and lives through the call; every iovec lies inside a live mapping of guest
        // memory ('m), which only the kernel writes here and which no Rust reference aliases.
        retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
    }

    /// One send to a socket, without waiting and without `SIGPIPE`. May be short.
    pub fn send(self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (mut iovecs, count) = self.iovecs();
        let message = message(&mut iovecs, count);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the header is initialised and lives through the call; its iovecs are as in `receive`,
        // and only read.
        retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
    }

    /// One `writev(2)` of `prefix` and then the run, for a descriptor that takes a whole message at a time. `None` when
    /// the run lies in more pieces than one call takes.
    pub fn write_after(self, prefix: &[u8], file: BorrowedFd<'_>) -> Option<io::Result<usize>> {
        let (pieces, count) = self.iovecs();
        let pieces = &pieces[..usize::try_from(count).unwrap_or(0)];
        if pieces.iter().map(|piece| piece.iov_len).sum::<usize>() < self.len {
            return None;
        }
        let mut iovecs = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; IOVECS + 1];
        iovecs[0] = libc::iovec { iov_base: prefix.as_ptr().cast_mut().cast(), iov_len: prefix.len() };
        iovecs[1..=pieces.len()].copy_from_slice(pieces);
        // SAFETY: the first iovec is `prefix`, which is borrowed through the call and only read; for the others see
        // `read_at`.
        Some(retry(|| unsafe { libc::writev(file.as_raw_fd(), iovecs.as_ptr(), count + 1) }))
    }

    /// Fills the run from the kernel's random number generator; answers how far it came.
    pub fn fill_random(self) -> io::Result<usize> {
        let mut done = 0;
        for piece in self.pieces() {
            let guard = piece.ptr_guard_mut();
            // SAFETY: the piece lies inside a live mapping of guest memory, aliased by no Rust reference.
            let count = retry(|| unsafe { libc::getrandom(guard.as_ptr().cast(), piece.len(), 0) })?;
            done += count;
            if count < piece.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Gives the whole pages of the run back to the host: they take up no memory until they are touched again. Anonymous
    /// memory then reads as zeroes, that of a private mapping of a file as the file.
    pub fn give_back(self) -> GivenBack {
        let mut total = GivenBack::default();
        for piece in self.pieces() {
            let start = piece.ptr_guard_mut().as_ptr();
            let skip = start.align_offset(PAGE);
            let length = piece.len().saturating_sub(skip) / PAGE * PAGE;
            // SAFETY: the pages lie inside a live mapping of guest memory ('m), whose content may change at any time
            // anyway and which no Rust reference aliases. Their mapping stays.
            let given = length > 0
                && unsafe { libc::madvise(start.wrapping_add(skip).cast(), length, libc::MADV_DONTNEED) }
                    == 0;
            let bytes = if given { length as u64 } else { 0 };
            total.add(GivenBack { bytes, refused: piece.len() as u64 - bytes });
        }
        total
    }

    fn iovecs(self) -> ([libc::iovec; IOVECS], i32) {
        let mut iovecs = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; IOVECS];
        let mut count = 0;
        for (iovec, piece) in iovecs.iter_mut().zip(self.pieces()) {
            *iovec = libc::iovec { iov_base: piece.ptr_guard_mut().as_ptr().cast(), iov_len: piece.len() };
            count += 1;
        }
        (iovecs, count)
    }
}

fn message(iovecs: &mut [libc::iovec; IOVECS], count: i32) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes is a valid, empty value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = usize::try_from(count).unwrap_or(0);
    message
}

/// Repeats a system call that a signal interrupted before it did anything.
pub(super) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
