//! Limits of a device's bandwidth and operations: two token buckets, and an alarm for whoever has to wait.
//!
//! [`bucket`] is the arithmetic, [`RateLimiter`] joins two of them, [`Throttle`] adds a clock and a timer. Only the
//! last knows what time it is; the others are told. Nothing here knows of queues or devices.

use std::time::{Duration, Instant};

use hull_protocol::vmm::RateLimits;

mod bucket;
mod throttle;

use bucket::Bucket;
pub use throttle::{Clock, Throttle};

/// Decides what may pass now. An operation passes when both buckets let it.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    operations: Option<Bucket>,
}

impl RateLimiter {
    /// Full buckets. `None` if nothing is limited.
    pub fn new(limits: &RateLimits, now: Instant) -> Option<Self> {
        if limits.bandwidth.is_none() && limits.operations.is_none() {
            return None;
        }
        let bucket = |config| Bucket::new(config, now);
        Some(Self { bandwidth: limits.bandwidth.map(bucket), operations: limits.operations.map(bucket) })
    }

    /// Lets one operation of so many bytes pass, or says how long to wait before asking again. What has to wait takes
    /// nothing from either bucket.
    pub fn take(&mut self, now: Instant, bytes: u64) -> Result<(), Duration> {
        let wait = [(&mut self.bandwidth, bytes), (&mut self.operations, 1)]
            .into_iter()
            .filter_map(|(bucket, tokens)| bucket.as_mut()?.wait(now, tokens))
            .max();
        if let Some(wait) = wait {
            return Err(wait);
        }
        for (bucket, tokens) in [(&mut self.bandwidth, bytes), (&mut self.operations, 1)] {
            if let Some(bucket) = bucket {
                bucket.take(tokens);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
