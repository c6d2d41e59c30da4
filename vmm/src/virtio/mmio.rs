//! The MMIO transport (virtio 1.3 §4.2).

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::VirtioDevice;
use super::interrupt::Interrupt;
use crate::memory::GuestMemory;

/// The size of a device's register window, in bytes.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Offset of `QueueNotify` in the window: a write of a queue's index is a notification, which KVM can turn into an
/// event by itself (`KVM_IOEVENTFD`, 4 bytes, data match).
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Counters since the start of the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Queue notifications from the driver.
    pub notifications: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Payload bytes moved to the guest.
    pub bytes_to_guest: u64,
    /// Payload bytes moved from the guest.
    pub bytes_from_guest: u64,
    /// Register accesses that the current state does not allow, and were ignored.
    pub ignored_accesses: u64,
}

/// A device and its registers.
pub struct MmioTransport {
    #[allow(dead_code)]
    memory: GuestMemory,
    device: Box<dyn VirtioDevice>,
    interrupt: Interrupt,
    queue_events: Vec<EventFd>,
}

impl MmioTransport {
    /// A transport in the reset state. `irq` is the irqfd of an edge-triggered interrupt.
    pub fn new(memory: GuestMemory, device: Box<dyn VirtioDevice>, irq: EventFd) -> io::Result<Self> {
        let queue_events =
            device.max_queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        Ok(Self { memory, device, interrupt: Interrupt::new(irq), queue_events })
    }

    /// The device's label.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// A read from the register window: any offset, any size.
    pub fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    /// A write to the register window: any offset, any size.
    pub fn write(&mut self, _offset: u64, _data: &[u8]) {}

    /// One event for each queue, to be registered as ioeventfd at [`QUEUE_NOTIFY`] with the queue's index as data
    /// match. Non-blocking.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Further descriptors to watch for input; fixed for the transport's life.
    pub fn poll_fds(&self) -> Vec<RawFd> {
        self.device.poll_fds()
    }

    /// The queue's event was signalled; the caller has read it.
    pub fn queue_event(&mut self, _queue: usize) {}

    /// A descriptor of [`poll_fds`](Self::poll_fds) is readable.
    pub fn fd_ready(&mut self, _index: usize) {}

    /// Counters since the start.
    pub fn counters(&self) -> DeviceCounters {
        DeviceCounters { interrupts: self.interrupt.raised(), ..DeviceCounters::default() }
    }
}
