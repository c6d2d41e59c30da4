//! `hull-fsd`: the file broker of one pod, told what to give out over the socket it inherits as descriptor 3.

use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use hull_protocol::fs::CONTROL_FD;
use hull_protocol::vmm::Channel;
use hull_vmm::broker::server::Server;
use hull_vmm::broker::{Broker, jail};
use hull_vmm::error::chain;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("panicked: {panic}").replace('\n', " "));
        std::process::abort();
    }));
    if std::env::args_os().len() > 1 {
        say(
            "takes no arguments: it is started by containerd-shim-hull-v2 and told what to do over descriptor 3",
        );
        return ExitCode::FAILURE;
    }
    let control = match control_socket() {
        Ok(control) => control,
        Err(error) => {
            say(&format!("descriptor {CONTROL_FD} must be a SOCK_SEQPACKET socket: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // The jail comes before the first message.
    let proc = match jail::enter() {
        Ok(proc) => proc,
        Err(error) => {
            say(&chain(&error));
            return ExitCode::FAILURE;
        }
    };
    match Server::new(Broker::new(proc), control).run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The inherited socket, which no child is to inherit again.
fn control_socket() -> nix::Result<Channel> {
    // SAFETY: it is only asked about here; where it is not open, the question fails.
    let fd = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
        return Err(Errno::EPROTOTYPE);
    }
    // SAFETY: it is open, and by the contract of this program inherited for nobody but us.
    Ok(Channel::from(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) }))
}

/// Writes one line to standard error.
fn say(message: &str) {
    // There is nowhere to complain to if standard error is closed.
    let _ = writeln!(std::io::stderr(), "hull-fsd: {message}");
}
