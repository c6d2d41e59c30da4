//! The table of virtio-mmio slots: each has its window of registers, its interrupt line and its queue events.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::boot::cmdline::MmioDevice;
use crate::kvm::{KvmError, Vm};
use crate::layout;
use crate::memory::GuestMemory;
use crate::virtio::mmio::{QUEUE_NOTIFY, WINDOW_SIZE};
use crate::virtio::{MmioTransport, VirtioDevice};

/// The interrupt line of each slot: those above the ISA lines first, then the ISA lines that no PC device claims.
const LINES: [u32; 17] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/// The most devices of a VM.
pub const SLOTS: usize = LINES.len();

/// Why a device cannot be put into its slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// More devices than slots.
    #[error("a VM has at most {SLOTS} devices")]
    Full,
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

/// A device in its slot.
struct Slot {
    name: String,
    place: MmioDevice,
    transport: Mutex<MmioTransport>,
}

/// The devices of a VM by slot. vCPU threads reach registers, the event loop reaches queues; each transport has its
/// own lock.
#[derive(Default)]
pub struct Devices {
    slots: Vec<Slot>,
}

/// Where the device of a slot is.
pub fn place(slot: usize) -> Option<MmioDevice> {
    let irq = *LINES.get(slot)?;
    Some(MmioDevice { address: layout::DEVICES + slot as u64 * WINDOW_SIZE, size: WINDOW_SIZE, irq })
}

impl Devices {
    /// Puts a device into the next slot and connects it to the VM.
    pub fn plug(
        &mut self,
        vm: &Vm,
        memory: &GuestMemory,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), SlotError> {
        let place = place(self.slots.len()).ok_or(SlotError::Full)?;
        let name = device.name().to_owned();
        let irq = vm.interrupt(place.irq)?;
        let transport = MmioTransport::new(memory.clone(), device, irq)
            .map_err(|source| SlotError::Transport { name: name.clone(), source })?;
        for (queue, event) in (0_u32..).zip(transport.queue_events()) {
            vm.notify_on_write(place.address + QUEUE_NOTIFY, queue, event)?;
        }
        self.slots.push(Slot { name, place, transport: Mutex::new(transport) });
        Ok(())
    }

    /// Reads registers. `None` where no device is.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Option<()> {
        let (slot, offset) = self.find(address)?;
        lock(slot).read(offset, data);
        Some(())
    }

    /// Writes registers. `None` where no device is.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<()> {
        let (slot, offset) = self.find(address)?;
        lock(slot).write(offset, data);
        Some(())
    }

    /// Every device with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, MutexGuard<'_, MmioTransport>)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), lock(slot)))
    }

    /// The device of a slot.
    pub fn get(&self, slot: usize) -> Option<MutexGuard<'_, MmioTransport>> {
        self.slots.get(slot).map(lock)
    }

    fn find(&self, address: u64) -> Option<(&Slot, u64)> {
        let offset = address.checked_sub(layout::DEVICES)?;
        let slot = self.slots.get(usize::try_from(offset / WINDOW_SIZE).ok()?)?;
        Some((slot, address - slot.place.address))
    }
}

/// A panic ends the process, so a poisoned lock is never seen by anybody who goes on.
fn lock(slot: &Slot) -> MutexGuard<'_, MmioTransport> {
    slot.transport.lock().unwrap_or_else(PoisonError::into_inner)
}
