//! A virtqueue after `DRIVER_OK` and the one loop over its available ring.
//!
//! Everything that all devices have in common is here: finding chains, checking them, the used ring, suppression of
//! notifications both ways (virtio 1.3 §2.7.7, §2.7.10), interrupts. A device says what to do with one chain.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{self, Chain, ChainError, Indirect, Table};
use super::interrupt::{Interrupt, USED_BUFFER};
use crate::memory::GuestMemory;

mod run;

use run::Run;

/// `VIRTIO_F_INDIRECT_DESC`.
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It goes back to the driver with this many bytes written, from the start of its writable part. A run of chains
    /// goes back as one: the driver sees all of them or none.
    Done(u32),
    /// The device keeps it and will [`complete`](RunningQueue::complete) it. For a single chain, never for a run.
    Deferred,
    /// Its writable part is too small: the device is called again when there is a further chain, with the writable
    /// parts of all as one. When there is none, they stay in the ring, and the loop ends.
    More,
    /// The device cannot use it now: it stays in the ring, and the loop ends.
    Stop,
}

/// A queue's configuration as the driver wrote it (§4.2.2, the Queue registers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// The largest size the device offers.
    pub max_size: u16,
    /// The driver's choice.
    pub size: u32,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring, the driver area.
    pub available: u64,
    /// Guest address of the used ring, the device area.
    pub used: u64,
    /// Whether the driver will use the queue.
    pub ready: bool,
}

impl QueueSetup {
    /// A queue the driver has not touched.
    pub fn new(max_size: u16) -> Self {
        Self { max_size, size: u32::from(max_size), descriptors: 0, available: 0, used: 0, ready: false }
    }
}

/// Where a queue's parts are in guest memory; all of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Entries of each part.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available ring.
    pub available: GuestAddress,
    /// The used ring.
    pub used: GuestAddress,
}

impl Placement {
    /// Bytes of the three parts (§2.7), the words of `VIRTIO_F_EVENT_IDX` included.
    pub fn lengths(&self) -> [usize; 3] {
        let size = usize::from(self.size);
        [16 * size, 6 + 2 * size, 6 + 8 * size]
    }
}

/// How a driver broke a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The size is zero, not a power of two, or larger than offered.
    #[error("a queue of size {0}")]
    Size(u32),
    /// A ring is misaligned or not inside guest memory.
    #[error("a ring is misaligned or outside of guest memory")]
    Ring,
    /// The available index ran ahead, or a ring cannot be accessed.
    #[error("the rings are inconsistent")]
    Inconsistent(#[from] virtio_queue::Error),
    /// A descriptor chain is invalid.
    #[error("descriptor chain {head} is invalid")]
    Chain {
        /// The chain's first descriptor.
        head: u16,
        /// What is wrong with it.
        source: ChainError,
    },
}

/// A queue in use: its addresses and size cannot change any more.
#[derive(Debug)]
pub struct RunningQueue {
    ring: Queue,
    table: Table,
    memory: GuestMemory,
    interrupt: Interrupt,
    notification: Arc<EventFd>,
    /// The used index when it was last decided whether to interrupt.
    announced: u16,
}

impl RunningQueue {
    pub(super) fn new(
        setup: &QueueSetup,
        features: u64,
        memory: GuestMemory,
        interrupt: Interrupt,
        notification: Arc<EventFd>,
    ) -> Result<Self, QueueError> {
        let size = u16::try_from(setup.size).map_err(|_| QueueError::Size(setup.size))?;
        let mut ring = Queue::new(setup.max_size)?;
        ring.try_set_size(size).map_err(|_| QueueError::Size(setup.size))?;
        ring.try_set_desc_table_address(GuestAddress(setup.descriptors)).map_err(|_| QueueError::Ring)?;
        ring.try_set_avail_ring_address(GuestAddress(setup.available)).map_err(|_| QueueError::Ring)?;
        ring.try_set_used_ring_address(GuestAddress(setup.used)).map_err(|_| QueueError::Ring)?;
        ring.set_event_idx(features & FEATURE_EVENT_IDX != 0);
        ring.set_ready(true);
        // The library takes an available ring at address zero for a queue that was never set up.
        if setup.available == 0 || !ring.is_valid(&memory) {
            return Err(QueueError::Ring);
        }
        let indirect = if features & FEATURE_INDIRECT != 0 { Indirect::Allowed } else { Indirect::Refused };
        let table = Table { address: GuestAddress(setup.descriptors), size, indirect };
        Ok(Self { ring, table, memory, interrupt, notification, announced: 0 })
    }

    /// Where its parts are, for whoever serves it in our place.
    pub fn placement(&self) -> Placement {
        Placement {
            size: self.table.size,
            descriptors: self.table.address,
            available: GuestAddress(self.ring.avail_ring()),
            used: GuestAddress(self.ring.used_ring()),
        }
    }

    /// The memory that it is in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What the driver notifies by.
    pub fn notification(&self) -> &EventFd {
        &self.notification
    }

    /// The queue's size.
    pub fn size(&self) -> u16 {
        self.table.size
    }

    /// Hands the available chains to `handle` one by one, until there is none or it says [`Handled::Stop`], and
    /// interrupts the driver if it wants to know.
    ///
    /// The driver's notifications are enabled when the ring was found empty. After a stop they are not: the device
    /// comes back by itself. A driver that adds chains as fast as they are handled does not keep the thread: after
    /// two rings' worth the queue notifies itself and the loop ends.
    pub fn process(&mut self, handle: impl FnMut(Chain<'_, '_>) -> Handled) -> Result<(), QueueError> {
        let before = self.ring.next_used();
        let result = self.drain(handle);
        if self.ring.next_used() != before {
            self.interrupt_if_wanted()?;
        }
        result
    }

    /// Gives a deferred chain back with `written` bytes.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.ring.add_used(&self.memory, head, written)?;
        self.interrupt_if_wanted()
    }

    /// Makes [`process`](Self::process) happen again soon, as if the driver had notified.
    pub fn notify_self(&self) {
        match self.notification.write(1) {
            Ok(()) => {}
            // A full counter is a pending notification.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::error!("cannot notify a queue: {error}"),
        }
    }

    fn drain(&mut self, mut handle: impl FnMut(Chain<'_, '_>) -> Handled) -> Result<(), QueueError> {
        let Self { ring, table, memory, .. } = self;
        let memory: &GuestMemory = memory;
        let mut slices = Vec::new();
        let mut run = Run::default();
        let mut budget = 2 * u32::from(table.size);
        loop {
            ring.disable_notification(memory)?;
            while let Some(head) = ring.iter(memory)?.next().map(|chain| chain.head_index()) {
                let Some(left) = budget.checked_sub(1) else {
                    ring.go_to_previous_position();
                    run.give_back(ring);
                    self.notify_self();
                    return Ok(());
                };
                budget = left;
                let held = slices.len();
                let mut readable = chain::collect(memory, *table, head, &mut slices)
                    .map_err(|source| QueueError::Chain { head, source })?;
                run.push(head, &slices[readable..]);
                if run.len() > 1 {
                    // What a further chain of a run has to read is nobody's business.
                    slices.drain(held..readable);
                    readable = 0;
                }
                match handle(Chain::new(memory, head, &slices, readable, run.len())) {
                    Handled::Done(written) => run.publish(ring, memory, written)?,
                    Handled::Deferred => run.clear(),
                    Handled::More => {
                        slices.drain(..readable);
                        continue;
                    }
                    Handled::Stop => {
                        run.give_back(ring);
                        return Ok(());
                    }
                }
                slices.clear();
            }
            // A run that waits for more is given back only now: what is already there is no reason to go on.
            if !ring.enable_notification(memory)? {
                run.give_back(ring);
                return Ok(());
            }
        }
    }

    /// With `VIRTIO_F_EVENT_IDX` the driver names the used index whose passing it wants to hear of (§2.7.7.2).
    fn interrupt_if_wanted(&mut self) -> Result<(), QueueError> {
        let (old, new) = (self.announced, self.ring.next_used());
        self.announced = new;
        let wanted = !self.ring.event_idx_enabled() || {
            // The driver writes its event before it reads our index, we the other way round.
            fence(Ordering::SeqCst);
            let event = self.used_event()?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        };
        if wanted {
            self.interrupt.raise(USED_BUFFER);
        }
        Ok(())
    }

    /// `used_event`, which follows the elements of the available ring (§2.7.6).
    fn used_event(&self) -> Result<u16, QueueError> {
        let at = GuestAddress(self.ring.avail_ring() + 4 + 2 * u64::from(self.table.size));
        let event = self.memory.load(at, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(event))
    }
}

#[cfg(test)]
mod tests;
