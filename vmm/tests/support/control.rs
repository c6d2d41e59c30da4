//! How a program of Hull's is given its control socket. The monitor's benchmark uses this file, too.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use hull_protocol::vmm::CONTROL_FD;

/// Has the program find `socket` as [`CONTROL_FD`]. It must be open until the program was started.
pub fn hand_over(command: &mut Command, socket: &OwnedFd) {
    let fd = socket.as_raw_fd();
    // SAFETY: between fork and exec only fcntl and dup2 are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            let done =
                if fd == CONTROL_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, CONTROL_FD) };
            if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
}
