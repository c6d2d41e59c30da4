use super::*;
use crate::virtio::testing::*;

fn rng() -> Driver {
    Driver::running(Box::new(Entropy::new()), 0x40000)
}

#[test]
fn buffers_are_filled_with_random_bytes() {
    let mut driver = rng();
    let buffers = [driver.allocate(300), driver.allocate(300)];
    let head = driver.submit(0, &[writable(buffers[0], 300), writable(buffers[1], 300)]);
    assert_eq!(driver.used(0), [(head, 600)]);
    for buffer in buffers {
        let mut counts = [0; 256];
        driver.peek(buffer, 300).iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(counts.iter().all(|count| *count < 30), "{counts:?}");
    }
    assert!(driver.interrupted());
    assert_eq!(driver.transport.counters().bytes_to_guest, 600);
}

/// The same pages named over and over made one request as expensive as the driver liked.
#[test]
fn overlapping_descriptors_do_not_inflate_a_request() {
    let mut driver = rng();
    let buffer = driver.allocate(0x8000);
    let head = driver.submit(0, &[writable(buffer, 0x8000); 60]);
    assert_eq!(driver.used(0), [(head, 64 * 1024)]);
}

#[test]
fn what_the_driver_wrote_is_not_touched() {
    let mut driver = rng();
    let text = driver.put(b"mine");
    let heads = [driver.submit(0, &[readable(text, 4)]), driver.submit(0, &[writable(text, 0)])];
    assert_eq!(driver.used(0), [(heads[0], 0), (heads[1], 0)]);
    assert_eq!(driver.peek(text, 4), b"mine");
}

#[test]
fn it_works_again_after_a_reset() {
    let mut driver = rng();
    driver.start(VERSION_1);
    let buffer = driver.allocate(64);
    driver.submit(0, &[writable(buffer, 64)]);
    assert_ne!(driver.peek(buffer, 64), [0; 64]);
}
