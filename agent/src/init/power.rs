//! The end of the machine.

use hull_protocol::agent::{EXIT_ORDERLY, EXIT_PORT};

use crate::sys::port;

/// Flushes and ends the machine in good order.
pub fn off() -> ! {
    nix::unistd::sync();
    if let Err(error) = port::write(EXIT_PORT, EXIT_ORDERLY) {
        log::error!("cannot write to the exit port: {error}");
    }
    // Reached where the monitor is not Hull's.
    if let Err(error) = port::power_off() {
        log::error!("cannot power off: {error}");
    }
    crate::sys::process::exit(0)
}

/// Ends the machine after a failure: the host sees a reset instead of an orderly end.
pub fn restart() -> ! {
    nix::unistd::sync();
    if let Err(error) = port::restart() {
        log::error!("cannot restart: {error}");
    }
    crate::sys::process::exit(1)
}
