//! The monitor's main thread: one epoll over everything that can happen outside of vCPUs. Nothing polls on a timer.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};

use hull_protocol::vmm::ExitReason;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::machine::Machine;

/// Events taken at once.
const BATCH: usize = 16;

/// What a descriptor means.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The control socket has a request or was closed.
    Control,
    /// A vCPU ended the VM.
    Ending,
    /// The guest notified a queue.
    Queue { slot: usize, queue: usize },
    /// A device's own descriptor is readable.
    Device { slot: usize, index: usize },
}

/// Serves devices and the control socket until the VM ends, and says how. `control` is called when the socket is
/// readable, and may end the VM.
pub fn run(
    machine: &Machine,
    socket: RawFd,
    mut control: impl FnMut() -> ControlFlow<ExitReason>,
) -> io::Result<ExitReason> {
    let (epoll, sources) = watch(machine, socket)?;
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        if let Some(reason) = machine.ending().reason() {
            return Ok(reason.clone());
        }
        let ready = match epoll.wait(-1, &mut events) {
            Ok(ready) => ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in &events[..ready] {
            match usize::try_from(event.data()).ok().and_then(|token| sources.get(token)) {
                Some(Source::Control) => {
                    if let ControlFlow::Break(reason) = control() {
                        machine.ending().cause(reason);
                    }
                }
                Some(Source::Queue { slot, queue }) => notify(machine, *slot, *queue),
                Some(Source::Device { slot, index }) => {
                    if let Some(mut device) = machine.devices().get(*slot) {
                        device.fd_ready(*index);
                    }
                }
                // Seen at the head of the loop.
                Some(Source::Ending) | None => {}
            }
        }
    }
}

fn watch(machine: &Machine, socket: RawFd) -> io::Result<(Epoll, Vec<Source>)> {
    let mut watched = vec![(socket, Source::Control), (machine.ending().event().as_raw_fd(), Source::Ending)];
    for (slot, (_, device)) in machine.devices().iter().enumerate() {
        let queues = device.queue_events().iter().enumerate();
        watched.extend(queues.map(|(queue, event)| (event.as_raw_fd(), Source::Queue { slot, queue })));
        let descriptors = device.poll_fds().into_iter().enumerate();
        watched.extend(descriptors.map(|(index, fd)| (fd, Source::Device { slot, index })));
    }
    let epoll = Epoll::new()?;
    for (token, (fd, _)) in (0..).zip(&watched) {
        epoll.ctl(ControlOperation::Add, *fd, EpollEvent::new(EventSet::IN, token))?;
    }
    Ok((epoll, watched.into_iter().map(|(_, source)| source).collect()))
}

fn notify(machine: &Machine, slot: usize, queue: usize) {
    let Some(mut device) = machine.devices().get(slot) else { return };
    // Read before the queue is served, so that a notification meanwhile is seen again. An event that was consumed
    // elsewhere is nothing to serve.
    if device.queue_events().get(queue).is_some_and(|event| event.read().is_ok()) {
        device.queue_event(queue);
    }
}
