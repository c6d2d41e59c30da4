//! Rate limits, by a clock that the test moves and counts of what got through.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hull_protocol::vmm::TokenBucket;

use super::*;

/// A disk under limits, and the milliseconds that its clock shows.
fn limited(limits: RateLimits) -> (Driver, Arc<AtomicU64>) {
    let file = file_with(&sectors(200));
    let config = DiskConfig { limits, ..config(DiskAccess::ReadWrite, &[(0, 200 * 512)]) };
    let (start, passed) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let shown = Arc::clone(&passed);
    let clock = move || start + Duration::from_millis(shown.load(Ordering::SeqCst));
    let block = Block::with(&config, fds(&[&file]), engine::blocking, Box::new(clock)).unwrap();
    (Driver::running(Box::new(block), MEMORY), passed)
}

/// Slow enough that the real timer does not ring during a test.
fn bucket(size: u64, one_time_burst: u64) -> Option<TokenBucket> {
    let (size, refill_ms) = (NonZeroU64::new(size).unwrap(), NonZeroU32::new(10_000_000).unwrap());
    Some(TokenBucket { size, refill_ms, one_time_burst })
}

fn add_reads(driver: &mut Driver, count: usize, sectors: u64) {
    for _ in 0..count {
        let header = driver.put(&header(IN, 0));
        let to = driver.allocate(usize::try_from(sectors * 512 + 1).unwrap());
        let length = u32::try_from(sectors * 512).unwrap();
        driver.add(0, &[readable(header, 16), writable(to, length), writable(to + sectors * 512, 1)]);
    }
    driver.notify(0);
    driver.settle();
}

/// The alarm rings, early or late: the limiter decides.
fn ring(driver: &mut Driver) {
    driver.transport.fd_ready(0);
    driver.settle();
}

#[test]
fn operations_get_through_at_their_rate() {
    let (mut driver, passed) = limited(RateLimits { bandwidth: None, operations: bucket(10, 3) });
    add_reads(&mut driver, 40, 1);
    assert_eq!(driver.used(0).len(), 13);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 0);
    passed.store(999_999, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 0);
    passed.store(1_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 1);
    passed.store(6_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 5);
    // However long nothing happens, the bucket holds no more than its size.
    passed.store(1_000_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 10);
    assert_eq!(driver.transport.counters().bytes_to_guest, 29 * 512);
}

#[test]
fn bytes_get_through_at_their_rate() {
    let (mut driver, passed) = limited(RateLimits { bandwidth: bucket(10 * 512, 0), operations: None });
    add_reads(&mut driver, 8, 4);
    assert_eq!(driver.used(0).len(), 2);
    passed.store(2_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 1);
    // Larger than the bucket: it passes when the bucket is full, and the next one pays.
    passed.store(100_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 2);
    passed.store(200_000_000, Ordering::SeqCst);
    ring(&mut driver);
    passed.store(300_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 3);
    add_reads(&mut driver, 2, 100);
    passed.store(400_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 1);
    passed.store(499_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 0);
    passed.store(500_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn a_flood_of_notifications_or_of_nonsense_gets_nothing_more() {
    let (mut driver, _) = limited(RateLimits { bandwidth: None, operations: bucket(5, 0) });
    for _ in 0..20 {
        let status = driver.allocate(1);
        driver.add(0, &[readable(status, 1), writable(status, 1)]);
        driver.kick(0);
        driver.settle();
    }
    assert_eq!(driver.used(0).len(), 5);
    for _ in 0..50 {
        driver.kick(0);
        driver.settle();
    }
    assert_eq!(driver.used(0).len(), 0);
}

#[test]
fn a_reset_does_not_fill_the_bucket() {
    let (mut driver, passed) = limited(RateLimits { bandwidth: None, operations: bucket(5, 0) });
    add_reads(&mut driver, 9, 1);
    assert_eq!(driver.used(0).len(), 5);
    driver.start(u64::MAX);
    ring(&mut driver);
    add_reads(&mut driver, 9, 1);
    assert_eq!(driver.used(0).len(), 0);
    passed.store(4_000_000, Ordering::SeqCst);
    ring(&mut driver);
    assert_eq!(driver.used(0).len(), 2);
}
