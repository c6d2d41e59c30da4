//! Pseudo-terminals by descriptor.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, owned};

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Unlocks the pseudo-terminal of which `master` is the master, and opens the other side.
pub fn open_slave(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int; TIOCGPTPEER takes open flags and returns a descriptor.
    unsafe {
        check(libc::c_long::from(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock)))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        owned(libc::c_long::from(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)))
    }
}

/// Sets the terminal's size; its foreground processes get SIGWINCH.
pub fn set_size(terminal: BorrowedFd<'_>, size: WindowSize) -> nix::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`.
    check(libc::c_long::from(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size)
    }))?;
    Ok(())
}

/// Makes `terminal` the controlling terminal of the calling session leader.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }))?;
    Ok(())
}

/// Bytes that can be read from a pipe or terminal at this moment (FIONREAD).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) }))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Whether nobody has the other side of a pipe or terminal open. What was written to it before is readable after this: a
/// terminal moves it with a delay otherwise.
pub fn is_hung_up(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which outlives the call; it does not wait.
    check(libc::c_long::from(unsafe { libc::poll(&raw mut poll, 1, 0) }))?;
    Ok(poll.revents & libc::POLLHUP != 0)
}
