//! Many frames, few buffers, a sender on another thread: a wake-up that is missed shows as a test that stands still.

use super::*;

const FRAMES: u32 = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Frames of different lengths, each with its number.
fn numbered(number: u32) -> Vec<u8> {
    let length =
        14 + usize::try_from(number % 97).unwrap() * if number.is_multiple_of(64) { 200 } else { 10 };
    [number.to_le_bytes().to_vec(), frame(0, length - 4)].concat()
}

/// Buffers that are in turn offered, filled and read.
struct Pool {
    area: u64,
    size: u32,
    free: Vec<u64>,
    /// By head.
    offered: Vec<u64>,
}

impl Pool {
    fn new(driver: &mut Driver, count: u32, size: u32) -> Self {
        let area = driver.allocate(usize::try_from(count * size).unwrap());
        let free = (0..u64::from(count)).map(|index| area + index * u64::from(size)).collect();
        Self { area, size, free, offered: vec![0; 256] }
    }

    fn offer(&mut self, driver: &mut Driver, count: usize) {
        for _ in 0..count.min(self.free.len()) {
            let address = self.free.pop().unwrap();
            let head = driver.add(RX, &[writable(address, self.size)]);
            self.offered[usize::from(head)] = address;
        }
        driver.notify(RX);
    }

    /// What has come back, one buffer after the other.
    fn take(&mut self, driver: &mut Driver) -> Vec<Vec<u8>> {
        let used = driver.used(RX);
        let mut all = Vec::new();
        for (head, length) in used {
            let address = self.offered[usize::from(head)];
            assert!(address >= self.area);
            all.push(driver.peek(address, usize::try_from(length).unwrap()));
            self.free.push(address);
        }
        all
    }
}

/// Receives everything, checking order and content.
fn all_arrive(features: u64, buffers: u32, size: u32) {
    let (mut driver, wire) = net_with(features);
    let sender = std::thread::spawn(move || {
        for number in 0..FRAMES {
            // Blocks where the socket is full.
            wire.send(&PLAIN, &numbered(number));
        }
        wire
    });
    let mut pool = Pool::new(&mut driver, buffers, size);
    let deadline = Instant::now() + PATIENCE;
    let (mut number, mut pieces) = (0, Vec::new());
    let mut turn = 0;
    while number < FRAMES {
        assert!(Instant::now() < deadline, "stands still after {number} frames");
        // Sometimes all buffers, sometimes one, so that every way to run out of them is taken.
        turn += 1;
        pool.offer(&mut driver, if turn % 3 == 0 { 1 } else { 256 });
        driver.turn(PollTimeout::from(1000_u16));
        pieces.extend(pool.take(&mut driver));
        let mut rest = &pieces[..];
        while let [first, ..] = rest {
            let count = usize::from(u16::from_le_bytes([first[10], first[11]]));
            assert!(count <= rest.len(), "a packet is seen as a whole");
            let (packet, after) = rest.split_at(count);
            assert!(packet.concat()[12..] == numbered(number), "frame {number}");
            (number, rest) = (number + 1, after);
        }
        pieces.clear();
    }
    sender.join().unwrap();
    assert_eq!(driver.transport.counters().failures, 0);
}

#[test]
fn a_flood_arrives_whole_and_in_order() {
    all_arrive(u64::MAX, 32, 2048);
}

#[test]
fn a_flood_into_small_merged_buffers() {
    all_arrive(VERSION_1 | FEATURE_MRG_RXBUF, 200, 128);
}

#[test]
fn a_flood_into_single_buffers() {
    all_arrive(SINGLE, 8, 20_000);
}

/// Both ways at once, with a host that reads slowly.
#[test]
fn a_flood_from_the_guest_arrives_whole_and_in_order() {
    let (mut driver, wire) = net();
    setsockopt(&wire.0, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(60, 0)).unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 2 * FRAME_MAX];
        for number in 0..FRAMES {
            let length = recv(wire.0.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
            assert!(bytes[HEADER_LENGTH..length] == numbered(number), "frame {number}");
        }
        wire
    });
    let slots: Vec<u64> = (0..64).map(|_| driver.allocate(20_000)).collect();
    let deadline = Instant::now() + PATIENCE;
    let (mut sent, mut done) = (0, 0);
    while done < FRAMES {
        assert!(Instant::now() < deadline, "stands still after {done} frames");
        while sent < FRAMES && sent - done < 64 {
            let packet = [PLAIN.to_vec(), numbered(sent)].concat();
            let at = slots[usize::try_from(sent % 64).unwrap()];
            driver.poke(at, &packet);
            driver.add(TX, &[readable(at, u32::try_from(packet.len()).unwrap())]);
            sent += 1;
        }
        driver.notify(TX);
        driver.turn(PollTimeout::from(1000_u16));
        done += u32::try_from(driver.used(TX).len()).unwrap();
    }
    reader.join().unwrap();
}

/// Firecracker's CVE-2020-16843: with the tap and the ring full at once, the last wake-up was lost.
#[test]
fn cve_2020_16843_a_full_tap_and_a_ring_without_buffers_freeze_nothing() {
    let (mut driver, wire) = net();
    for round in 0..3 {
        let mut sent = 0;
        loop {
            let bytes = [&PLAIN[..], &numbered(sent)].concat();
            match send(wire.0.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(_) => sent += 1,
                Err(Errno::EAGAIN) => break,
                Err(error) => panic!("{error}"),
            }
            // Meanwhile the device looks, and finds no buffer.
            driver.settle();
        }
        assert!(sent > 3, "round {round}");
        for number in 0..sent {
            driver.free_buffers();
            let buffer = offer(&mut driver, 32_768);
            driver.notify(RX);
            driver.settle();
            let lengths = lengths(&mut driver);
            assert_eq!(lengths.len(), 1, "frame {number} of {sent}");
            let frame = driver.peek(buffer + 12, usize::try_from(lengths[0]).unwrap() - 12);
            assert!(frame == numbered(number), "frame {number}");
        }
    }
}
