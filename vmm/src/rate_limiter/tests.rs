use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hull_protocol::vmm::TokenBucket;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

fn bucket(size: u64, refill_ms: u32) -> Option<TokenBucket> {
    let (size, refill_ms) = (NonZeroU64::new(size).unwrap(), NonZeroU32::new(refill_ms).unwrap());
    Some(TokenBucket { size, refill_ms, one_time_burst: 0 })
}

#[test]
fn nothing_is_limited_unless_asked_for() {
    assert!(RateLimiter::new(&RateLimits::default(), Instant::now()).is_none());
    assert!(Throttle::new(&RateLimits::default(), Box::new(Instant::now)).unwrap().is_none());
}

#[test]
fn an_operation_needs_both_buckets_and_takes_from_none_while_it_waits() {
    let now = Instant::now();
    let limits = RateLimits { bandwidth: bucket(1000, 1000), operations: bucket(2, 100) };
    let mut limiter = RateLimiter::new(&limits, now).unwrap();
    assert_eq!(limiter.take(now, 400), Ok(()));
    assert_eq!(limiter.take(now, 601), Err(Duration::from_millis(1)));
    // The refused one cost no operation.
    assert_eq!(limiter.take(now, 0), Ok(()));
    assert_eq!(limiter.take(now, 0), Err(Duration::from_millis(50)));
    // The longer of two waits.
    assert_eq!(limiter.take(now, 700), Err(Duration::from_millis(100)));
    assert_eq!(limiter.take(now + Duration::from_millis(100), 700), Ok(()));
}

/// The timer goes by real time, the decision by the given clock: a timer that fires early only asks once more.
#[test]
fn the_alarm_wakes_whoever_was_held_up() {
    let start = Instant::now();
    let passed = Arc::new(AtomicU64::new(0));
    let clock = {
        let passed = Arc::clone(&passed);
        move || start + Duration::from_millis(passed.load(Ordering::SeqCst))
    };
    let limits = RateLimits { bandwidth: None, operations: bucket(1, 5) };
    let mut throttle = Throttle::new(&limits, Box::new(clock)).unwrap().unwrap();
    let readable = |throttle: &Throttle, timeout: PollTimeout| {
        // SAFETY: the throttle keeps it open.
        let fd = unsafe { BorrowedFd::borrow_raw(throttle.fd()) };
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).unwrap() == 1
    };
    assert!(throttle.admits(1).unwrap());
    assert!(!readable(&throttle, PollTimeout::ZERO));
    throttle.acknowledge().unwrap();
    for _ in 0..2 {
        assert!(!throttle.admits(1).unwrap());
        assert!(readable(&throttle, PollTimeout::from(20_000_u16)));
        throttle.acknowledge().unwrap();
        assert!(!readable(&throttle, PollTimeout::ZERO));
    }
    passed.store(5, Ordering::SeqCst);
    assert!(throttle.admits(1).unwrap());
}
