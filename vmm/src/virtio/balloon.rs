//! The memory balloon (virtio 1.3 §5.5): memory that the guest does not need goes back to the host.
//!
//! It does so in two ways. By request: the driver takes pages from its own system and puts them into the balloon, up
//! to a target that changes at run time; under memory pressure it takes them out again by itself. And without being
//! asked: *free page reporting* names memory that lies free in the guest, which the host takes back while it is named.
//!
//! The guest can only ever give away its own memory, and gets zeroes when it touches it again. So nothing it says needs
//! to be believed; it is bounded, and pages that do not exist are counted and left alone.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::chain::Chain;
use super::device::{Activated, DeviceError, VirtioDevice, copy_config};
use super::interrupt::{CONFIGURATION_CHANGE, Interrupt};
use super::queue::{Handled, RunningQueue};
use super::reclaim::give_back;

mod control;
mod pages;
mod statistics;
#[cfg(test)]
mod tests;

pub use control::BalloonControl;
use control::Shared;
use pages::{page_numbers, ranges};

/// Virtio device id (§5.5.1).
const DEVICE_TYPE: u32 = 5;
/// Of each queue. Linux reports 32 pieces of free memory at once, and wants a queue that has room for them.
const QUEUE_SIZE: u16 = 32;

const FEATURE_STATS_VQ: u64 = 1 << 1;
const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
const FEATURE_REPORTING: u64 = 1 << 5;

/// Offset of `virtio_balloon_config.actual` (§5.5.4).
const CONFIG_ACTUAL: u64 = 4;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Pages that go into the balloon.
    Inflate,
    /// Pages that leave it.
    Deflate,
    /// How the guest's memory is used.
    Statistics,
    /// Memory that is free just now.
    Reporting,
}

impl Role {
    /// The queues by index. Drivers number those that exist one after the other: what was not negotiated has no
    /// number, whatever §5.5.2 says.
    fn by_index(features: u64) -> impl Iterator<Item = Self> {
        let statistics = (features & FEATURE_STATS_VQ != 0).then_some(Self::Statistics);
        let reporting = (features & FEATURE_REPORTING != 0).then_some(Self::Reporting);
        [Self::Inflate, Self::Deflate].into_iter().chain(statistics).chain(reporting)
    }
}

/// The balloon device, named "balloon".
#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// By index; `None` where the driver uses none.
    queues: Vec<Option<(Role, RunningQueue)>>,
    interrupt: Interrupt,
    /// The buffer in which the driver sends its next statistics: it does when it gets the buffer back.
    statistics_buffer: Option<u16>,
}

impl Balloon {
    /// An empty balloon, and what inflates it.
    pub fn new() -> std::io::Result<(Self, BalloonControl)> {
        let shared = Arc::new(Shared::new()?);
        Ok((Self { shared: Arc::clone(&shared), running: None }, BalloonControl::new(shared)))
    }

    /// The driver learns the target, and is asked for statistics.
    fn tell_driver(&mut self) -> Result<(), DeviceError> {
        let Some(Running { queues, interrupt, statistics_buffer }) = &mut self.running else { return Ok(()) };
        if self.shared.take_target_change() {
            interrupt.raise(CONFIGURATION_CHANGE);
        }
        let queue = (0..).zip(queues).find_map(|(index, queue)| match queue {
            Some((Role::Statistics, queue)) => Some((index, queue)),
            _ => None,
        });
        if let (Some((index, queue)), Some(head)) =
            (queue, statistics_buffer.take_if(|_| self.shared.take_statistics_wish()))
        {
            queue.complete(head, 0).map_err(|source| DeviceError::Queue { queue: index, source })?;
        }
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 4]
    }

    /// Not `VIRTIO_BALLOON_F_MUST_TELL_HOST`: a page that is touched is there again, told or not.
    fn features(&self) -> u64 {
        FEATURE_STATS_VQ | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        config[..4].copy_from_slice(&self.shared.target().to_le_bytes());
        config[4..].copy_from_slice(&self.shared.actual().to_le_bytes());
        copy_config(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Option<()> {
        let actual = <[u8; 4]>::try_from(data).ok().filter(|_| offset == CONFIG_ACTUAL)?;
        self.shared.set_actual(u32::from_le_bytes(actual));
        Some(())
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation()
    }

    fn activate(&mut self, activated: Activated) {
        let roles = Role::by_index(activated.features);
        let queues = roles.zip(activated.queues).map(|(role, queue)| queue.map(|queue| (role, queue)));
        self.running = Some(Running {
            queues: queues.collect(),
            interrupt: activated.interrupt,
            statistics_buffer: None,
        });
    }

    fn reset(&mut self) {
        // The driver that comes next knows nothing of the pages that this one gave away: they are its own again.
        self.shared.set_actual(0);
        self.running = None;
    }

    fn queue_notified(&mut self, index: usize) -> Result<(), DeviceError> {
        let Self { shared, running } = self;
        let Some(Running { queues, statistics_buffer, .. }) = running else {
            return Err(DeviceError::MissingQueue(index));
        };
        let Some(Some((role, queue))) = queues.get_mut(index) else {
            return Err(DeviceError::MissingQueue(index));
        };
        let role = *role;
        queue
            .process(|chain| {
                match role {
                    Role::Inflate => inflate(&chain, shared),
                    // Touching a page is enough to have it back.
                    Role::Deflate => {}
                    Role::Reporting => shared.count_reported(chain.writable.give_back()),
                    Role::Statistics => {
                        shared.set_statistics(statistics::parse(chain.readable));
                        if statistics_buffer.is_none() {
                            *statistics_buffer = Some(chain.head());
                            return Handled::Deferred;
                        }
                    }
                }
                Handled::Done(0)
            })
            .map_err(|source| DeviceError::Queue { queue: index, source })?;
        match role {
            Role::Statistics => self.tell_driver(),
            Role::Inflate | Role::Deflate | Role::Reporting => Ok(()),
        }
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        vec![self.shared.event().as_raw_fd()]
    }

    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        self.shared.acknowledge();
        self.tell_driver()
    }
}

/// Gives the pages of an inflate request back to the host (§5.5.6).
fn inflate(chain: &Chain<'_, '_>, shared: &Shared) {
    for range in ranges(page_numbers(chain.readable)) {
        shared.count_ballooned(give_back(chain.memory(), &range));
    }
}
