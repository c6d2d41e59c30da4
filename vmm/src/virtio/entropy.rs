//! The entropy device (virtio 1.3 §5.4): `getrandom(2)` for the guest.

use super::device::{Activated, DeviceError, VirtioDevice};

/// A source of random bytes.
#[derive(Debug, Default)]
pub struct Entropy {}

impl Entropy {
    /// A device named "rng".
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Entropy {
    fn name(&self) -> &str {
        "rng"
    }
    fn device_type(&self) -> u32 {
        4
    }
    fn max_queue_sizes(&self) -> &[u16] {
        &[64]
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn activate(&mut self, _activated: Activated) {}
    fn reset(&mut self) {}
    fn queue_notified(&mut self, _queue: usize) -> Result<(), DeviceError> {
        Ok(())
    }
}
