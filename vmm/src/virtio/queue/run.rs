//! The chains that make up one packet, and their way back to the driver as one.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use crate::memory::GuestMemory;

/// Bytes in the used ring before its elements, and of an element (virtio 1.3 §2.7.8).
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// Chains taken from the available ring and not yet given to anybody.
#[derive(Debug, Default)]
pub(super) struct Run {
    chains: Vec<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    head: u16,
    /// Bytes of its writable part.
    room: u32,
}

impl Run {
    /// How many chains are held.
    pub(super) fn len(&self) -> u16 {
        // The loop takes at most two rings' worth of chains, of 32768 at most.
        u16::try_from(self.chains.len()).unwrap_or(u16::MAX)
    }

    /// Holds a further chain, whose writable part is in these pieces.
    pub(super) fn push(&mut self, head: u16, writable: &[VolatileSlice<'_>]) {
        let room = writable.iter().map(VolatileSlice::len).sum::<usize>();
        // A chain is at most 2^32 - 1 bytes long (chain.rs).
        self.chains.push(Held { head, room: u32::try_from(room).unwrap_or(u32::MAX) });
    }

    /// Forgets the chains: they are somebody else's.
    pub(super) fn clear(&mut self) {
        self.chains.clear();
    }

    /// Puts the chains back in front of the available ring.
    pub(super) fn give_back(&mut self, ring: &mut Queue) {
        ring.set_next_avail(ring.next_avail().wrapping_sub(self.len()));
        self.clear();
    }

    /// Gives the chains to the driver, `written` bytes in them. Each but the last is filled before the next, and the
    /// driver sees none of them before all are there (§5.1.6.4.1).
    pub(super) fn publish(
        &mut self,
        ring: &mut Queue,
        memory: &GuestMemory,
        written: u32,
    ) -> Result<(), virtio_queue::Error> {
        let Some((last, filled)) = self.chains.split_last() else { return Ok(()) };
        let mut left = written;
        for chain in filled {
            let length = left.min(chain.room);
            left -= length;
            let index = u64::from(ring.next_used() % ring.size());
            let at = GuestAddress(ring.used_ring() + USED_HEADER + index * USED_ELEMENT);
            let element = u64::from(chain.head) | u64::from(length) << 32;
            memory.write_slice(&element.to_le_bytes(), at).map_err(virtio_queue::Error::GuestMemory)?;
            ring.set_next_used(ring.next_used().wrapping_add(1));
        }
        ring.add_used(memory, last.head, left)?;
        self.clear();
        Ok(())
    }
}
