//! What the device and those who say how much should be plugged know of each other, without a lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hull_protocol::vmm::HotplugStats;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::BLOCK_SIZE;

/// Says how much memory the guest should plug. The device tells the driver on the event loop.
#[derive(Clone, Debug)]
pub struct MemControl {
    shared: Arc<Shared>,
}

impl MemControl {
    /// The control of a device.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The most that can be plugged, in MiB.
    pub fn most_mib(&self) -> u64 {
        self.shared.most >> 20
    }

    /// Asks the guest to have so many MiB plugged, rounded up to whole blocks and cut to what there is. It does so as
    /// far as it can, in its own time.
    pub fn request(&self, mib: u32) {
        let bytes = (u64::from(mib) << 20).next_multiple_of(BLOCK_SIZE).min(self.shared.most);
        self.shared.requested.store(bytes, Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        match self.shared.event.write(1) {
            Ok(()) => {}
            // A full counter is a pending signal.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::error!("cannot signal the memory device: {error}"),
        }
    }

    /// How much is there, wanted and plugged.
    pub fn stats(&self) -> HotplugStats {
        HotplugStats {
            most_bytes: self.shared.most,
            requested_bytes: self.shared.requested(),
            plugged_bytes: self.shared.plugged.load(Ordering::SeqCst),
        }
    }
}

/// Shared by device and control. In bytes.
#[derive(Debug)]
pub(super) struct Shared {
    most: u64,
    requested: AtomicU64,
    plugged: AtomicU64,
    /// Of the configuration space.
    generation: AtomicU32,
    /// There is something to tell the driver.
    event: EventFd,
}

impl Shared {
    pub(super) fn new(most: u64) -> io::Result<Self> {
        Ok(Self {
            most,
            requested: AtomicU64::new(0),
            plugged: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    /// The driver has plugged or unplugged, which changes the configuration space too.
    pub(super) fn set_plugged(&self, bytes: u64) {
        if self.plugged.swap(bytes, Ordering::SeqCst) != bytes {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Makes the event unreadable.
    pub(super) fn acknowledge(&self) {
        // It fails only if nothing was signalled.
        let _ = self.event.read();
    }
}
