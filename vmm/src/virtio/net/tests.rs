use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{NetworkBackend, NetworkLimits};
use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use std::os::fd::AsRawFd;

use super::header::{FRAME_MAX, HEADER_LENGTH};
use super::*;
use crate::virtio::testing::*;

mod flood;
mod limits;
mod real_tap;
mod vhost;

const MEMORY: usize = 0x40_0000;
const PLAIN: [u8; HEADER_LENGTH] = [0; HEADER_LENGTH];
/// TCP over IPv4 in segments of 1448 bytes.
const TSO: [u8; HEADER_LENGTH] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
/// Everything but mergeable buffers.
const SINGLE: u64 = !FEATURE_MRG_RXBUF;

fn config() -> NetworkConfig {
    let limits = NetworkLimits::default();
    let backend = NetworkBackend::Userspace;
    NetworkConfig { name: "eth0".into(), mac: [2, 0x48, 0x55, 0x4c, 0x4c, 1], mtu: 1500, limits, backend }
}

/// The other end of the tap.
struct Wire(OwnedFd);

impl Wire {
    fn send(&self, header: &[u8; HEADER_LENGTH], frame: &[u8]) {
        let bytes = [header, frame].concat();
        assert_eq!(send(self.0.as_raw_fd(), &bytes, MsgFlags::empty()), Ok(bytes.len()));
    }

    /// The next frame with its header, if one is there.
    fn receive(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut bytes = vec![0; 2 * FRAME_MAX];
        match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Some((bytes[..HEADER_LENGTH].to_vec(), bytes[HEADER_LENGTH..length].to_vec())),
            Err(Errno::EAGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

fn net_with(features: u64) -> (Driver, Wire) {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let net = Net::over(&config(), Tap::stand_in(ours), || Box::new(Instant::now)).unwrap();
    let mut driver = Driver::new(Box::new(net), MEMORY);
    driver.start(features);
    assert_eq!(driver.get(STATUS), RUNNING);
    (driver, Wire(theirs))
}

fn net() -> (Driver, Wire) {
    net_with(u64::MAX)
}

/// A frame whose bytes tell where they are.
fn frame(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap().wrapping_add(seed)).collect()
}

/// Makes a buffer available to the device; answers where it is.
fn offer(driver: &mut Driver, length: usize) -> u64 {
    let address = driver.allocate(length);
    driver.add(RX, &[writable(address, u32::try_from(length).unwrap())]);
    address
}

fn refill(driver: &mut Driver) {
    driver.notify(RX);
    driver.settle();
}

/// The lengths of the buffers that came back.
fn lengths(driver: &mut Driver) -> Vec<u32> {
    driver.used(RX).into_iter().map(|(_, length)| length).collect()
}

/// Sends from the guest, in pieces of at most so many bytes.
fn transmit(driver: &mut Driver, header: &[u8], frame: &[u8], piece: usize) {
    let header_at = driver.put(header);
    let at = driver.put(frame);
    let mut chain = vec![readable(header_at, u32::try_from(header.len()).unwrap())];
    chain.extend(frame.chunks(piece).scan(at, |next, bytes| {
        let start = *next;
        *next += bytes.len() as u64;
        Some(readable(start, u32::try_from(bytes.len()).unwrap()))
    }));
    let head = driver.submit(TX, &chain);
    assert_eq!(driver.used(TX), [(head, 0)]);
}

fn link_status(driver: &mut Driver) -> u16 {
    let mut status = [0; 2];
    driver.transport.read(0x106, &mut status);
    u16::from_le_bytes(status)
}

/// That frames pass both ways.
fn works(driver: &mut Driver, wire: &Wire) {
    let buffer = offer(driver, 1600);
    driver.notify(RX);
    wire.send(&PLAIN, &frame(9, 77));
    driver.settle();
    let mut used = lengths(driver);
    assert_eq!(used.pop(), Some(89));
    assert!(used.is_empty());
    assert_eq!(driver.peek(buffer + 12, 77), frame(9, 77));
    transmit(driver, &PLAIN, &frame(8, 78), 100);
    assert_eq!(wire.receive(), Some((PLAIN.to_vec(), frame(8, 78))));
}

#[test]
fn the_configuration_is_what_was_given() {
    let (mut driver, _wire) = net();
    let mut config = [0; 14];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config, [2, 0x48, 0x55, 0x4c, 0x4c, 1, 1, 0, 0, 0, 0xdc, 5, 0, 0]);
    assert_eq!(driver.get(0xfc), 0);
    for offset in 0..20 {
        let mut byte = [0];
        driver.transport.read(0x100 + offset, &mut byte);
        assert_eq!(byte[0], config.get(usize::try_from(offset).unwrap()).copied().unwrap_or(0));
    }
}

#[test]
fn frames_go_both_ways() {
    for features in [VERSION_1, VERSION_1 | RING_FEATURES, SINGLE, u64::MAX] {
        let (mut driver, wire) = net_with(features);
        for round in 0..300_u16 {
            let seed = u8::try_from(round % 256).unwrap();
            let buffer = BASE + 0x20_0000;
            driver.add(RX, &[writable(buffer, 1000), writable(buffer + 1000, 1000)]);
            driver.notify(RX);
            let sent = frame(seed, 14 + usize::from(round) * 4);
            wire.send(&PLAIN, &sent);
            driver.settle();
            assert_eq!(lengths(&mut driver), [u32::try_from(sent.len() + 12).unwrap()]);
            assert!(driver.interrupted());
            let got = driver.peek(buffer, 12 + sent.len());
            assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "one buffer, whatever was agreed");
            assert!(got[12..] == sent);
            if round < 50 {
                transmit(&mut driver, &PLAIN, &sent, 100);
                assert_eq!(wire.receive(), Some((PLAIN.to_vec(), sent)));
            }
        }
        let counters = driver.transport.counters();
        assert_eq!(counters.bytes_to_guest, (0..300).map(|round| 14 + round * 4).sum::<u64>());
        assert_eq!(counters.bytes_from_guest, (0..50).map(|round| 14 + round * 4).sum::<u64>());
    }
}

#[test]
fn large_segments_are_spread_over_many_buffers() {
    let (mut driver, wire) = net();
    let area: Vec<u64> = (0..40).map(|_| offer(&mut driver, 4096)).collect();
    driver.notify(RX);
    let large = frame(3, FRAME_MAX - HEADER_LENGTH);
    wire.send(&TSO, &large);
    wire.send(&PLAIN, &frame(4, 60));
    wire.send(&TSO, &frame(5, 4096 - HEADER_LENGTH));
    wire.send(&TSO, &frame(6, 4096 - HEADER_LENGTH + 1));
    driver.settle();
    let mut expected = vec![4096; 16];
    expected.extend([26, 72, 4096, 4096, 1]);
    assert_eq!(lengths(&mut driver), expected);
    let buffers = |from: usize| u16::from_le_bytes(driver.peek(area[from] + 10, 2).try_into().unwrap());
    assert_eq!([buffers(0), buffers(17), buffers(18), buffers(19)], [17, 1, 1, 2]);
    assert_eq!(driver.peek(area[0], 10), TSO[..10]);
    // Buffers were allocated one after the other.
    assert!(driver.peek(area[0] + 12, large.len()) == large);
    assert!(driver.peek(area[19] + 12, 4085) == frame(6, 4085));
}

#[test]
fn large_segments_leave_the_guest_in_one_write() {
    let (mut driver, wire) = net();
    let large = frame(7, FRAME_MAX - HEADER_LENGTH);
    // A driver's own way, and one with more pieces than one call takes.
    for piece in [4096, 300] {
        transmit(&mut driver, &TSO, &large, piece);
        let (header, got) = wire.receive().unwrap();
        assert_eq!(header, TSO);
        assert!(got == large);
    }
    assert_eq!(wire.receive(), None);
}

#[test]
fn frames_wait_for_buffers() {
    let (mut driver, wire) = net();
    for number in 0..20 {
        wire.send(&PLAIN, &frame(number, 100));
    }
    driver.settle();
    let area: Vec<u64> = (0..3).map(|_| offer(&mut driver, 200)).collect();
    refill(&mut driver);
    assert_eq!(lengths(&mut driver), [112; 3]);
    for (number, buffer) in (0..).zip(&area) {
        assert_eq!(driver.peek(buffer + 12, 100), frame(number, 100));
    }
    // Without buffers nothing spins: `settle` ends. With buffers that do not suffice neither.
    wire.send(&PLAIN, &frame(20, 1400));
    driver.settle();
    for number in 3..20 {
        let buffer = offer(&mut driver, 200);
        assert!(driver.notify(RX), "the device has asked to be notified");
        driver.settle();
        assert_eq!(lengths(&mut driver), [112]);
        assert_eq!(driver.peek(buffer + 12, 100), frame(number, 100));
    }
    for _ in 0..7 {
        offer(&mut driver, 200);
        assert!(driver.notify(RX), "the device has asked to be notified");
        driver.settle();
        assert!(lengths(&mut driver).is_empty());
    }
    offer(&mut driver, 200);
    refill(&mut driver);
    assert_eq!(lengths(&mut driver), [200, 200, 200, 200, 200, 200, 200, 12]);
}

#[test]
fn a_single_buffer_that_is_too_small() {
    let (mut driver, wire) = net_with(SINGLE);
    // Useless for this frame, and the driver should not have offered it: it goes back empty.
    let small = driver.allocate(100);
    driver.add(RX, &[writable(small, 100)]);
    driver.add(RX, &[writable(small, 0)]);
    let good = offer(&mut driver, 1526);
    wire.send(&PLAIN, &frame(1, 1000));
    refill(&mut driver);
    assert_eq!(lengths(&mut driver), [0, 0, 1012]);
    assert_eq!(driver.peek(good + 12, 1000), frame(1, 1000));
    // As large as it should be, but the frame is larger: the frame is lost, the buffer is not.
    let good = offer(&mut driver, 1526);
    refill(&mut driver);
    wire.send(&PLAIN, &frame(2, 1515));
    wire.send(&PLAIN, &frame(3, 1514));
    driver.settle();
    assert_eq!(lengths(&mut driver), [1526]);
    assert_eq!(driver.peek(good + 12, 1514), frame(3, 1514));
    works(&mut driver, &wire);
}

#[test]
fn a_ring_that_can_never_hold_a_frame_does_not_block_those_it_can() {
    let (mut driver, wire) = net();
    let area = driver.allocate(256 * 16);
    for chain in 0..256 {
        driver.add(RX, &[writable(area + chain * 16, 16)]);
    }
    refill(&mut driver);
    wire.send(&PLAIN, &frame(1, 256 * 16));
    wire.send(&PLAIN, &frame(2, 60));
    driver.settle();
    assert_eq!(lengths(&mut driver), [16, 16, 16, 16, 8]);
    assert_eq!(driver.peek(area + 10, 2), [5, 0]);
    assert_eq!(driver.peek(area + 12, 60), frame(2, 60));
}

#[test]
fn frames_of_the_guest_that_break_a_rule_are_dropped() {
    let (mut driver, wire) = net_with(VERSION_1 | 1);
    let long = frame(0, FRAME_MAX - HEADER_LENGTH + 1);
    let ok = frame(0, 100);
    let header = |at: usize, value: u8| {
        let mut header = PLAIN;
        header[at] = value;
        header
    };
    let checksum_outside = [1, 0, 0, 0, 0, 0, 99, 0, 0, 0, 0, 0];
    let bad: [(&[u8], &[u8]); 9] = [
        (&[], &[]),
        (&PLAIN[..11], &[]),
        (&PLAIN, &[]),
        (&PLAIN, &ok[..13]),
        (&PLAIN, &long),
        (&header(1, 1), &ok),
        (&header(1, 0xff), &ok),
        (&TSO, &ok),
        (&checksum_outside, &ok),
    ];
    for (header, frame) in bad {
        transmit(&mut driver, header, frame, 4096);
    }
    // The whole packet in the part that the device may write: nothing was sent.
    let head = driver.submit(TX, &[writable(BASE + 0x20_0000, 200)]);
    assert_eq!(driver.used(TX), [(head, 0)]);
    assert_eq!(wire.receive(), None);
    // A header may be in pieces, and fields nobody asked for are not passed on.
    let at = driver.put(&[[0xfe, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9].to_vec(), ok.clone()].concat());
    let head = driver.submit(TX, &[readable(at, 5), readable(at + 5, 20), readable(at + 25, 87)]);
    assert_eq!(driver.used(TX), [(head, 0)]);
    assert_eq!(wire.receive(), Some((PLAIN.to_vec(), ok)));
    assert_eq!(driver.transport.counters().failures, 0);
    works(&mut driver, &wire);
}

#[test]
fn chains_that_break_a_rule_need_a_reset() {
    for queue in [RX, TX] {
        let outside = Buffer { address: BASE + MEMORY as u64 - 10, length: 100, flags: 0 };
        let flags = if queue == RX { WRITE } else { 0 };
        for (buffer, next) in [
            (Buffer { flags, ..outside }, 0),
            (Buffer { address: BASE, length: 100, flags: NEXT | flags }, 0),
            (Buffer { address: BASE, length: 100, flags: NEXT | flags }, 256),
            (Buffer { address: BASE, length: 16, flags: INDIRECT }, 0),
        ] {
            let (mut driver, wire) = net();
            driver.poke(BASE, &[0xff; 16]);
            driver.raw_descriptor(queue, 0, buffer, next);
            driver.add_raw(queue, 0);
            wire.send(&PLAIN, &frame(0, 100));
            driver.kick(queue);
            driver.settle();
            assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET, "{buffer:?}");
            driver.start(u64::MAX);
            // The frame that found no place may be lost or not; what follows must not be.
            let buffer = offer(&mut driver, 200);
            refill(&mut driver);
            if lengths(&mut driver).is_empty() {
                wire.send(&PLAIN, &frame(0, 100));
                driver.settle();
            }
            assert_eq!(driver.peek(buffer + 12, 100), frame(0, 100));
            works(&mut driver, &wire);
        }
    }
}

#[test]
fn frames_nobody_agreed_to_are_not_given_to_the_guest() {
    let (mut driver, wire) = net_with(VERSION_1);
    wire.send(&TSO, &frame(1, 3000));
    wire.send(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &frame(2, 100));
    wire.send(&PLAIN, &frame(3, FRAME_MAX));
    wire.send(&PLAIN, &[1, 2, 3]);
    driver.settle();
    works(&mut driver, &wire);
}

#[test]
fn a_full_tap_is_waited_for() {
    let (mut driver, wire) = net();
    let sent = frame(1, 1000);
    let packet = driver.put(&[&PLAIN[..], &sent].concat());
    for _ in 0..250 {
        driver.add(TX, &[readable(packet, 1012)]);
    }
    driver.notify(TX);
    driver.settle();
    let mut done = driver.used(TX).len();
    assert!((1..250).contains(&done), "{done} frames went into a socket's buffer");
    let mut got = 0;
    while wire.receive().is_some_and(|(_, frame)| frame == sent) {
        got += 1;
        driver.settle();
        done += driver.used(TX).len();
    }
    assert_eq!((got, done), (250, 250));
}

#[test]
fn a_reset_in_the_middle_of_everything() {
    let (mut driver, wire) = net();
    for round in 0..50 {
        let features = if round % 2 == 0 { u64::MAX } else { SINGLE };
        // One frame waits for buffers, one in the tap, and the guest sends into a full one.
        wire.send(&PLAIN, &frame(1, 1000));
        wire.send(&PLAIN, &frame(2, 1000));
        offer(&mut driver, 100);
        let packet = driver.put(&[&PLAIN[..], &frame(3, 60_000)].concat());
        for _ in 0..10 {
            driver.add(TX, &[readable(packet, 60_012)]);
        }
        driver.notify(RX);
        driver.notify(TX);
        driver.settle();
        driver.start(features);
        driver.settle();
        while wire.receive().is_some() {}
        for _ in 0..2 {
            offer(&mut driver, 1526);
        }
        refill(&mut driver);
        let waited = lengths(&mut driver).len();
        assert!((1..=2).contains(&waited), "the frame in the tap was not lost");
        for _ in waited..2 {
            wire.send(&PLAIN, &frame(2, 1000));
        }
        driver.settle();
        assert_eq!(lengths(&mut driver).len(), 2 - waited);
        works(&mut driver, &wire);
    }
}

#[test]
fn a_tap_that_goes_away_is_a_pulled_cable() {
    for first in [RX, TX] {
        let (mut driver, wire) = net();
        works(&mut driver, &wire);
        assert_eq!(link_status(&mut driver), 1);
        while driver.interrupted() {}
        offer(&mut driver, 2000);
        driver.notify(RX);
        drop(wire);
        if first == RX {
            driver.settle();
        }
        for _ in 0..3 {
            transmit(&mut driver, &PLAIN, &frame(1, 100), 100);
        }
        assert_eq!(link_status(&mut driver), 0);
        assert_eq!(driver.get(0xfc), 1);
        assert_eq!(driver.get(INTERRUPT_STATUS) & CONFIGURATION_CHANGE, CONFIGURATION_CHANGE);
        assert_eq!(driver.get(STATUS), RUNNING);
        // It stays quiet, for this driver and the next.
        driver.start(u64::MAX);
        offer(&mut driver, 2000);
        refill(&mut driver);
        transmit(&mut driver, &PLAIN, &frame(1, 100), 100);
        assert_eq!((link_status(&mut driver), lengths(&mut driver)), (0, vec![]));
    }
}

#[test]
fn what_is_no_network_is_refused() {
    let socket = || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap().0;
    let error = |config: NetworkConfig, fds| Net::new(&config, fds).unwrap_err();
    assert!(matches!(error(config(), vec![]), NetError::DescriptorCount(0)));
    assert!(matches!(error(config(), vec![socket(), socket()]), NetError::DescriptorCount(2)));
    for name in ["", "a b", "a/b", "123456789012345678901"] {
        let config = NetworkConfig { name: name.into(), ..config() };
        assert!(matches!(error(config, vec![socket()]), NetError::Name(_)));
    }
    for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        assert!(matches!(error(NetworkConfig { mac, ..config() }, vec![socket()]), NetError::Mac(_)));
    }
    assert!(matches!(error(NetworkConfig { mtu: 67, ..config() }, vec![socket()]), NetError::Mtu { .. }));
    for fd in [socket(), file_with(b"").into()] {
        let NetError::Tap { source: TapError::NotATap(source), .. } = error(config(), vec![fd]) else {
            panic!()
        };
        assert_ne!(source.kind(), ErrorKind::WouldBlock);
    }
}
