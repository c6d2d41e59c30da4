//! Hull's own terminal: raw mode with a restore that cannot be forgotten, and its size.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;

use nix::sys::termios::{self, SetArg, Termios};

use crate::error::CliError;
use crate::spec::WindowSize;

/// Whether stdin is a terminal.
pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// The size of the terminal that the user sees: stdout's, else stdin's.
pub fn window_size() -> Option<WindowSize> {
    size_of(io::stdout().as_fd()).or_else(|| size_of(io::stdin().as_fd()))
}

fn size_of(terminal: BorrowedFd<'_>) -> Option<WindowSize> {
    use std::os::fd::AsRawFd;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is valid for the call; the descriptor is borrowed.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// A terminal in raw mode. Dropping it, and a panic anywhere, bring back what was there before; signals that end Hull are
/// taken by the event loop, so that the drop happens.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Makes stdin raw: every key goes to the container as it is.
    pub fn enter() -> Result<Self, CliError> {
        let failed = || CliError::io("cannot switch the terminal to raw mode");
        let terminal = io::stdin().as_fd().try_clone_to_owned().map_err(failed())?;
        Self::of(terminal).map_err(failed())
    }

    fn of(terminal: OwnedFd) -> io::Result<Self> {
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&terminal, SetArg::TCSADRAIN, &raw)?;
        restore_on_panic(&terminal, &before)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // If the terminal has gone away there is nothing to restore.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// A panic may abort the process without unwinding, so that no drop runs: restore in the hook.
fn restore_on_panic(terminal: &OwnedFd, before: &Termios) -> io::Result<()> {
    let terminal = terminal.try_clone()?;
    let before = libc::termios::from(before.clone());
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // As in drop.
        let _ = termios::tcsetattr(&terminal, SetArg::TCSANOW, &Termios::from(before));
        report(info);
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;
    use nix::sys::termios::LocalFlags;

    use super::*;

    fn is_raw(terminal: &OwnedFd) -> bool {
        let flags = termios::tcgetattr(terminal).unwrap().local_flags;
        !flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    #[test]
    fn raw_mode_ends_with_the_guard_and_on_a_panic() {
        let pty = openpty(None, None).unwrap();
        let other = pty.slave.try_clone().unwrap();
        assert!(!is_raw(&other));
        let raw = RawTerminal::of(pty.slave.try_clone().unwrap()).unwrap();
        assert!(is_raw(&other));
        drop(raw);
        assert!(!is_raw(&other));

        let raw = RawTerminal::of(pty.slave.try_clone().unwrap()).unwrap();
        // The guard is leaked, as by an abort: only the hook can restore.
        std::mem::forget(raw);
        let panicked = std::thread::spawn(|| panic!("expected by the test")).join();
        assert!(panicked.is_err() && !is_raw(&other));
    }

    #[test]
    fn the_size_is_what_the_terminal_says() {
        let size = nix::pty::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        assert_eq!(size_of(pty.slave.as_fd()), Some(WindowSize { rows: 33, columns: 77 }));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size_of(file.as_fd()), None);
    }
}
