//! The file system device (virtio 1.3 §5.11): FUSE requests of the guest's kernel.
//!
//! The monitor reads the guest's messages ([`request`]), has the file broker carry out what they ask
//! ([`session`]), and writes the answers ([`reply`]). Reads and writes of open files it does itself, straight between
//! the file and guest memory. It resolves no name and opens nothing: all it can touch is what the broker handed over.
//!
//! Files may be slow, so a thread of its own ([`thread`]) serves the device's queues ([`worker`]); one request after
//! another. A VM has one such thread, made before it runs, and one such device at a time.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use hull_protocol::vmm::FsConfig;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::device::{Activated, DeviceError, Quiet, VirtioDevice, copy_config};

mod fuse;
mod reply;
mod request;
pub mod session;
#[cfg(test)]
mod tests;
mod thread;
mod worker;

use session::Session;
pub use thread::FileThread;
use worker::Worker;

/// Virtio device id (§5.11.1).
const DEVICE_TYPE: u32 = 26;
/// Queues (§5.11.2): high priority, and one for requests. There is no notification queue.
const QUEUE_SIZES: [u16; QUEUES] = [256, 256];
/// How many queues there are.
const QUEUES: usize = 2;
/// Bytes of a tag (§5.11.4).
const TAG_LENGTH: usize = 36;
const CONFIG_LENGTH: usize = TAG_LENGTH + 4;

/// A mount that the guest finds by its tag.
#[derive(Debug)]
pub struct Fs {
    name: String,
    config: [u8; CONFIG_LENGTH],
    worker: Worker,
}

/// Why the file system device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Not 1 to 36 bytes without NUL.
    #[error("the tag {0:?} is not 1 to {TAG_LENGTH} bytes long, or has a NUL in it")]
    Tag(String),
    /// The descriptor is not what the broker speaks over.
    #[error("the file broker's descriptor is not a SOCK_SEQPACKET socket")]
    Socket,
    /// There is one.
    #[error("a VM has one file system device, and there is one already")]
    Second,
    /// The thread waits for the host on behalf of a device that is gone, or could not be jailed.
    #[error("the file system's thread hangs in a file operation on the host")]
    Hangs,
    /// The host refuses an event.
    #[error("cannot set up the file system device")]
    Io(#[from] io::Error),
}

impl Fs {
    /// A device whose files come from the broker at the other end of `broker`, served by `thread`.
    pub fn new(config: &FsConfig, broker: OwnedFd, thread: &FileThread) -> Result<Self, FsError> {
        let tag = config.tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG_LENGTH || tag.contains(&0) {
            return Err(FsError::Tag(config.tag.clone()));
        }
        if getsockopt(&broker, sockopt::SockType) != Ok(SockType::SeqPacket) {
            return Err(FsError::Socket);
        }
        let mut space = [0; CONFIG_LENGTH];
        space[..tag.len()].copy_from_slice(tag);
        space[TAG_LENGTH..].copy_from_slice(&1_u32.to_le_bytes());
        let socket = broker.try_clone()?;
        let worker = Worker::start(thread, Session::new(broker.into(), config.cache), socket)?;
        Ok(Self { name: format!("fs-{}", config.tag), config: space, worker })
    }
}

impl VirtioDevice for Fs {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activated: Activated) {
        let mut queues = activated.queues.into_iter();
        self.worker.give(std::array::from_fn(|_| queues.next().flatten()));
    }

    fn reset(&mut self) {
        self.worker.take_back();
    }

    fn quiesce(&mut self) -> Result<Quiet, DeviceError> {
        Ok(self.worker.quiesce())
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.worker.notify(queue);
        Ok(())
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        vec![self.worker.failed().as_raw_fd()]
    }

    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        self.worker.failure().map_or(Ok(()), Err)
    }

    fn bytes_moved(&self) -> (u64, u64) {
        self.worker.bytes_moved()
    }
}
