//! The socket device (virtio 1.3 §5.10).

use std::io;
use std::os::fd::OwnedFd;

use hull_protocol::vmm::VsockConfig;

use super::device::{Activated, DeviceError, VirtioDevice};

/// Stream sockets between the guest and the host.
#[derive(Debug)]
pub struct Vsock {}

/// Why the socket device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Not as many port channels as ports.
    #[error("{ports} guest-to-host ports came with {channels} port channels")]
    ChannelCount {
        /// Ports in the configuration.
        ports: usize,
        /// Descriptors received.
        channels: usize,
    },
    /// A descriptor cannot be used.
    #[error("cannot set up the vsock device's descriptors")]
    Io(#[from] io::Error),
}

impl Vsock {
    /// A device with the guest's context id. `listener` is a listening unix stream socket; channel `i` belongs to
    /// port `i` of the configuration.
    pub fn new(
        config: &VsockConfig,
        listener: OwnedFd,
        port_channels: Vec<OwnedFd>,
    ) -> Result<Self, VsockError> {
        drop(listener);
        if config.guest_to_host_ports.len() != port_channels.len() {
            return Err(VsockError::ChannelCount {
                ports: config.guest_to_host_ports.len(),
                channels: port_channels.len(),
            });
        }
        Ok(Self {})
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }
    fn device_type(&self) -> u32 {
        19
    }
    fn max_queue_sizes(&self) -> &[u16] {
        &[256, 256, 64]
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
