//! The MMIO transport (virtio 1.3 §4.2): registers on one side, a device on the other, the status state machine
//! between them.
//!
//! Every access of any size at any offset is answered. What the current state does not allow is ignored and counted;
//! what a device cannot go on after becomes `DEVICE_NEEDS_RESET`, never a panic.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use hull_protocol::vmm::DeviceStats;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Activated, DeviceError, Listener, Quiet, VirtioDevice};
use super::interrupt::{CONFIGURATION_CHANGE, Interrupt};
use super::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT, QueueSetup, RunningQueue};
use crate::memory::GuestMemory;

mod registers;
mod state;
#[cfg(test)]
mod tests;

use registers::{CONFIG, MAGIC, Register, VENDOR, VERSION};
use state::{DRIVER, Effect, FEATURE_VERSION_1, Frozen, State};

/// The size of a device's register window, in bytes.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Offset of `QueueNotify` in the window: a write of a queue's index is a notification, which KVM can turn into an
/// event by itself (`KVM_IOEVENTFD`, 4 bytes, data match).
pub const QUEUE_NOTIFY: u64 = 0x50;

/// What the transport and the queues offer for every device.
pub const TRANSPORT_FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;

/// Failures that are worth a warning; those after them are the guest's hobby.
const FAILURES_LOGGED: u64 = 8;

/// A device and its registers.
pub struct MmioTransport {
    memory: GuestMemory,
    device: Box<dyn VirtioDevice>,
    state: State,
    selected: Selected,
    interrupt: Interrupt,
    queue_events: Vec<EventFd>,
    /// The same events, for the queues to notify themselves.
    self_notifications: Vec<Arc<EventFd>>,
    notifications: u64,
    ignored_accesses: u64,
    failures: u64,
}

/// The selector registers.
#[derive(Clone, Copy, Debug, Default)]
struct Selected {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device.name())
            .field("state", &self.state)
            .field("ignored_accesses", &self.ignored_accesses)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A transport in the reset state. Its interrupt's event is to be registered as irqfd of an edge-triggered interrupt.
    pub fn new(memory: GuestMemory, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let queue_events: Vec<EventFd> =
            device.max_queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        let self_notifications =
            queue_events.iter().map(|event| event.try_clone().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self {
            memory,
            device,
            state: State::Reset,
            selected: Selected::default(),
            interrupt: Interrupt::new(EventFd::new(EFD_NONBLOCK)?),
            queue_events,
            self_notifications,
            notifications: 0,
            ignored_accesses: 0,
            failures: 0,
        })
    }

    /// The device's label.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// The interrupt line. Its `status` and `acknowledge` are the registers at 0x60 and 0x64 and need no lock on the
    /// transport: a vCPU in an interrupt handler need not wait for the device's work.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// A read from the register window: any offset, any size. What is not there reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if offset < WINDOW_SIZE - CONFIG {
                self.device.read_config(offset, data);
            }
            return;
        }
        match (Register::at(offset), <&mut [u8; 4]>::try_from(data)) {
            (Some(register), Ok(data)) => *data = self.read_register(register).to_le_bytes(),
            _ => self.ignored_accesses += 1,
        }
    }

    /// A write to the register window: any offset, any size.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if offset >= WINDOW_SIZE - CONFIG || self.device.write_config(offset, data).is_none() {
                self.ignored_accesses += 1;
            }
            return;
        }
        match (Register::at(offset), <[u8; 4]>::try_from(data)) {
            (Some(register), Ok(data)) => {
                let value = u32::from_le_bytes(data);
                if self.write_register(register, value).is_none() {
                    self.ignored_accesses += 1;
                }
            }
            _ => self.ignored_accesses += 1,
        }
    }

    /// One event for each queue, to be registered as ioeventfd at [`QUEUE_NOTIFY`] with the queue's index as data
    /// match. Non-blocking.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Those of [`queue_events`](Self::queue_events) that are to be watched for input, and read before
    /// [`queue_event`](Self::queue_event): all or none.
    pub fn watched_queue_events(&self) -> &[EventFd] {
        match self.device.listener() {
            Listener::Device => &self.queue_events,
            Listener::Kernel => &[],
        }
    }

    /// Further descriptors to watch for input, level-triggered; fixed for the transport's life.
    pub fn poll_fds(&self) -> Vec<RawFd> {
        self.device.poll_fds()
    }

    /// The queue's event was signalled; the caller has read it.
    pub fn queue_event(&mut self, queue: usize) {
        self.notifications += 1;
        let State::Running(frozen) = &self.state else { return };
        if frozen.queues().get(queue).is_none_or(|setup| !setup.ready) {
            return;
        }
        let result = self.device.queue_notified(queue);
        self.check(result);
    }

    /// A descriptor of [`poll_fds`](Self::poll_fds) is readable.
    pub fn fd_ready(&mut self, index: usize) {
        let result = self.device.fd_ready(index);
        self.check(result);
    }

    /// Finishes what is in flight. Where that has worked, nothing moves until the next call.
    pub fn quiesce(&mut self) -> Quiet {
        match self.device.quiesce() {
            Ok(quiet) => quiet,
            // The device is reset.
            Err(error) => {
                self.check(Err(error));
                Quiet::Yes
            }
        }
    }

    /// Undoes [`quiesce`](Self::quiesce).
    pub fn resume(&mut self) {
        let result = self.device.resume();
        self.check(result);
    }

    /// Whether a driver has taken the device and not yet let go of it.
    pub fn has_driver(&self) -> bool {
        self.state.status() & DRIVER != 0
    }

    /// The end of the device in this VM: forgets the driver.
    pub fn retire(&mut self) {
        self.state = State::Reset;
        self.device.reset();
    }

    /// Counters since the start.
    pub fn counters(&self) -> DeviceStats {
        let (bytes_to_guest, bytes_from_guest) = self.device.bytes_moved();
        DeviceStats {
            notifications: self.notifications,
            interrupts: self.interrupt.raised(),
            bytes_to_guest,
            bytes_from_guest,
            failures: self.failures,
            host_errors: self.device.host_errors(),
            ignored_accesses: self.ignored_accesses,
        }
    }

    fn read_register(&mut self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.device.device_type(),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => half(self.offered(), self.selected.device_features),
            Register::QueueNumMax => {
                let sizes = self.device.max_queue_sizes();
                let queue = usize::try_from(self.selected.queue).ok();
                queue.and_then(|index| sizes.get(index)).map_or(0, |size| u32::from(*size))
            }
            Register::QueueReady => u32::from(self.state.queue(self.selected.queue).is_some_and(|q| q.ready)),
            Register::InterruptStatus => self.interrupt.status(),
            Register::Status => self.state.status(),
            // No shared memory region exists (§4.2.2).
            Register::ShmLenLow | Register::ShmLenHigh | Register::ShmBaseLow | Register::ShmBaseHigh => {
                u32::MAX
            }
            Register::ConfigGeneration => self.device.config_generation(),
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueNum
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh
            | Register::ShmSel
            | Register::QueueReset => {
                self.ignored_accesses += 1;
                0
            }
        }
    }

    /// `None` when the write makes no sense now.
    fn write_register(&mut self, register: Register, value: u32) -> Option<()> {
        match register {
            Register::DeviceFeaturesSel => self.selected.device_features = value,
            Register::DriverFeaturesSel => self.selected.driver_features = value,
            Register::QueueSel => self.selected.queue = value,
            Register::DriverFeatures => {
                let accepted = self.state.accepting_features()?;
                set_half(accepted, self.selected.driver_features, value)?;
            }
            Register::QueueReady => self.selected_queue()?.ready = value & 1 != 0,
            Register::QueueNum => self.idle_queue()?.size = value,
            Register::QueueDescLow => set_half(&mut self.idle_queue()?.descriptors, 0, value)?,
            Register::QueueDescHigh => set_half(&mut self.idle_queue()?.descriptors, 1, value)?,
            Register::QueueDriverLow => set_half(&mut self.idle_queue()?.available, 0, value)?,
            Register::QueueDriverHigh => set_half(&mut self.idle_queue()?.available, 1, value)?,
            Register::QueueDeviceLow => set_half(&mut self.idle_queue()?.used, 0, value)?,
            Register::QueueDeviceHigh => set_half(&mut self.idle_queue()?.used, 1, value)?,
            Register::QueueNotify => self.notify(value)?,
            Register::InterruptAck => self.interrupt.acknowledge(value),
            Register::Status => self.write_status(value)?,
            Register::ShmSel => {}
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueNumMax
            | Register::InterruptStatus
            | Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh
            | Register::QueueReset
            | Register::ConfigGeneration => return None,
        }
        Some(())
    }

    fn selected_queue(&mut self) -> Option<&mut QueueSetup> {
        self.state.queue_mut(self.selected.queue)
    }

    /// The selected queue while the driver may write to it: before it is ready (§4.2.2.2).
    fn idle_queue(&mut self) -> Option<&mut QueueSetup> {
        self.selected_queue().filter(|queue| !queue.ready)
    }

    /// A notification that KVM did not turn into an event: it takes the same way as one that KVM did.
    fn notify(&mut self, queue: u32) -> Option<()> {
        let State::Running(_) = &self.state else { return None };
        let event = self.queue_events.get(usize::try_from(queue).ok()?)?;
        match event.write(1) {
            Ok(()) => {}
            // A full counter is a pending notification.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.check(Err(DeviceError::Host(error))),
        }
        Some(())
    }

    fn write_status(&mut self, value: u32) -> Option<()> {
        let offered = self.offered();
        match self.state.write_status(value, offered, self.device.max_queue_sizes()) {
            Effect::None => {}
            Effect::Ignored => return None,
            Effect::Activate => {
                if let State::Running(frozen) = &self.state {
                    let result = self.running_queues(frozen).map(|activated| self.device.activate(activated));
                    self.check(result);
                }
            }
            Effect::Stop => self.device.reset(),
            Effect::Reset => {
                self.device.reset();
                self.interrupt.acknowledge(u32::MAX);
                self.selected = Selected::default();
            }
        }
        Some(())
    }

    fn running_queues(&self, frozen: &Frozen) -> Result<Activated, DeviceError> {
        let features = frozen.features();
        let queues = frozen.queues().iter().zip(&self.self_notifications).enumerate();
        let queues = queues
            .map(|(index, (setup, notification))| {
                if !setup.ready {
                    return Ok(None);
                }
                let interrupt = self.interrupt.clone();
                RunningQueue::new(setup, features, self.memory.clone(), interrupt, Arc::clone(notification))
                    .map(Some)
                    .map_err(|source| DeviceError::Queue { queue: index, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Activated { queues, features, interrupt: self.interrupt.clone() })
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// After an error the device is stopped, so that its host side ends too, and the driver is told.
    fn check(&mut self, result: Result<(), DeviceError>) {
        let Err(error) = result else { return };
        if !self.state.need_reset() {
            return;
        }
        self.device.reset();
        self.interrupt.raise(CONFIGURATION_CHANGE);
        self.failures += 1;
        // A guest can do this as often as it likes.
        let level = if self.failures <= FAILURES_LOGGED { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{} needs a reset: {}", self.device.name(), Causes(&error));
    }
}

/// A read from the window of a slot without a device: `DeviceID` is 0, which means that there is nothing for a driver
/// (§4.2.2), and so is all that a driver does not read before.
pub fn read_placeholder(offset: u64, data: &mut [u8]) {
    data.fill(0);
    if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
        let value = match Register::at(offset) {
            Some(Register::MagicValue) => MAGIC,
            Some(Register::Version) => VERSION,
            _ => 0,
        };
        *data = value.to_le_bytes();
    }
}

/// An error and what it came from, on one line.
struct Causes<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// 32 of 64 bits: the low half for selector 0, the high half for 1, nothing beyond.
fn half(value: u64, selector: u32) -> u32 {
    let shifted = match selector {
        0 => value,
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or(0)
}

/// Sets what [`half`] reads.
fn set_half(value: &mut u64, selector: u32, half: u32) -> Option<()> {
    let shift = match selector {
        0 => 0,
        1 => 32,
        // Feature bits from 64 on, of which none was offered: refusing all of them is no mistake.
        _ => return (half == 0).then_some(()),
    };
    *value = *value & !(u64::from(u32::MAX) << shift) | u64::from(half) << shift;
    Some(())
}
