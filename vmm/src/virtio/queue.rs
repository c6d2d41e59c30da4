//! A virtqueue that the driver has set up for good.

/// A queue after `DRIVER_OK`: its addresses and size are fixed.
#[derive(Debug)]
pub struct RunningQueue {}

/// How a driver broke a queue.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A ring is not aligned or not inside guest memory.
    #[error("a ring is outside of guest memory or misaligned")]
    Ring,
}
