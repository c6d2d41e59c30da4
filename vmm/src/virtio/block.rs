//! The block device (virtio 1.3 §5.2).

use std::os::fd::OwnedFd;

use hull_protocol::vmm::DiskConfig;

use super::device::{Activated, DeviceError, VirtioDevice};

/// A disk.
#[derive(Debug)]
pub struct Block {
    name: String,
}

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Not as many descriptors as extents.
    #[error("a disk of {extents} extents came with {fds} file descriptors")]
    DescriptorCount {
        /// Extents in the configuration.
        extents: usize,
        /// Descriptors received.
        fds: usize,
    },
}

impl Block {
    /// A disk made of the configuration's extents; descriptor `i` belongs to extent `i`.
    pub fn new(config: &DiskConfig, fds: Vec<OwnedFd>) -> Result<Self, BlockError> {
        if config.extents.len() != fds.len() {
            return Err(BlockError::DescriptorCount { extents: config.extents.len(), fds: fds.len() });
        }
        Ok(Self { name: format!("blk-{}", config.serial) })
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.name
    }
    fn device_type(&self) -> u32 {
        2
    }
    fn max_queue_sizes(&self) -> &[u16] {
        &[256]
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
