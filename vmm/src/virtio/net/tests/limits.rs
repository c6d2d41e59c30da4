//! Limits, by a clock that the test moves and counts of what got through.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hull_protocol::vmm::TokenBucket;

use super::*;

/// The indices of the alarms, where both ways are limited.
const TO_GUEST: usize = 1;
const FROM_GUEST: usize = 2;

/// An interface under limits, and the milliseconds that its clock shows.
fn limited(limits: NetworkLimits) -> (Driver, Wire, Arc<AtomicU64>) {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let (start, passed) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let clock = || -> Clock {
        let shown = Arc::clone(&passed);
        Box::new(move || start + Duration::from_millis(shown.load(Ordering::SeqCst)))
    };
    let config = NetworkConfig { limits, ..config() };
    let net = Net::over(&config, Tap::stand_in(ours), clock).unwrap();
    (Driver::running(Box::new(net), MEMORY), Wire(theirs), passed)
}

/// Slow enough that the real timer does not ring during a test.
fn bucket(size: u64) -> Option<TokenBucket> {
    let (size, refill_ms) = (NonZeroU64::new(size).unwrap(), NonZeroU32::new(10_000_000).unwrap());
    Some(TokenBucket { size, refill_ms, one_time_burst: 0 })
}

fn operations(count: u64) -> RateLimits {
    RateLimits { bandwidth: None, operations: bucket(count) }
}

fn bandwidth(bytes: u64) -> RateLimits {
    RateLimits { bandwidth: bucket(bytes), operations: None }
}

/// The alarm rings, early or late: the limiter decides.
fn ring(driver: &mut Driver, alarm: usize) {
    driver.transport.fd_ready(alarm);
    driver.settle();
}

fn queue_frames(driver: &mut Driver, count: u8, length: usize) {
    for seed in 0..count {
        let packet = driver.put(&[PLAIN.to_vec(), frame(seed, length)].concat());
        driver.add(TX, &[readable(packet, u32::try_from(12 + length).unwrap())]);
    }
    driver.notify(TX);
    driver.settle();
}

fn received(wire: &Wire) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| wire.receive().map(|(_, frame)| frame)).collect()
}

#[test]
fn packets_to_the_guest_get_through_at_their_rate_in_order_and_without_loss() {
    let limits = NetworkLimits { to_guest: operations(10), from_guest: operations(3) };
    let (mut driver, wire, passed) = limited(limits);
    let buffers: Vec<u64> = (0..40).map(|_| offer(&mut driver, 1600)).collect();
    driver.notify(RX);
    for seed in 0..30 {
        wire.send(&PLAIN, &frame(seed, 100));
    }
    driver.settle();
    assert_eq!(lengths(&mut driver).len(), 10);
    // More buffers, or the wrong alarm, change nothing.
    driver.kick(RX);
    ring(&mut driver, FROM_GUEST);
    assert_eq!(lengths(&mut driver).len(), 0);
    passed.store(999_999, Ordering::SeqCst);
    ring(&mut driver, TO_GUEST);
    assert_eq!(lengths(&mut driver).len(), 0);
    passed.store(5_000_000, Ordering::SeqCst);
    ring(&mut driver, TO_GUEST);
    assert_eq!(lengths(&mut driver).len(), 5);
    passed.store(1_000_000_000, Ordering::SeqCst);
    ring(&mut driver, TO_GUEST);
    assert_eq!(lengths(&mut driver).len(), 10);
    passed.store(2_000_000_000, Ordering::SeqCst);
    ring(&mut driver, TO_GUEST);
    assert_eq!(lengths(&mut driver).len(), 5);
    for (seed, buffer) in (0..30).zip(buffers) {
        assert_eq!(driver.peek(buffer + 12, 100), frame(seed, 100));
    }
}

#[test]
fn bytes_from_the_guest_get_through_at_their_rate() {
    let limits = NetworkLimits { to_guest: RateLimits::default(), from_guest: bandwidth(1000) };
    let (mut driver, wire, passed) = limited(limits);
    let alarm = 1;
    queue_frames(&mut driver, 7, 400);
    assert_eq!((received(&wire).len(), driver.used(TX).len()), (2, 2));
    passed.store(1_000_000, Ordering::SeqCst);
    ring(&mut driver, alarm);
    assert_eq!(received(&wire).len(), 0);
    passed.store(2_000_000, Ordering::SeqCst);
    ring(&mut driver, alarm);
    assert_eq!(received(&wire), [frame(2, 400)]);
    passed.store(100_000_000, Ordering::SeqCst);
    ring(&mut driver, alarm);
    assert_eq!(received(&wire), [frame(3, 400), frame(4, 400)]);
    // The other way is free.
    let buffer = offer(&mut driver, 5000);
    refill(&mut driver);
    wire.send(&PLAIN, &frame(1, 3000));
    driver.settle();
    assert_eq!(driver.peek(buffer + 12, 3000), frame(1, 3000));
}

#[test]
fn a_frame_that_met_a_full_tap_is_counted_once() {
    let limits = NetworkLimits { to_guest: RateLimits::default(), from_guest: operations(200) };
    let (mut driver, wire, _) = limited(limits);
    queue_frames(&mut driver, 200, 9000);
    let mut count = driver.used(TX).len();
    assert!(count < 200, "the tap takes them all at once");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut arrived = 0;
    while count < 200 {
        assert!(Instant::now() < deadline, "stands still after {count}");
        // One at a time: the tap is full again and again.
        arrived += usize::from(wire.receive().is_some());
        driver.settle();
        count += driver.used(TX).len();
    }
    assert_eq!(arrived + received(&wire).len(), 200);
}

#[test]
fn a_reset_loses_no_alarm_and_fills_no_bucket() {
    let limits = NetworkLimits { to_guest: operations(3), from_guest: operations(3) };
    let (mut driver, wire, passed) = limited(limits);
    queue_frames(&mut driver, 5, 100);
    offer(&mut driver, 1600);
    for _ in 0..5 {
        wire.send(&PLAIN, &frame(0, 100));
    }
    driver.settle();
    driver.start(u64::MAX);
    ring(&mut driver, FROM_GUEST);
    ring(&mut driver, TO_GUEST);
    assert_eq!(received(&wire).len(), 3);
    queue_frames(&mut driver, 2, 100);
    assert_eq!(received(&wire).len(), 0);
    passed.store(100_000_000, Ordering::SeqCst);
    ring(&mut driver, FROM_GUEST);
    assert_eq!(received(&wire).len(), 2);
}
