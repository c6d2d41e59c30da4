//! The monitor's main thread: one epoll over everything that can happen outside of vCPUs. Nothing polls on a timer.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};

use hull_protocol::vmm::ExitReason;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::machine::Machine;
use crate::virtio::MmioTransport;

/// Events taken at once.
const BATCH: usize = 16;

/// What a descriptor means. An event may be stale, when its slot has changed hands in the same batch: what is done about
/// it must be harmless for whoever is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The control socket has a request or was closed.
    Control,
    /// A vCPU ended the VM.
    Ending,
    /// The guest notified a queue.
    Queue { slot: u16, queue: u16 },
    /// A device's own descriptor is readable.
    Device { slot: u16, index: u16 },
}

impl Source {
    /// The event's data: the kind, the slot, the index.
    fn to_token(self) -> u64 {
        let (kind, slot, index): (u8, u16, u16) = match self {
            Self::Control => (0, 0, 0),
            Self::Ending => (1, 0, 0),
            Self::Queue { slot, queue } => (2, slot, queue),
            Self::Device { slot, index } => (3, slot, index),
        };
        u64::from(kind) << 32 | u64::from(slot) << 16 | u64::from(index)
    }

    fn from_token(token: u64) -> Option<Self> {
        let [index_low, index_high, slot_low, slot_high, kind, ..] = token.to_le_bytes();
        let (index, slot) =
            (u16::from_le_bytes([index_low, index_high]), u16::from_le_bytes([slot_low, slot_high]));
        match kind {
            0 => Some(Self::Control),
            1 => Some(Self::Ending),
            2 => Some(Self::Queue { slot, queue: index }),
            3 => Some(Self::Device { slot, index }),
            _ => None,
        }
    }
}

/// The descriptors that are watched.
#[derive(Debug)]
pub struct Watch {
    epoll: Epoll,
}

impl Watch {
    /// Watches the control socket, the VM's end, and its devices.
    pub fn new(machine: &Machine, socket: RawFd) -> io::Result<Self> {
        let this = Self { epoll: Epoll::new()? };
        this.add(socket, Source::Control)?;
        this.add(machine.ending().event().as_raw_fd(), Source::Ending)?;
        this.add_devices(machine)?;
        Ok(this)
    }

    /// Watches all devices.
    pub fn add_devices(&self, machine: &Machine) -> io::Result<()> {
        let mut result = Ok(());
        machine.devices().for_each(|slot, device| {
            result = std::mem::replace(&mut result, Ok(())).and_then(|()| self.add_device(slot, device));
        });
        result
    }

    /// Watches no device: what happens meanwhile is seen when they are watched again.
    pub fn remove_devices(&self, machine: &Machine) -> io::Result<()> {
        let mut result = Ok(());
        machine.devices().for_each(|_, device| {
            result = std::mem::replace(&mut result, Ok(())).and_then(|()| self.remove_device(device));
        });
        result
    }

    /// Watches a device's queues and descriptors.
    pub fn add_device(&self, slot: usize, device: &MmioTransport) -> io::Result<()> {
        let slot = u16::try_from(slot).map_err(io::Error::other)?;
        for (queue, event) in (0..).zip(device.watched_queue_events()) {
            self.add(event.as_raw_fd(), Source::Queue { slot, queue })?;
        }
        for (index, fd) in (0..).zip(device.poll_fds()) {
            self.add(fd, Source::Device { slot, index })?;
        }
        Ok(())
    }

    /// Undoes [`add_device`](Self::add_device).
    pub fn remove_device(&self, device: &MmioTransport) -> io::Result<()> {
        let queues = device.watched_queue_events().iter().map(AsRawFd::as_raw_fd);
        for fd in queues.chain(device.poll_fds()) {
            self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())?;
        }
        Ok(())
    }

    fn add(&self, fd: RawFd, source: Source) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, source.to_token()))
    }
}

/// Serves devices and the control socket until the VM ends, and says how. `control` is called when the socket is
/// readable, and may end the VM.
pub fn run(
    machine: &Machine,
    watch: &Watch,
    mut control: impl FnMut() -> ControlFlow<ExitReason>,
) -> io::Result<ExitReason> {
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        if let Some(reason) = machine.ending().reason() {
            return Ok(reason.clone());
        }
        let ready = match watch.epoll.wait(-1, &mut events) {
            Ok(ready) => ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in &events[..ready] {
            match Source::from_token(event.data()) {
                Some(Source::Control) => {
                    if let ControlFlow::Break(reason) = control() {
                        machine.ending().cause(reason);
                    }
                }
                // Nothing may move in a paused VM; what is left of the batch is seen again when it goes on.
                Some(Source::Queue { .. } | Source::Device { .. }) if machine.is_paused() => {}
                Some(Source::Queue { slot, queue }) => notify(machine, slot.into(), queue.into()),
                Some(Source::Device { slot, index }) => {
                    machine.devices().with(slot.into(), |device| device.fd_ready(index.into()));
                }
                // Seen at the head of the loop.
                Some(Source::Ending) | None => {}
            }
        }
    }
}

fn notify(machine: &Machine, slot: usize, queue: usize) {
    machine.devices().with(slot, |device| {
        // Read before the queue is served, so that a notification meanwhile is seen again. An event that was consumed
        // elsewhere is nothing to serve.
        if device.watched_queue_events().get(queue).is_some_and(|event| event.read().is_ok()) {
            device.queue_event(queue);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_sources() {
        for source in [
            Source::Control,
            Source::Ending,
            Source::Queue { slot: 31, queue: 2 },
            Source::Queue { slot: 0x1234, queue: 0xffff },
            Source::Device { slot: 0xffff, index: 0 },
        ] {
            assert_eq!(Source::from_token(source.to_token()), Some(source));
        }
        assert_eq!(Source::from_token(4 << 32), None);
    }
}
