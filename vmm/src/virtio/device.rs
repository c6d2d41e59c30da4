//! What every virtio device offers to the transport.

use std::os::fd::RawFd;

use super::interrupt::Interrupt;
use super::queue::{QueueError, RunningQueue};
use super::vhost::VhostError;

/// A virtio device behind a transport. All calls come one at a time; none may block for long or panic, whatever the
/// guest wrote.
pub trait VirtioDevice: Send {
    /// A label for counters and errors, unique in the VM: "blk-rootfs", "vsock", "rng".
    fn name(&self) -> &str;

    /// The device id (virtio 1.3 §5).
    fn device_type(&self) -> u32;

    /// The largest size of each queue, a power of two up to 32768; its length is the number of queues.
    fn max_queue_sizes(&self) -> &[u16];

    /// The feature bits the device offers, besides `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Reads the device configuration space at `offset`. Bytes beyond its end are left as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Changes with every change of the configuration space (§2.5.1).
    fn config_generation(&self) -> u32 {
        0
    }

    /// The driver writes to the device configuration space. `None` if that makes no sense there.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) -> Option<()> {
        None
    }

    /// The driver has set `DRIVER_OK` (§3.1.1): the device is live from here.
    fn activate(&mut self, activated: Activated);

    /// Back to the state before activation: the driver asked for it, or the device has failed. Work in flight is dropped
    /// or drained before this returns. May come more than once.
    fn reset(&mut self);

    /// Finishes what is in flight, before this returns [`Quiet::Yes`]: until its next call the device touches neither
    /// guest memory nor its descriptors, and completes nothing. Called when the VM is paused and before a device is taken
    /// away. A device that finishes everything within each call has nothing to do.
    fn quiesce(&mut self) -> Result<Quiet, DeviceError> {
        Ok(Quiet::Yes)
    }

    /// The end of a [`quiesce`](Self::quiesce) after which the device stays: what moves by itself moves again.
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Who hears the driver's notifications, the same for all of the device's life.
    fn listener(&self) -> Listener {
        Listener::Device
    }

    /// The driver has made buffers available in the queue (§2.9), or may have. On an error the transport sets
    /// `DEVICE_NEEDS_RESET`.
    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError>;

    /// The descriptors to watch for input, the same for all of the device's life.
    fn poll_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// A descriptor of [`poll_fds`](Self::poll_fds) is readable, or may be.
    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Requests since the start that failed because the host did: an I/O error, a full disk.
    fn host_errors(&self) -> u64 {
        0
    }

    /// Bytes of payload moved to the guest and from the guest since the start.
    fn bytes_moved(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// Who hears notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The device, by [`VirtioDevice::queue_notified`].
    Device,
    /// The host's kernel, by the queues' own events, which nobody else may read.
    Kernel,
}

/// Whether a device has become quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a device that is not quiet moves"]
pub enum Quiet {
    /// Nothing is in flight.
    Yes,
    /// The host did not answer in time: the device goes on as before.
    NotYet,
}

/// What a device gets when the driver sets `DRIVER_OK`.
#[derive(Debug)]
pub struct Activated {
    /// The device's queues; one the driver left unused is `None`. Their configuration cannot change any more.
    pub queues: Vec<Option<RunningQueue>>,
    /// The negotiated feature bits.
    pub features: u64,
    /// For configuration changes. Used buffers are announced by the queues themselves.
    pub interrupt: Interrupt,
}

/// Why a device cannot go on until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of a queue.
    #[error("queue {queue} is broken")]
    Queue {
        /// Which queue.
        queue: usize,
        /// How.
        source: QueueError,
    },
    /// The driver left a queue unused that the device cannot do without.
    #[error("queue {0} is missing")]
    MissingQueue(usize),
    /// The driver broke the rules of a queue that the host's kernel serves, or what is behind the queue is gone.
    #[error("the kernel has given up a queue")]
    Kernel,
    /// The host's kernel does not serve the device.
    #[error(transparent)]
    Vhost(#[from] VhostError),
    /// The host failed in a way that is not the guest's doing.
    #[error("the host failed")]
    Host(#[from] std::io::Error),
}

/// Reads from a configuration space, for [`VirtioDevice::read_config`]. What lies behind its end stays as it was.
pub fn copy_config(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}
