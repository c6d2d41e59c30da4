//! How a VM ends: one reason, the first, told to whoever waits.

use std::io;
use std::sync::OnceLock;

use hull_protocol::vmm::ExitReason;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The end of a VM, which any thread may cause. Only the first reason counts.
#[derive(Debug)]
pub struct Ending {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl Ending {
    /// An end that has not come.
    pub fn new() -> io::Result<Self> {
        Ok(Self { reason: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Ends the VM, unless it has ended already.
    pub fn cause(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok()
            && let Err(error) = self.event.write(1)
        {
            // It is written once, so its counter cannot be full.
            log::error!("cannot announce the end of the VM: {error}");
        }
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Readable from the end on.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// The exit status of the process: 0 for an end that was asked for, else one for each kind of failure.
///
/// | status | end |
/// |---|---|
/// | 0 | shut down, stopped |
/// | 1 | the monitor failed, or was started wrongly |
/// | 2 | guest reset |
/// | 3 | guest kernel panic |
/// | 4 | triple fault |
/// | 5 | vCPU error |
///
/// And [`DENIED_STATUS`](hull_protocol::vmm::DENIED_STATUS), from the jail.
pub fn exit_status(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::Shutdown | ExitReason::Stopped => 0,
        ExitReason::MonitorError { .. } => 1,
        ExitReason::GuestReset => 2,
        ExitReason::GuestPanic { .. } => 3,
        ExitReason::TripleFault { .. } => 4,
        ExitReason::VcpuError { .. } => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.reason(), None);
        assert!(ending.event().read().is_err());
        ending.cause(ExitReason::GuestReset);
        ending.cause(ExitReason::Shutdown);
        assert_eq!(ending.reason(), Some(&ExitReason::GuestReset));
        assert_eq!(ending.event().read().unwrap(), 1);
    }
}
