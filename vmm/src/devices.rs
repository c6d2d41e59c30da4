//! The table of virtio-mmio slots: each has its window of registers, its interrupt line and its queue events.
//!
//! All slots are announced to the guest when it boots. One without a device is a placeholder, which the guest's driver
//! passes over without a word (virtio 1.3 §4.2.2, `DeviceID` 0); it becomes a device by [`Devices::plug`], when the guest
//! is told to look again, and a placeholder by [`Devices::unplug`].

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hull_protocol::vmm::Unplug;

use crate::boot::cmdline::MmioDevice;
use crate::kvm::{KvmError, Vm};
use crate::layout;
use crate::virtio::mmio::{self, QUEUE_NOTIFY, WINDOW_SIZE};
use crate::virtio::{MmioTransport, Quiet, VirtioDevice};

/// Interrupt lines: those above the ISA lines first, then the ISA lines that no PC device claims. Slots that are that far
/// apart share one; each device has its own status register, so their drivers know whose interrupt it was.
const LINES: [u32; 17] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/// The most devices of a VM. Their words fill little more than half of the kernel's command line.
pub const SLOTS: usize = 32;

/// Why a slot does not change.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// More devices than slots.
    #[error("a VM has at most {SLOTS} devices")]
    Full,
    /// Two devices of one name.
    #[error("there is a device {0} already")]
    Duplicate(String),
    /// No device of this name.
    #[error("there is no device {0}")]
    NotThere(String),
    /// A driver holds the device.
    #[error("the guest's driver still holds {0}")]
    InUse(String),
    /// The host does not finish what the device has in flight.
    #[error("the host has not finished what {0} has asked of it")]
    Busy(String),
    /// The transport could not be made.
    #[error("cannot set up the device {name}")]
    Transport {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// KVM refused to connect it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// What is behind a window.
enum Slot {
    Placeholder,
    Device(Box<MmioTransport>),
}

/// The slots of a VM. vCPU threads reach registers, the event loop reaches queues; each slot has its own lock. Only one
/// thread plugs and unplugs.
pub struct Devices {
    slots: [Mutex<Slot>; SLOTS],
}

impl Default for Devices {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Mutex::new(Slot::Placeholder)) }
    }
}

/// Where the device of a slot is. `None` where no slot is.
pub fn place(slot: usize) -> Option<MmioDevice> {
    if slot >= SLOTS {
        return None;
    }
    let irq = LINES[slot % LINES.len()];
    Some(MmioDevice { address: layout::DEVICES + slot as u64 * WINDOW_SIZE, size: WINDOW_SIZE, irq })
}

impl Devices {
    /// Puts a device into the first free slot and connects it to the VM. Answers which slot.
    pub fn plug(&self, vm: &Vm, device: Box<dyn VirtioDevice>) -> Result<usize, SlotError> {
        let name = device.name();
        if self.find(name).is_some() {
            return Err(SlotError::Duplicate(name.to_owned()));
        }
        let free = self.slots.iter().position(|slot| matches!(*lock(slot), Slot::Placeholder));
        let (slot, place) = free.and_then(|slot| Some((slot, place(slot)?))).ok_or(SlotError::Full)?;
        let name = name.to_owned();
        let transport = MmioTransport::new(vm.memory().clone(), device)
            .map_err(|source| SlotError::Transport { name, source })?;
        connect(vm, place, &transport)?;
        *lock(&self.slots[slot]) = Slot::Device(Box::new(transport));
        Ok(slot)
    }

    /// Makes a device's slot a placeholder again, after what the device had in flight is finished. Answers the device,
    /// which the VM does not reach any more.
    pub fn unplug(&self, vm: &Vm, name: &str, how: Unplug) -> Result<Box<MmioTransport>, SlotError> {
        let not_there = || SlotError::NotThere(name.to_owned());
        let slot = self.find(name).ok_or_else(not_there)?;
        let place = place(slot).ok_or_else(not_there)?;
        let mut slot = lock(&self.slots[slot]);
        let Slot::Device(transport) = &mut *slot else { return Err(not_there()) };
        if how == Unplug::Released && transport.has_driver() {
            return Err(SlotError::InUse(name.to_owned()));
        }
        if transport.quiesce() == Quiet::NotYet && how == Unplug::Released {
            return Err(SlotError::Busy(name.to_owned()));
        }
        disconnect(vm, place, transport).inspect_err(|_| transport.resume())?;
        let Slot::Device(mut transport) = std::mem::replace(&mut *slot, Slot::Placeholder) else {
            return Err(not_there());
        };
        transport.retire();
        Ok(transport)
    }

    /// Reads registers. `None` where no slot is.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Option<()> {
        let (slot, offset) = self.at(address)?;
        match &mut *lock(slot) {
            Slot::Placeholder => mmio::read_placeholder(offset, data),
            Slot::Device(transport) => transport.read(offset, data),
        }
        Some(())
    }

    /// Writes registers. `None` where no slot is.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<()> {
        let (slot, offset) = self.at(address)?;
        match &mut *lock(slot) {
            // There is nothing to set.
            Slot::Placeholder => {}
            Slot::Device(transport) => transport.write(offset, data),
        }
        Some(())
    }

    /// Calls for the device of a slot, where there is one.
    pub fn with<R>(&self, slot: usize, call: impl FnOnce(&mut MmioTransport) -> R) -> Option<R> {
        match &mut *lock(self.slots.get(slot)?) {
            Slot::Placeholder => None,
            Slot::Device(transport) => Some(call(transport)),
        }
    }

    /// Calls for every device with its slot.
    pub fn for_each(&self, mut call: impl FnMut(usize, &mut MmioTransport)) {
        for slot in 0..SLOTS {
            self.with(slot, |transport| call(slot, transport));
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        (0..SLOTS).find(|slot| self.with(*slot, |transport| transport.name() == name) == Some(true))
    }

    fn at(&self, address: u64) -> Option<(&Mutex<Slot>, u64)> {
        let offset = address.checked_sub(layout::DEVICES)?;
        let slot = self.slots.get(usize::try_from(offset / WINDOW_SIZE).ok()?)?;
        Some((slot, offset % WINDOW_SIZE))
    }
}

/// Connects a device's interrupt and its queues' notifications: all of it, or nothing.
fn connect(vm: &Vm, place: MmioDevice, transport: &MmioTransport) -> Result<(), KvmError> {
    vm.connect_interrupt(place.irq, transport.interrupt().event())?;
    for (queue, event) in (0_u32..).zip(transport.queue_events()) {
        if let Err(error) = vm.notify_on_write(place.address + QUEUE_NOTIFY, queue, event) {
            for (queue, event) in (0..queue).zip(transport.queue_events()) {
                vm.stop_notifying(place.address + QUEUE_NOTIFY, queue, event)?;
            }
            vm.disconnect_interrupt(place.irq, transport.interrupt().event())?;
            return Err(error);
        }
    }
    Ok(())
}

/// What [`connect`] did, undone.
fn disconnect(vm: &Vm, place: MmioDevice, transport: &MmioTransport) -> Result<(), KvmError> {
    for (queue, event) in (0_u32..).zip(transport.queue_events()) {
        vm.stop_notifying(place.address + QUEUE_NOTIFY, queue, event)?;
    }
    vm.disconnect_interrupt(place.irq, transport.interrupt().event())
}

/// A panic ends the process, so a poisoned lock is never seen by anybody who goes on.
fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
