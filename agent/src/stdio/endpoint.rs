//! The agent's end of a pipe or terminal, without blocking.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::terminal;

/// What an endpoint holds that has not been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Bytes that can be read. Of a terminal they are at most 4 KiB, whatever waits behind them.
    pub bytes: u64,
    /// Nobody has the other side open: nothing more can come.
    pub closed: bool,
}

/// A descriptor that is read and written without blocking.
#[derive(Debug)]
pub struct Endpoint {
    fd: AsyncFd<OwnedFd>,
}

impl Endpoint {
    /// Makes `fd` non-blocking. Its open file must not be shared with another process.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd: crate::sys::ready::watch(fd, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Reads at least one byte; 0 at the end. Can be cancelled without losing bytes.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            let result = ready.try_io(|fd| {
                to_the_end(|| {
                    // SAFETY: the buffer and its length belong together.
                    let count =
                        unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
                    usize::try_from(count).map_err(|_| io::Error::last_os_error())
                })
            });
            match result {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// What it holds at this moment.
    pub fn pending(&self) -> Pending {
        // A descriptor that cannot be asked is not waited for.
        let closed = terminal::is_hung_up(self.as_fd()).unwrap_or(false);
        Pending { bytes: terminal::readable_bytes(self.as_fd()).unwrap_or(0), closed }
    }

    /// Writes all of `data`.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.fd.writable().await?;
            let result = ready.try_io(|fd| {
                // SAFETY: the buffer and its length belong together.
                let count = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
                usize::try_from(count).map_err(|_| io::Error::last_os_error())
            });
            match result {
                Ok(Ok(count)) => data = &data[count..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// Reads with `read`, and makes the end of a terminal the end of a pipe: 0 bytes.
///
/// The master of a terminal says EIO when it is empty and nobody has the other side open. The kernel looks at the first and
/// then at the second, so whoever writes and closes in between is not seen: only the second EIO in a row is the end.
fn to_the_end(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let ended = |result: &io::Result<usize>| {
        result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
    };
    let first = read();
    if !ended(&first) {
        return first;
    }
    let second = read();
    if ended(&second) { Ok(0) } else { second }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_just_before_the_end_of_a_terminal_is_read() {
        let eio = || Err(io::Error::from_raw_os_error(libc::EIO));
        let read = |results: Vec<io::Result<usize>>| {
            let mut results = results.into_iter();
            let result = to_the_end(|| results.next().unwrap());
            (result.map_err(|error| error.raw_os_error()), results.count())
        };
        assert_eq!(read(vec![eio(), Ok(9), eio()]), (Ok(9), 1));
        assert_eq!(read(vec![eio(), eio(), Ok(9)]), (Ok(0), 1));
        assert_eq!(read(vec![Ok(9), eio()]), (Ok(9), 1));
        assert_eq!(read(vec![Err(io::Error::from_raw_os_error(libc::EAGAIN))]), (Err(Some(libc::EAGAIN)), 0));
    }
}
