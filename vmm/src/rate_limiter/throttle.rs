//! A rate limiter with a clock, and the timer by which a device that was held up hears that it may go on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use hull_protocol::vmm::RateLimits;
use nix::errno::Errno;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use super::RateLimiter;

/// Says what time it is.
pub type Clock = Box<dyn Fn() -> Instant + Send>;

/// Holds up what is too much. The device watches [`fd`](Self::fd) and tries again when it is readable.
pub struct Throttle {
    limiter: RateLimiter,
    timer: TimerFd,
    clock: Clock,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle").field("limiter", &self.limiter).finish_non_exhaustive()
    }
}

impl Throttle {
    /// `None` if nothing is limited.
    pub fn new(limits: &RateLimits, clock: Clock) -> io::Result<Option<Self>> {
        let Some(limiter) = RateLimiter::new(limits, clock()) else { return Ok(None) };
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Some(Self { limiter, timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?, clock }))
    }

    /// Whether an operation of so many bytes may pass now. If not, the descriptor becomes readable when it is worth
    /// another try.
    pub fn admits(&mut self, bytes: u64) -> io::Result<bool> {
        let Err(wait) = self.limiter.take((self.clock)(), bytes) else { return Ok(true) };
        // Zero would stop the timer, and the kernel counts seconds with a sign.
        let wait = wait.clamp(Duration::from_nanos(1), Duration::from_secs(1 << 32));
        self.timer.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
        Ok(false)
    }

    /// Readable when a waiting operation should be tried again.
    pub fn fd(&self) -> RawFd {
        self.timer.as_fd().as_raw_fd()
    }

    /// Makes the descriptor unreadable again.
    pub fn acknowledge(&self) -> io::Result<()> {
        match self.timer.wait() {
            Ok(()) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
