//! Descriptor chains (virtio 1.3 §2.7.5), checked as a whole before a device sees the first byte.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::pinned::Pinned;
use super::segments::Segments;
use crate::memory::GuestMemory;

const DESCRIPTOR_SIZE: u64 = 16;

/// One request of the driver: bytes to read, then room to write, all of it inside guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a, 'm> {
    head: u16,
    chains: u16,
    memory: &'m GuestMemory,
    /// What the driver has written for the device.
    pub readable: Segments<'a, 'm>,
    /// What the device may write.
    pub writable: Segments<'a, 'm>,
}

/// How a chain breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A descriptor's index is not in its table.
    #[error("descriptor {index} of a table of {size}")]
    Index {
        /// The index.
        index: u32,
        /// Descriptors in the table.
        size: u32,
    },
    /// More descriptors than the queue has: a loop, or too long a chain (§2.7.5.3.1).
    #[error("the chain loops or has more descriptors than the queue")]
    TooMany,
    /// More than 2^32 - 1 bytes (§2.7.5.2).
    #[error("the chain's buffers are longer than 2^32 bytes")]
    TooLong,
    /// A buffer or an indirect table is not wholly inside guest memory.
    #[error("a buffer of {length} bytes at {address:#x} is outside of guest memory")]
    Outside {
        /// Where it starts.
        address: u64,
        /// Its length.
        length: u32,
    },
    /// A buffer to read comes after a buffer to write (§2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// An indirect table inside another, together with a next descriptor, of a wrong size, or not negotiated
    /// (§2.7.5.3).
    #[error("an indirect descriptor is misused")]
    Indirect,
}

/// Where a queue's descriptors are and what they may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) address: GuestAddress,
    pub(super) size: u16,
    pub(super) indirect: Indirect,
}

/// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Indirect {
    Allowed,
    Refused,
}

impl<'a, 'm> Chain<'a, 'm> {
    /// `slices` are the pieces to read, `readable` of them, then those to write, of `chains` chains.
    pub(super) fn new(
        memory: &'m GuestMemory,
        head: u16,
        slices: &'a [VolatileSlice<'m>],
        readable: usize,
        chains: u16,
    ) -> Self {
        let (readable, writable) = slices.split_at(readable);
        Self { head, chains, memory, readable: Segments::new(readable), writable: Segments::new(writable) }
    }

    /// The index by which the chain goes back to the driver.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How many chains this is, held together by [`Handled::More`](super::queue::Handled::More).
    pub fn chains(&self) -> u16 {
        self.chains
    }

    /// The memory that the chain lies in.
    pub fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// Keeps a part of this chain for longer than the chain is looked at. `None` if it is a part of something else.
    pub fn pin(&self, part: Segments<'_, '_>) -> Option<Pinned> {
        Pinned::new(self.memory, part)
    }
}

/// Follows a chain to its end and appends its pieces to `slices`. Answers where those to write begin.
pub(super) fn collect<'m>(
    memory: &'m GuestMemory,
    table: Table,
    head: u16,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<usize, ChainError> {
    let mut writable = None;
    let mut walk =
        Walk { memory, at: table, next: Some(head), size: u32::from(table.size), left: table.size };
    let mut length = 0_u32;
    while let Some(descriptor) = walk.next()? {
        length = length.checked_add(descriptor.len()).ok_or(ChainError::TooLong)?;
        match (descriptor.is_write_only(), writable) {
            (true, None) => writable = Some(slices.len()),
            (false, Some(_)) => return Err(ChainError::Order),
            (true, Some(_)) | (false, None) => {}
        }
        append(memory, &descriptor, slices)?;
    }
    Ok(writable.unwrap_or(slices.len()))
}

fn append<'m>(
    memory: &'m GuestMemory,
    descriptor: &Descriptor,
    slices: &mut Vec<VolatileSlice<'m>>,
) -> Result<(), ChainError> {
    let outside = ChainError::Outside { address: descriptor.addr().0, length: descriptor.len() };
    // A buffer may lie across two neighbouring regions of guest memory.
    let length = usize::try_from(descriptor.len()).map_err(|_| outside)?;
    for slice in memory.get_slices(descriptor.addr(), length) {
        slices.push(slice.map_err(|_| outside)?);
    }
    Ok(())
}

/// The way from descriptor to descriptor.
struct Walk<'m> {
    memory: &'m GuestMemory,
    at: Table,
    next: Option<u16>,
    /// Descriptors in the current table.
    size: u32,
    /// Descriptors the chain may still have.
    left: u16,
}

impl Walk<'_> {
    fn next(&mut self) -> Result<Option<Descriptor>, ChainError> {
        let Some(index) = self.next else { return Ok(None) };
        let descriptor = self.read(index)?;
        if descriptor.refers_to_indirect_table() {
            self.enter(&descriptor)?;
            return self.next_in_table(0).map(Some);
        }
        self.step(&descriptor)?;
        Ok(Some(descriptor))
    }

    fn next_in_table(&mut self, index: u16) -> Result<Descriptor, ChainError> {
        let descriptor = self.read(index)?;
        if descriptor.refers_to_indirect_table() {
            return Err(ChainError::Indirect);
        }
        self.step(&descriptor)?;
        Ok(descriptor)
    }

    fn step(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        self.left = self.left.checked_sub(1).ok_or(ChainError::TooMany)?;
        self.next = descriptor.has_next().then_some(descriptor.next());
        Ok(())
    }

    fn enter(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let whole = u64::from(descriptor.len()) % DESCRIPTOR_SIZE == 0 && descriptor.len() != 0;
        if self.at.indirect == Indirect::Refused || descriptor.has_next() || !whole {
            return Err(ChainError::Indirect);
        }
        self.at = Table { address: descriptor.addr(), indirect: Indirect::Refused, ..self.at };
        self.size = descriptor.len() / 16;
        Ok(())
    }

    fn read(&self, index: u16) -> Result<Descriptor, ChainError> {
        if u32::from(index) >= self.size {
            return Err(ChainError::Index { index: u32::from(index), size: self.size });
        }
        let offset = u64::from(index) * DESCRIPTOR_SIZE;
        let outside = ChainError::Outside { address: self.at.address.0, length: 16 };
        let address = self.at.address.0.checked_add(offset).ok_or(outside)?;
        // Read once: what the guest changes afterwards is not seen.
        self.memory.read_obj(GuestAddress(address)).map_err(|_| outside)
    }
}
