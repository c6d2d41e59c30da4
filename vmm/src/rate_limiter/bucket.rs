//! A token bucket in integers, exact at any size and any length of time.
//!
//! The level is counted in *grains*: a token is as many grains as the refill time has nanoseconds, so that a nanosecond
//! brings `size` grains, a whole number. Nothing is ever rounded, and however the time is cut into pieces, the sum is
//! the same. A bucket holds less than 2^64 × 2^52 grains, which is why 128 bits are enough.

use std::time::{Duration, Instant};

use hull_protocol::vmm::TokenBucket;

/// Filled at a constant rate up to its size; who wants more than there is has to wait.
#[derive(Debug)]
pub struct Bucket {
    /// In tokens.
    size: u64,
    /// How long an empty bucket takes to fill, in nanoseconds: less than 2^52.
    refill: u64,
    /// Tokens left that come on top, once.
    burst: u64,
    /// In grains. Below zero after a request that was larger than the bucket.
    level: i128,
    /// When the level was right.
    since: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(config: TokenBucket, now: Instant) -> Self {
        let refill = u64::from(config.refill_ms.get()) * 1_000_000;
        let size = config.size.get();
        let level = i128::from(size) * i128::from(refill);
        Self { size, refill, burst: config.one_time_burst, level, since: now }
    }

    /// How long it takes until so many tokens can be taken; `None` if they can be now. More than the bucket holds can be
    /// taken when it is full: what is missing is then waited for by those who come after.
    pub fn wait(&mut self, now: Instant, tokens: u64) -> Option<Duration> {
        self.fill(now);
        let needed = self.grains(tokens.saturating_sub(self.burst).min(self.size));
        let missing = u128::try_from(needed - self.level).ok().filter(|missing| *missing > 0)?;
        let nanoseconds = missing.div_ceil(u128::from(self.size));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// Takes tokens, those of the burst first. To be asked for with [`wait`](Self::wait) before.
    pub fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        self.level -= self.grains(tokens - from_burst);
    }

    /// A clock that goes backwards brings nothing.
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        self.since = self.since.max(now);
        let elapsed = i128::try_from(elapsed.as_nanos()).unwrap_or(i128::MAX);
        let brought = elapsed.saturating_mul(i128::from(self.size));
        self.level = self.level.saturating_add(brought).min(self.grains(self.size));
    }

    fn grains(&self, tokens: u64) -> i128 {
        i128::from(tokens) * i128::from(self.refill)
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use proptest::prelude::*;

    use super::*;

    fn config(size: u64, refill_ms: u32, one_time_burst: u64) -> TokenBucket {
        TokenBucket {
            size: NonZeroU64::new(size).unwrap(),
            refill_ms: NonZeroU32::new(refill_ms).unwrap(),
            one_time_burst,
        }
    }

    fn any_size() -> impl Strategy<Value = u64> {
        prop_oneof![1..10_u64, 1..=u64::MAX, Just(u64::MAX)]
    }

    fn any_refill() -> impl Strategy<Value = u32> {
        prop_oneof![Just(1_u32), 1..2000_u32, 1..=u32::MAX, Just(u32::MAX)]
    }

    /// Pairs of nanoseconds passed and tokens wanted.
    fn any_use() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let passed =
            prop_oneof![Just(0), 0..1000_u64, 0..10_000_000_000_u64, any::<u32>().prop_map(u64::from)];
        let wanted = prop_oneof![0..20_u64, any::<u64>()];
        prop::collection::vec((passed, wanted), 1..80)
    }

    /// `size × (1 + time / refill)`, rounded down: the most that may have passed after that time.
    fn bound(size: u64, refill_ms: u32, burst: u64, nanoseconds: u128) -> u128 {
        let size = u128::from(size);
        size + u128::from(burst) + size * nanoseconds / (u128::from(refill_ms) * 1_000_000)
    }

    proptest! {
        /// Whatever is asked for and when, no more passes than was filled in.
        #[test]
        fn no_more_passes_than_was_filled_in(
            size in any_size(), refill in any_refill(), burst in prop_oneof![Just(0), any::<u64>()], uses in any_use(),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(config(size, refill, burst), start);
            let (mut passed, mut taken) = (0_u64, 0_u128);
            for (pause, wanted) in uses {
                passed += pause;
                let wanted = wanted % size.saturating_add(1).max(1);
                if bucket.wait(start + Duration::from_nanos(passed), wanted).is_none() {
                    bucket.take(wanted);
                    taken += u128::from(wanted);
                }
                prop_assert!(taken <= bound(size, refill, burst, u128::from(passed)));
            }
        }

        /// Larger requests than the bucket exceed the bound by one request at most: the debt is paid back.
        #[test]
        fn large_requests_are_paid_back(size in 1..1000_u64, refill in 1..100_u32, uses in any_use()) {
            let start = Instant::now();
            let mut bucket = Bucket::new(config(size, refill, 0), start);
            let (mut passed, mut taken, mut largest) = (0_u64, 0_u128, 0_u64);
            for (pause, wanted) in uses {
                passed += pause;
                let wanted = wanted % 100_000;
                if bucket.wait(start + Duration::from_nanos(passed), wanted).is_none() {
                    bucket.take(wanted);
                    taken += u128::from(wanted);
                    largest = largest.max(wanted);
                }
                prop_assert!(taken <= bound(size, refill, 0, u128::from(passed)) + u128::from(largest));
            }
        }

        /// The time that is named is enough, and a nanosecond less is not.
        #[test]
        fn the_wait_is_exact(
            size in any_size(), refill in any_refill(), burst in 0..100_u64, first in any::<u64>(), second in any::<u64>(),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(config(size, refill, burst), start);
            prop_assert_eq!(bucket.wait(start, first), None);
            bucket.take(first);
            // A wait of centuries is only named as long as can be counted.
            if let Some(wait) = bucket.wait(start, second).filter(|wait| *wait < Duration::from_nanos(u64::MAX))
                && let Some(then) = start.checked_add(wait)
            {
                prop_assert!(bucket.wait(then - Duration::from_nanos(1), second).is_some());
                prop_assert_eq!(bucket.wait(then, second), None);
            }
        }

        /// However the time is cut up, the level is the same: nothing is lost by asking often.
        #[test]
        fn asking_often_loses_nothing(size in 1..50_u64, refill in any_refill(), cuts in prop::collection::vec(0..5000_u64, 1..60)) {
            let start = Instant::now();
            let mut often = Bucket::new(config(size, refill, 0), start);
            let mut once = Bucket::new(config(size, refill, 0), start);
            often.take(size);
            once.take(size);
            let mut passed = 0;
            for cut in cuts {
                passed += cut;
                often.wait(start + Duration::from_nanos(passed), 1);
            }
            let end = start + Duration::from_nanos(passed);
            prop_assert_eq!(often.wait(end, size), once.wait(end, size));
            prop_assert_eq!(often.level, once.level);
        }
    }

    #[test]
    fn a_greedy_user_gets_exactly_the_rate() {
        let start = Instant::now();
        // 7 tokens in 3 ms, 5 once on top.
        let mut bucket = Bucket::new(config(7, 3, 5), start);
        let (mut now, mut taken) = (start, 0);
        while now <= start + Duration::from_millis(300) {
            match bucket.wait(now, 1) {
                None => {
                    bucket.take(1);
                    taken += 1;
                }
                Some(wait) => now += wait,
            }
        }
        assert_eq!(taken, 5 + 7 + 7 * 100);
    }

    #[test]
    fn a_clock_that_goes_backwards_brings_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::new(config(10, 1, 0), start + Duration::from_secs(1));
        bucket.take(10);
        assert_eq!(bucket.wait(start, 10), Some(Duration::from_millis(1)));
        assert_eq!(bucket.wait(start + Duration::from_secs(1), 10), Some(Duration::from_millis(1)));
    }
}
