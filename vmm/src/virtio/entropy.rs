//! The entropy device (virtio 1.3 §5.4): `getrandom(2)` for the guest.

use super::chain::Chain;
use super::device::{Activated, DeviceError, VirtioDevice};
use super::queue::{Handled, RunningQueue};

#[cfg(test)]
mod tests;

/// Virtio device id (§5.4.1).
const DEVICE_TYPE: u32 = 4;

/// The most bytes one request gets, however many buffers it names, even the same one over and over. The driver takes
/// what it gets.
const REQUEST_MAX: usize = 64 * 1024;

/// A source of random bytes.
#[derive(Debug, Default)]
pub struct Entropy {
    requests: Option<RunningQueue>,
    bytes: u64,
}

impl Entropy {
    /// A device named "rng".
    pub fn new() -> Self {
        Self::default()
    }
}

fn fill(chain: Chain<'_, '_>) -> std::io::Result<usize> {
    chain.writable.split_at(REQUEST_MAX).0.fill_random()
}

impl VirtioDevice for Entropy {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activated: Activated) {
        self.requests = activated.queues.into_iter().next().flatten();
    }

    fn reset(&mut self) {
        self.requests = None;
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        let Some(requests) = &mut self.requests else { return Err(DeviceError::MissingQueue(queue)) };
        let mut failure = None;
        requests
            .process(|chain| match fill(chain) {
                Ok(count) => {
                    self.bytes += count as u64;
                    Handled::Done(u32::try_from(count).unwrap_or(0))
                }
                Err(error) => {
                    failure = Some(error);
                    Handled::Stop
                }
            })
            .map_err(|source| DeviceError::Queue { queue, source })?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn bytes_moved(&self) -> (u64, u64) {
        (self.bytes, 0)
    }
}
