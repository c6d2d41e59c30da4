//! Frames that the host's kernel moves, between a real tap and a driver in memory. Needs root, and `/dev/vhost-net`: where that
//! does not exist, each test says so and does nothing.

use std::fs::File;

use super::real_tap::{Interface, delete_link, is_ours, numbered, on_a_thread, tap, tap_flags};
use super::*;

/// The kernel's device, or a word why there is no test.
fn kernel() -> Option<OwnedFd> {
    match File::options().read(true).write(true).open("/dev/vhost-net") {
        Ok(file) => Some(file.into()),
        Err(error) => {
            println!("skipped: /dev/vhost-net: {error}");
            None
        }
    }
}

fn kernels() -> NetworkConfig {
    NetworkConfig { backend: NetworkBackend::Vhost, ..config() }
}

/// A driver that has agreed to `features`, and the other end of its tap, in a namespace of this thread.
fn served(features: u64) -> Option<(Driver, Interface)> {
    let net = device(&kernels(), vec![tap(tap_flags()), kernel()?]).unwrap();
    let interface = Interface::up();
    let mut driver = Driver::new(net, MEMORY);
    driver.start(features);
    assert_eq!(driver.get(STATUS), RUNNING);
    Some((driver, interface))
}

/// The next frame of our own protocol that the driver gets, without its header; every buffer that comes back is offered again.
fn next(driver: &mut Driver, offered: &mut [u64]) -> Vec<u8> {
    loop {
        let mut ours = None;
        for (head, length) in driver.wait_used(RX, 1) {
            let address = offered[usize::from(head)];
            let packet = driver.peek(address, usize::try_from(length).unwrap());
            let head = driver.add(RX, &[writable(address, 4096)]);
            offered[usize::from(head)] = address;
            if is_ours(&packet[HEADER_LENGTH..]) {
                assert_eq!(ours.replace(packet[HEADER_LENGTH..].to_vec()), None, "one at a time was sent");
            }
        }
        driver.notify(RX);
        if let Some(frame) = ours {
            return frame;
        }
    }
}

/// Offers buffers; answers where each is, by its head.
fn fill(driver: &mut Driver) -> Vec<u64> {
    let mut offered = vec![0; 256];
    for _ in 0..32 {
        let address = driver.allocate(4096);
        let head = driver.add(RX, &[writable(address, 4096)]);
        offered[usize::from(head)] = address;
    }
    driver.notify(RX);
    offered
}

/// Sends a frame and waits until its buffers have come back.
fn send_out(driver: &mut Driver, frame: &[u8]) {
    let packet = driver.put(&[&PLAIN[..], frame].concat());
    let length = u32::try_from(HEADER_LENGTH + frame.len()).unwrap();
    let head = driver.add(TX, &[readable(packet, length)]);
    driver.notify(TX);
    assert_eq!(driver.wait_used(TX, 1), [(head, 0)]);
}

fn passes(driver: &mut Driver, interface: &Interface, offered: &mut [u64], numbers: std::ops::Range<u32>) {
    for number in numbers {
        let length = 40 + usize::try_from(number % 1400).unwrap();
        interface.send(&numbered(number, length));
        assert!(next(driver, offered) == numbered(number, length), "frame {number} to the guest");
        send_out(driver, &numbered(number, length));
        assert!(interface.receive() == numbered(number, length), "frame {number} from the guest");
    }
}

#[test]
fn the_kernel_moves_frames_both_ways() {
    for features in [VERSION_1, VERSION_1 | RING_FEATURES, SINGLE, u64::MAX] {
        std::thread::spawn(move || {
            let Some((mut driver, interface)) = served(features) else { return };
            let mut offered = fill(&mut driver);
            passes(&mut driver, &interface, &mut offered, 0..200);
            assert!(driver.interrupted());
            assert_eq!(driver.get(STATUS), RUNNING);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn indirect_chains_are_the_kernels_too() {
    on_a_thread(|| {
        let Some((mut driver, interface)) = served(u64::MAX) else { return };
        let header = driver.put(&PLAIN);
        let frame = driver.put(&numbered(7, 900));
        let head = driver.add_indirect(TX, &[readable(header, 12), readable(frame, 18 + 900)]);
        driver.notify(TX);
        assert_eq!(driver.wait_used(TX, 1), [(head, 0)]);
        assert!(interface.receive() == numbered(7, 900));
    });
}

#[test]
fn a_quiet_device_moves_nothing_and_loses_nothing() {
    on_a_thread(|| {
        let Some((mut driver, interface)) = served(u64::MAX) else { return };
        let mut offered = fill(&mut driver);
        passes(&mut driver, &interface, &mut offered, 0..10);
        for round in 0..20 {
            assert_eq!(driver.transport.quiesce(), crate::virtio::Quiet::Yes);
            interface.send(&numbered(round, 100));
            let packet = driver.put(&[&PLAIN[..], &numbered(round, 200)].concat());
            let head = driver.add(TX, &[readable(packet, 12 + 18 + 200)]);
            driver.kick(TX);
            std::thread::sleep(Duration::from_millis(5));
            assert!(driver.used(RX).is_empty() && driver.used(TX).is_empty(), "round {round}");
            driver.transport.resume();
            assert_eq!(driver.wait_used(TX, 1), [(head, 0)]);
            assert!(interface.receive() == numbered(round, 200));
            assert!(next(&mut driver, &mut offered) == numbered(round, 100));
        }
        passes(&mut driver, &interface, &mut offered, 10..20);
    });
}

#[test]
fn a_reset_ends_it_and_another_driver_begins() {
    on_a_thread(|| {
        let Some((mut driver, interface)) = served(u64::MAX) else { return };
        for _ in 0..20 {
            let mut offered = fill(&mut driver);
            passes(&mut driver, &interface, &mut offered, 0..10);
            // The kernel cannot set the bit, so that it stands.
            driver.set(INTERRUPT_ACK, 1);
            assert_eq!(driver.get(INTERRUPT_STATUS), 1);
            driver.set(STATUS, 0);
            assert_eq!(driver.get(INTERRUPT_STATUS), 0);
            driver.interrupted();
            interface.send(&numbered(99, 100));
            std::thread::sleep(Duration::from_millis(2));
            assert!(driver.used(RX).is_empty());
            // What has come meanwhile waits in the tap.
            driver.start(u64::MAX);
            let mut offered = fill(&mut driver);
            assert!(next(&mut driver, &mut offered) == numbered(99, 100));
            driver.start(u64::MAX);
        }
        assert_eq!(driver.transport.counters().failures, 0);
    });
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    on_a_thread(|| {
        let Some((mut driver, interface)) = served(u64::MAX) else { return };
        for queue in [RX, TX, TX] {
            // More than fits.
            driver.set_available_index(queue, 20_000);
            driver.kick(queue);
            if queue == RX {
                interface.send(&numbered(1, 100));
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while driver.get(STATUS) & NEEDS_RESET == 0 {
                assert!(Instant::now() < deadline, "queue {queue}");
                driver.turn(PollTimeout::from(100_u16));
            }
            driver.start(u64::MAX);
            assert_eq!(driver.get(STATUS), RUNNING);
            let mut offered = fill(&mut driver);
            if queue == RX {
                assert!(next(&mut driver, &mut offered) == numbered(1, 100));
            }
            passes(&mut driver, &interface, &mut offered, 0..10);
            driver.start(u64::MAX);
        }
        assert_eq!(driver.transport.counters().failures, 3);
    });
}

#[test]
fn a_tap_that_is_gone_is_a_pulled_cable_for_the_next_driver() {
    on_a_thread(|| {
        let Some((mut driver, interface)) = served(u64::MAX) else { return };
        let mut offered = fill(&mut driver);
        passes(&mut driver, &interface, &mut offered, 0..10);
        delete_link(&interface);
        // What is sent is lost. Whether the kernel complains depends on its version.
        let packet = driver.put(&[&PLAIN[..], &numbered(3, 100)].concat());
        driver.add(TX, &[readable(packet, 12 + 18 + 100)]);
        driver.notify(TX);
        std::thread::sleep(Duration::from_millis(100));
        driver.settle();
        println!("status {:#x}", driver.get(STATUS));
        driver.start(u64::MAX);
        driver.settle();
        assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET);
        assert_eq!(link_status(&mut driver), 0);
    });
}

#[test]
fn what_vhost_cannot_be_made_of_is_refused() {
    on_a_thread(|| {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let refused = |config: &NetworkConfig, fds| VhostNet::new(config, fds).unwrap_err();
        let error = refused(&kernels(), vec![null()]);
        assert!(matches!(error, NetError::VhostDescriptorCount(1)), "{error:?}");
        let error = refused(&kernels(), vec![null(), null()]);
        assert!(matches!(error, NetError::Tap { .. }), "{error:?}");
        let error = refused(&kernels(), vec![tap(tap_flags()), null()]);
        assert!(matches!(error, NetError::Vhost { .. }), "{error:?}");
        let mut limited = kernels();
        let bucket = hull_protocol::vmm::TokenBucket {
            size: std::num::NonZeroU64::MIN,
            refill_ms: std::num::NonZeroU32::MIN,
            one_time_burst: 0,
        };
        limited.limits.to_guest.bandwidth = Some(bucket);
        let error = refused(&limited, vec![null(), null()]);
        assert_eq!(error.to_string(), "network eth0 has limits, which vhost does not know");
        // One descriptor more is one too many for the other.
        let error = Net::new(&config(), vec![null(), null()]).unwrap_err();
        assert!(matches!(error, NetError::DescriptorCount(2)), "{error:?}");
    });
}
