//! The interrupt line of a device (virtio 1.3 §4.2.3.3): a status word and an event descriptor.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// `InterruptStatus` bit 0: buffers were used in a queue.
pub const USED_BUFFER: u32 = 1;
/// `InterruptStatus` bit 1: the configuration, or `DEVICE_NEEDS_RESET`, has changed.
pub const CONFIGURATION_CHANGE: u32 = 2;

/// Raises a device's interrupt. Clones share the line.
#[derive(Clone, Debug)]
pub struct Interrupt {
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    status: AtomicU32,
    /// Bits that read as set whatever was acknowledged.
    standing: AtomicU32,
    event: EventFd,
    raised: AtomicU64,
}

impl Interrupt {
    /// An idle line that signals `event`, an irqfd of an edge-triggered interrupt.
    pub fn new(event: EventFd) -> Self {
        let (status, standing, raised) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU64::new(0));
        Self { line: Arc::new(Line { status, standing, event, raised }) }
    }

    /// Sets bits of `InterruptStatus` and interrupts the guest.
    pub fn raise(&self, reason: u32) {
        self.line.status.fetch_or(reason, Ordering::SeqCst);
        self.line.raised.fetch_add(1, Ordering::Relaxed);
        match self.line.event.write(1) {
            Ok(()) => {}
            // The counter is full: an interrupt is pending already, which is all that is asked for.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::error!("cannot raise an interrupt: {error}"),
        }
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.line.status.load(Ordering::SeqCst) | self.line.standing.load(Ordering::SeqCst)
    }

    /// Which bits always read as set: those for which somebody who cannot set them signals the [`event`](Self::event). The
    /// line is edge-triggered, so that nothing is raised again by them, and a driver that is called for nothing finds its
    /// rings as they were.
    pub fn set_standing(&self, bits: u32) {
        self.line.standing.store(bits, Ordering::SeqCst);
    }

    /// The `InterruptACK` register: clears the given bits.
    pub fn acknowledge(&self, bits: u32) {
        self.line.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The irqfd.
    pub fn event(&self) -> &EventFd {
        &self.line.event
    }

    /// Interrupts raised since the start.
    pub fn raised(&self) -> u64 {
        self.line.raised.load(Ordering::Relaxed)
    }
}
