//! `hull-vmm`: one VM, told what to do over the socket it inherits as descriptor 3.

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use hull_protocol::vmm::{CONTROL_FD, Channel};
use hull_vmm::ending::exit_status;
use nix::sys::socket::{SockType, getsockopt, sockopt};

fn main() -> ExitCode {
    let start = Instant::now();
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("panicked: {panic}").replace('\n', " "));
        std::process::abort();
    }));
    one_heap();
    // It fails only where there is a logger already.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    if std::env::args_os().len() > 1 {
        say(
            "takes no arguments: it is started by containerd-shim-hull-v2 and told what to do over descriptor 3",
        );
        return ExitCode::FAILURE;
    }
    match control_socket() {
        Ok(channel) => ExitCode::from(exit_status(&hull_vmm::control::serve(&channel, start))),
        Err(error) => {
            say(&format!("descriptor {CONTROL_FD} must be a SOCK_SEQPACKET socket: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The inherited socket, which no child is to inherit again.
fn control_socket() -> nix::Result<Channel> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::BorrowedFd;

    // SAFETY: it is only asked about here; where it is not open, the question fails.
    let fd = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
        return Err(nix::errno::Errno::EPROTOTYPE);
    }
    // SAFETY: it is open, and by the contract of this program inherited for nobody but us.
    Ok(Channel::from(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) }))
}

/// Keeps all threads on one heap: each further one of glibc's costs memory, and shrinking one opens a file.
fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread exists yet, and the parameter is a documented one.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Writes one line to standard error.
fn say(message: &str) {
    // There is nowhere to complain to if standard error is closed.
    let _ = writeln!(std::io::stderr(), "hull-vmm: {message}");
}

static STDERR: StderrLog = StderrLog { lines: AtomicU32::new(0) };

/// Warnings and errors as lines, of which a guest can cause no more than so many.
struct StderrLog {
    lines: AtomicU32,
}

impl StderrLog {
    const LINES_MAX: u32 = 100;
}

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Saturates: a wrap would begin again.
        let lines = self.lines.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_add(1));
        match lines {
            Ok(n) if n < Self::LINES_MAX => say(&record.args().to_string()),
            Ok(Self::LINES_MAX) => say("further messages are dropped"),
            Ok(_) | Err(_) => {}
        }
    }

    fn flush(&self) {}
}
