//! Memory that is plugged and unplugged while the VM runs (virtio 1.3 §5.15).
//!
//! A region of addresses behind RAM is reserved when the VM is built; it takes up no memory. How much of it the guest
//! should use is said at run time; its driver then plugs blocks, or unplugs them as far as it can do without. Blocks
//! that are not plugged hold nothing: a guest that touches one all the same finds zeroes, and harms itself only.

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::chain::Chain;
use super::device::{Activated, DeviceError, VirtioDevice, copy_config};
use super::interrupt::{CONFIGURATION_CHANGE, Interrupt};
use super::queue::{Handled, RunningQueue};
use super::reclaim::give_back;

mod blocks;
mod control;
#[cfg(test)]
mod tests;

use blocks::{Answer, Blocks, State};
pub use control::MemControl;
use control::Shared;

/// Virtio device id (§5.15.1).
const DEVICE_TYPE: u32 = 24;
const QUEUE_SIZE: u16 = 64;

/// What is plugged at once, in bytes.
pub const BLOCK_SIZE: u64 = 2 << 20;
/// What start and size of the region are multiples of: what Linux adds to its memory at once, in bytes.
pub const REGION_ALIGNMENT: u64 = 128 << 20;

const REQUEST_LENGTH: usize = 24;
const RESPONSE_LENGTH: usize = 10;
/// Bytes of `virtio_mem_config` (§5.15.4).
const CONFIG_LENGTH: usize = 56;

/// The device, named "mem".
#[derive(Debug)]
pub struct Mem {
    start: u64,
    blocks: Blocks,
    shared: Arc<Shared>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    requests: RunningQueue,
    interrupt: Interrupt,
}

impl Mem {
    /// A region of guest memory, of which nothing is plugged, and what says how much should be. Start and length are
    /// multiples of [`REGION_ALIGNMENT`].
    pub fn new(region: &Range<u64>) -> std::io::Result<(Self, MemControl)> {
        let blocks = Blocks::new((region.end - region.start) / BLOCK_SIZE);
        let shared = Arc::new(Shared::new(region.end - region.start)?);
        let device = Self { start: region.start, blocks, shared: Arc::clone(&shared), running: None };
        Ok((device, MemControl::new(shared)))
    }
}

impl VirtioDevice for Mem {
    fn name(&self) -> &str {
        "mem"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// Not `VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE`: the guest may read what is not plugged, and finds zeroes.
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.blocks.count() * BLOCK_SIZE;
        // block_size, node_id, addr, region_size, usable_region_size, plugged_size, requested_size.
        let words = [
            BLOCK_SIZE,
            0,
            self.start,
            size,
            size,
            self.blocks.plugged() * BLOCK_SIZE,
            self.shared.requested(),
        ];
        let mut config = [0; CONFIG_LENGTH];
        for (to, from) in config.iter_mut().zip(words.into_iter().flat_map(u64::to_le_bytes)) {
            *to = from;
        }
        copy_config(&config, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation()
    }

    fn activate(&mut self, activated: Activated) {
        let requests = activated.queues.into_iter().next().flatten();
        self.running = requests.map(|requests| Running { requests, interrupt: activated.interrupt });
    }

    /// What is plugged stays plugged (§5.15.5): the next driver asks, or unplugs all.
    fn reset(&mut self) {
        self.running = None;
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        let Self { start, blocks, shared, running } = self;
        let Some(Running { requests, .. }) = running else { return Err(DeviceError::MissingQueue(queue)) };
        requests
            .process(|chain| {
                let handled = handle(&chain, *start, blocks, shared.requested() / BLOCK_SIZE);
                shared.set_plugged(blocks.plugged() * BLOCK_SIZE);
                handled
            })
            .map_err(|source| DeviceError::Queue { queue, source })
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        vec![self.shared.event().as_raw_fd()]
    }

    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        self.shared.acknowledge();
        if let Some(Running { interrupt, .. }) = &self.running {
            interrupt.raise(CONFIGURATION_CHANGE);
        }
        Ok(())
    }
}

/// One request (§5.15.6): `allowed` blocks may be plugged in all.
fn handle(chain: &Chain<'_, '_>, start: u64, blocks: &mut Blocks, allowed: u64) -> Handled {
    let mut request = [0; REQUEST_LENGTH];
    let room = chain.writable.split_at(RESPONSE_LENGTH).0;
    if chain.readable.copy_to(&mut request) < REQUEST_LENGTH || room.len() < RESPONSE_LENGTH {
        // Nobody asked, or nobody listens.
        return Handled::Done(0);
    }
    let kind = u16::from_le_bytes([request[0], request[1]]);
    let range = range_of(&request, start);
    let range = range.as_ref();
    let (answer, state) = match kind {
        0 => (range.map_or(Answer::Error, |range| blocks.plug(range, allowed)), None),
        1 => (range.map_or(Answer::Error, |range| blocks.unplug(range)), None),
        2 => (blocks.unplug_all(), None),
        3 => match range.and_then(|range| blocks.state(range)) {
            Some(state) => (Answer::Done, Some(state)),
            None => (Answer::Error, None),
        },
        _ => (Answer::Error, None),
    };
    if answer == Answer::Done {
        let unplugged = match (kind, range) {
            (1, Some(range)) => range.clone(),
            (2, _) => 0..blocks.count(),
            _ => 0..0,
        };
        if !unplugged.is_empty() {
            give_back(
                chain.memory(),
                &(start + unplugged.start * BLOCK_SIZE..start + unplugged.end * BLOCK_SIZE),
            );
        }
    }
    let mut response = [0; RESPONSE_LENGTH];
    response[..2].copy_from_slice(&(answer as u16).to_le_bytes());
    response[8..].copy_from_slice(&state.map_or(0, |state: State| state as u16).to_le_bytes());
    room.copy_from(&response);
    Handled::Done(10)
}

/// The blocks that a request names; `None` if it does not name whole blocks behind `start`. Whether they exist is for
/// [`Blocks`] to say.
fn range_of(request: &[u8; REQUEST_LENGTH], start: u64) -> Option<Range<u64>> {
    let address = request[8..].first_chunk().copied().map(u64::from_le_bytes)?;
    let count = request[16..].first_chunk().copied().map(u16::from_le_bytes)?;
    let offset = address.checked_sub(start).filter(|offset| offset.is_multiple_of(BLOCK_SIZE))?;
    let first = offset / BLOCK_SIZE;
    Some(first..first + u64::from(count))
}
