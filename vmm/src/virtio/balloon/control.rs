//! What the balloon and those who inflate it know of each other. They are on different sides of the transport, and
//! need no lock that the guest could hold up.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hull_protocol::vmm::{BalloonStats, GuestMemoryStats};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::segments::GivenBack;

/// The balloon's pages in a MiB.
const PAGES_PER_MIB: u32 = 256;

/// Inflates and deflates a balloon, and says how it is. The device does the rest on the event loop.
#[derive(Clone, Debug)]
pub struct BalloonControl {
    shared: Arc<Shared>,
}

impl BalloonControl {
    /// The control of a balloon.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Asks the guest to have so many MiB in the balloon; it does what it can, in its own time.
    pub fn set_target(&self, mib: u32) {
        self.shared.target.store(mib.saturating_mul(PAGES_PER_MIB), Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.target_changed.store(true, Ordering::SeqCst);
        self.shared.signal();
    }

    /// How the balloon is, with the guest's figures as it last sent them. It is asked for new ones, for the next time.
    pub fn stats(&self) -> BalloonStats {
        self.shared.statistics_wished.store(true, Ordering::SeqCst);
        self.shared.signal();
        BalloonStats {
            target_mib: self.shared.target() / PAGES_PER_MIB,
            actual_mib: self.shared.actual() / PAGES_PER_MIB,
            ballooned_bytes: self.shared.ballooned.load(Ordering::Relaxed),
            reported_bytes: self.shared.reported.load(Ordering::Relaxed),
            refused_bytes: self.shared.refused.load(Ordering::Relaxed),
            guest: *self.shared.statistics(),
        }
    }
}

/// Shared by device and control.
#[derive(Debug)]
pub(super) struct Shared {
    /// In pages.
    target: AtomicU32,
    /// In pages; the driver's own word.
    actual: AtomicU32,
    /// Of the configuration space.
    generation: AtomicU32,
    /// The driver has not been told.
    target_changed: AtomicBool,
    /// The driver has not been asked.
    statistics_wished: AtomicBool,
    statistics: Mutex<GuestMemoryStats>,
    ballooned: AtomicU64,
    reported: AtomicU64,
    refused: AtomicU64,
    /// There is something to tell the driver.
    event: EventFd,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            target_changed: AtomicBool::new(false),
            statistics_wished: AtomicBool::new(false),
            statistics: Mutex::default(),
            ballooned: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    pub(super) fn target(&self) -> u32 {
        self.target.load(Ordering::SeqCst)
    }

    pub(super) fn actual(&self) -> u32 {
        self.actual.load(Ordering::SeqCst)
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether the target has changed since the last call.
    pub(super) fn take_target_change(&self) -> bool {
        self.target_changed.swap(false, Ordering::SeqCst)
    }

    /// Whether somebody has asked for statistics since the last call.
    pub(super) fn take_statistics_wish(&self) -> bool {
        self.statistics_wished.swap(false, Ordering::SeqCst)
    }

    pub(super) fn set_statistics(&self, statistics: GuestMemoryStats) {
        *self.statistics() = statistics;
    }

    pub(super) fn count_ballooned(&self, given: GivenBack) {
        self.ballooned.fetch_add(given.bytes, Ordering::Relaxed);
        self.refused.fetch_add(given.refused, Ordering::Relaxed);
    }

    pub(super) fn count_reported(&self, given: GivenBack) {
        self.reported.fetch_add(given.bytes, Ordering::Relaxed);
        self.refused.fetch_add(given.refused, Ordering::Relaxed);
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Makes the event unreadable.
    pub(super) fn acknowledge(&self) {
        // It fails only if nothing was signalled.
        let _ = self.event.read();
    }

    fn signal(&self) {
        match self.event.write(1) {
            Ok(()) => {}
            // A full counter is a pending signal.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::error!("cannot signal the balloon: {error}"),
        }
    }

    /// A panic ends the process, so a poisoned lock is never seen by anybody who goes on.
    fn statistics(&self) -> MutexGuard<'_, GuestMemoryStats> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
