use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use nix::poll::PollTimeout;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::testing::echo::{Answer, Echo, Script};
use crate::virtio::testing::*;

const MEMORY: usize = 0x40000;
const END: u64 = BASE + MEMORY as u64;

fn running_with(features: u64) -> (Driver, Arc<Mutex<Script>>) {
    let (device, script) = Echo::new();
    let mut driver = Driver::new(device, MEMORY);
    driver.start(features);
    (driver, script)
}

fn running() -> (Driver, Arc<Mutex<Script>>) {
    running_with(u64::MAX)
}

/// The device refuses what is in the queue: it needs a reset, and works after it.
fn refused(mut driver: Driver) {
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET);
    assert_eq!(driver.used(0), []);
    driver.start(u64::MAX);
    works(&mut driver);
}

fn works(driver: &mut Driver) {
    let request = driver.put(b"hello, ring");
    let answer = driver.allocate(11);
    let head = driver.submit(0, &[readable(request, 11), writable(answer, 11)]);
    assert_eq!(driver.used(0), [(head, 11)]);
    assert_eq!(driver.peek(answer, 11), b"hello, ring");
}

#[test]
fn chains_may_be_scattered_direct_or_indirect() {
    for features in [VERSION_1, VERSION_1 | RING_FEATURES] {
        let (mut driver, _script) = running_with(features);
        let request = driver.put(b"abcdefghij");
        let answer = driver.allocate(20);
        let chain = [
            readable(request, 1),
            readable(request + 1, 0),
            readable(request + 1, 9),
            writable(answer, 3),
            writable(answer + 3, 0),
            writable(answer + 10, 10),
        ];
        let mut heads = vec![driver.add(0, &chain)];
        if features & RING_FEATURES != 0 {
            heads.push(driver.add_indirect(0, &chain));
        }
        driver.notify(0);
        driver.settle();
        assert_eq!(driver.used(0), heads.iter().map(|head| (*head, 10)).collect::<Vec<_>>());
        assert_eq!(driver.peek(answer, 20), b"abc\0\0\0\0\0\0\0defghij\0\0\0");
    }
}

#[test]
fn a_buffer_may_cross_from_one_region_of_memory_into_the_next() {
    let (device, _script) = Echo::new();
    let memory = Memory::new(&[(BASE, MEMORY), (END, 0x1000)]);
    let mut driver = Driver::with_memory(device, memory);
    driver.start(u64::MAX);
    driver.poke(END - 3, b"123456");
    let answer = driver.allocate(6);
    driver.submit(0, &[readable(END - 3, 6), writable(answer, 6)]);
    assert_eq!(driver.peek(answer, 6), b"123456");
}

#[test]
fn chains_that_loop_are_refused() {
    for (first, second) in [(0, 0), (1, 0), (1, 1)] {
        let (mut driver, _script) = running();
        let buffer = Buffer { address: BASE, length: 1, flags: NEXT };
        driver.raw_descriptor(0, 0, buffer, first);
        driver.raw_descriptor(0, 1, buffer, second);
        driver.add_raw(0, 0);
        refused(driver);
    }
}

#[test]
fn descriptors_outside_of_the_table_are_refused() {
    for head in [16, 17, u16::MAX] {
        let (mut driver, _script) = running();
        driver.add_raw(0, head);
        refused(driver);
        let (mut driver, _script) = running();
        driver.raw_descriptor(0, 0, Buffer { address: BASE, length: 1, flags: NEXT }, head);
        driver.add_raw(0, 0);
        refused(driver);
    }
}

/// CVE-2019-18960: a bounds check that missed buffers which begin inside guest memory and end outside.
#[test]
fn cve_2019_18960_buffers_that_end_outside_of_memory_are_refused() {
    for beyond in [1, 2, 7, 8, 511, 4095, 4096, 65536] {
        for length in [beyond, beyond + 1, 4 + beyond, 70_000] {
            for write in [0, WRITE] {
                let address = END + beyond - length;
                let buffer = Buffer { address, length: u32::try_from(length).unwrap(), flags: write };
                let (mut driver, _script) = running();
                driver.add(0, &[buffer]);
                refused(driver);
                let (mut driver, _script) = running();
                driver.add_indirect(0, &[buffer]);
                refused(driver);
            }
        }
    }
    // And those that end exactly there are fine.
    let (mut driver, _script) = running();
    driver.submit(0, &[readable(END - 8, 8), writable(END - 8, 8)]);
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn buffers_elsewhere_or_of_huge_length_are_refused() {
    let cases =
        [(0, 1), (BASE - 1, 1), (BASE - 1, 2), (END, 1), (u64::MAX, 1), (u64::MAX - 7, 16), (BASE, u32::MAX)];
    for (address, length) in cases {
        for write in [0, WRITE] {
            let (mut driver, _script) = running();
            driver.add(0, &[Buffer { address, length, flags: write }]);
            refused(driver);
        }
    }
}

#[test]
fn overlapping_buffers_that_add_up_to_4_gib_are_refused() {
    let (device, _script) = Echo::new();
    // Pages that nobody touches.
    let mut driver = Driver::new(device, 1 << 30);
    driver.start(u64::MAX);
    driver.add(0, &[writable(BASE, 1 << 30); 4]);
    refused(driver);
}

#[test]
fn readable_after_writable_is_refused() {
    let (mut driver, _script) = running();
    driver.add(0, &[writable(BASE, 1), readable(BASE, 1)]);
    refused(driver);
}

#[test]
fn misused_indirect_tables_are_refused() {
    let table = BASE + 0x20000;
    let one = Buffer { address: table, length: 16, flags: INDIRECT };
    let cases: [(Buffer, Buffer); 7] = [
        // Of no or not a whole number of entries, or outside of memory.
        (Buffer { length: 0, ..one }, readable(BASE, 1)),
        (Buffer { length: 15, ..one }, readable(BASE, 1)),
        (Buffer { length: 17, ..one }, readable(BASE, 1)),
        (Buffer { address: END - 8, ..one }, readable(BASE, 1)),
        // With a next descriptor.
        (Buffer { flags: INDIRECT | NEXT, ..one }, readable(BASE, 1)),
        // In another.
        (one, one),
        // With an entry that is not there.
        (one, Buffer { flags: NEXT, ..readable(BASE, 1) }),
    ];
    for (descriptor, entry) in cases {
        let (mut driver, _script) = running();
        driver.raw_descriptor(0, 0, descriptor, 1);
        driver.raw_descriptor(0, 1, readable(BASE, 1), 0);
        let bytes: Vec<u8> = [
            entry.address.to_le_bytes().as_slice(),
            &entry.length.to_le_bytes(),
            &entry.flags.to_le_bytes(),
            &1_u16.to_le_bytes(),
        ]
        .concat();
        driver.poke(table, &bytes);
        driver.add_raw(0, 0);
        refused(driver);
    }
    // Not negotiated.
    let (mut driver, _script) = running_with(VERSION_1);
    driver.add_indirect(0, &[readable(BASE, 1)]);
    refused(driver);
}

#[test]
fn indirect_chains_longer_than_the_queue_are_refused() {
    let (mut driver, _script) = running();
    driver.add_indirect(0, &[readable(BASE, 1); 16]);
    driver.notify(0);
    driver.settle();
    assert_eq!(driver.used(0).len(), 1);
    driver.add_indirect(0, &[readable(BASE, 1); 17]);
    refused(driver);
}

#[test]
fn an_available_index_that_ran_ahead_is_refused() {
    for ahead in [17, 18, 0x8000, u16::MAX] {
        let (driver, _script) = running();
        driver.set_available_index(0, ahead);
        refused(driver);
    }
}

#[test]
fn a_chain_the_device_stops_at_stays_first_in_line() {
    let (mut driver, script) = running();
    let request = driver.put(b"ab");
    let answer = driver.allocate(2);
    script.lock().unwrap().answers = vec![Answer::Stop];
    let first = driver.submit(0, &[readable(request, 1), writable(answer, 1)]);
    assert_eq!(driver.used(0), []);
    assert!(!driver.interrupted());
    let second = driver.add(0, &[readable(request + 1, 1), writable(answer + 1, 1)]);
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.used(0), [(first, 1), (second, 1)]);
    assert_eq!(driver.peek(answer, 2), b"ab");
}

#[test]
fn deferred_chains_come_back_when_the_device_says_so() {
    let (mut driver, script) = running();
    script.lock().unwrap().answers = vec![Answer::Defer, Answer::Echo, Answer::Defer];
    let heads: Vec<u16> = (0..3).map(|_| driver.add(0, &[writable(BASE + 0x20000, 8)])).collect();
    driver.notify(0);
    driver.settle();
    assert_eq!(driver.used(0), [(heads[1], 0)]);
    assert!(driver.interrupted());
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.used(0), [(heads[2], 7), (heads[0], 7)]);
    assert!(driver.interrupted());
}

#[test]
fn a_run_of_chains_is_one_packet() {
    for features in [VERSION_1, VERSION_1 | RING_FEATURES] {
        let (mut driver, script) = running_with(features);
        script.lock().unwrap().answers = vec![Answer::Fill(1), Answer::Fill(25), Answer::More, Answer::More];
        let text = driver.put(b"not for a run");
        let area = driver.allocate(50);
        let heads = [
            driver.add(0, &[readable(text, 13), writable(area, 10)]),
            driver.add(0, &[readable(text, 13), writable(area + 10, 6), writable(area + 16, 4)]),
            driver.add(0, &[writable(area + 20, 10)]),
            driver.add(0, &[writable(area + 30, 10)]),
        ];
        driver.notify(0);
        driver.settle();
        assert_eq!(driver.used(0), [(heads[0], 10), (heads[1], 10), (heads[2], 5), (heads[3], 1)]);
        assert_eq!(driver.peek(area, 32), [vec![3; 25], vec![0; 5], vec![1, 0]].concat());
        assert_eq!(driver.transport.counters().interrupts, 1);
    }
}

#[test]
fn a_run_that_is_too_short_stays_in_the_ring_until_there_is_more() {
    for features in [VERSION_1, VERSION_1 | RING_FEATURES] {
        let (mut driver, script) = running_with(features);
        let area = driver.allocate(60);
        let mut heads = Vec::new();
        for round in 0..3 {
            // Never is it called with less than it has seen, and it is called again only for news.
            script.lock().unwrap().answers = vec![Answer::More; round + 1];
            heads.push(driver.add(0, &[writable(area + 10 * round as u64, 10)]));
            assert!(driver.notify(0), "round {round}: the driver is asked to notify");
            driver.settle();
            assert_eq!(driver.used(0), []);
            assert!(script.lock().unwrap().answers.is_empty());
        }
        assert!(!driver.interrupted());
        script.lock().unwrap().answers = vec![Answer::Fill(31), Answer::More, Answer::More, Answer::More];
        heads.push(driver.add(0, &[writable(area + 30, 10)]));
        driver.notify(0);
        driver.settle();
        assert_eq!(driver.used(0), [(heads[0], 10), (heads[1], 10), (heads[2], 10), (heads[3], 1)]);
        assert!(driver.interrupted());
    }
}

#[test]
fn a_run_the_device_stops_at_stays_first_in_line() {
    let (mut driver, script) = running();
    script.lock().unwrap().answers = vec![Answer::Stop, Answer::More];
    let area = driver.allocate(20);
    let heads = [driver.add(0, &[writable(area, 10)]), driver.add(0, &[writable(area + 10, 10)])];
    driver.notify(0);
    driver.settle();
    assert_eq!(driver.used(0), []);
    script.lock().unwrap().answers = vec![Answer::Fill(2), Answer::Fill(3)];
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.used(0), [(heads[0], 3), (heads[1], 2)]);
}

/// The event index lies inside a run: its driver is interrupted all the same.
#[test]
fn with_event_idx_a_run_passes_every_index_in_it() {
    for wanted in 0..4_u16 {
        let (mut driver, script) = running();
        script.lock().unwrap().answers = vec![Answer::Fill(4), Answer::More, Answer::More];
        let area = driver.allocate(30);
        for chain in 0..3 {
            driver.add(0, &[writable(area + 10 * chain, 10)]);
        }
        driver.ask_for_interrupt_after(0, wanted);
        driver.notify(0);
        driver.settle();
        assert_eq!(driver.transport.counters().interrupts, u64::from(wanted < 3), "after {wanted}");
    }
}

#[test]
fn with_event_idx_one_interrupt_announces_a_batch() {
    let (mut driver, _script) = running();
    for _ in 0..10 {
        driver.add(0, &[writable(BASE, 1)]);
    }
    driver.notify(0);
    driver.settle();
    assert_eq!(driver.used(0).len(), 10);
    assert_eq!(driver.transport.counters().interrupts, 1);
    assert_eq!(driver.transport.counters().notifications, 1);
    // Nothing used, nothing said.
    driver.kick(0);
    driver.settle();
    assert_eq!(driver.transport.counters().interrupts, 1);
}

#[test]
fn with_event_idx_a_driver_that_does_not_ask_is_not_interrupted() {
    let (mut driver, _script) = running();
    for _ in 0..5 {
        driver.add(0, &[writable(BASE, 1)]);
        driver.notify(0);
        driver.settle();
    }
    // The driver has not looked at the used ring since it asked for the first.
    assert_eq!(driver.transport.counters().interrupts, 1);
    assert_eq!(driver.used(0).len(), 5);
    driver.submit(0, &[writable(BASE, 1)]);
    assert_eq!(driver.transport.counters().interrupts, 2);
}

#[test]
fn a_driver_that_never_stops_adding_does_not_keep_the_thread() {
    let (mut driver, script) = running();
    driver.raw_descriptor(0, 0, writable(BASE + 0x20000, 1), 0);
    driver.add_raw(0, 0);
    let (memory, index) = (driver.memory.guest.clone(), GuestAddress(driver.available_index(0)));
    script.lock().unwrap().meanwhile = Some(Box::new(move || {
        let next: u16 = memory.load(index, Ordering::SeqCst).unwrap();
        memory.store(next.wrapping_add(1), index, Ordering::SeqCst).unwrap();
    }));
    driver.kick(0);
    for turn in 1..=3 {
        assert!(driver.turn(PollTimeout::ZERO), "turn {turn}: the queue comes back by itself");
        assert_eq!(driver.used(0).len(), 32);
    }
    script.lock().unwrap().meanwhile = None;
    driver.settle();
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn indices_wrap_around() {
    let (mut driver, _script) = running();
    for round in 0..70_000 {
        let head = driver.submit(0, &[writable(BASE + 0x20000, 1)]);
        assert_eq!(driver.used(0), [(head, 0)], "round {round}");
    }
}

proptest! {
    /// Any descriptor table whatsoever: an answer or a reset, never a crash, never a byte outside of memory.
    #[test]
    fn arbitrary_descriptor_tables_are_survived(
        descriptors in prop::collection::vec(
            (
                prop_oneof![
                    Just(BASE), BASE - 0x100..BASE + 0x4000, END - 0x2000..END + 0x100, any::<u64>(),
                ],
                prop_oneof![0..0x200_u32, Just(16), Just(32), any::<u32>()],
                0..8_u16,
                prop_oneof![0..17_u16, any::<u16>()],
            ),
            16,
        ),
        heads in prop::collection::vec(prop_oneof![8 => 0..16_u16, 1 => any::<u16>()], 1..17),
    ) {
        let (mut driver, _script) = running();
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            driver.raw_descriptor(0, index, Buffer { address, length, flags }, next);
        }
        for head in heads {
            driver.add_raw(0, head);
        }
        driver.kick(0);
        driver.settle();
        driver.start(u64::MAX);
        works(&mut driver);
    }

    /// A buffer may be anywhere across the end of memory: it is served if it fits and refused otherwise.
    #[test]
    fn the_end_of_memory_is_exact(before in 0_u64..200, length in 1_u32..400) {
        let (mut driver, _script) = running();
        driver.submit(0, &[readable(BASE, 0), writable(END - before, length)]);
        let fits = u64::from(length) <= before;
        prop_assert_eq!(driver.get(STATUS) == RUNNING, fits);
    }
}

/// vm-memory's CVE-2020-13759: an index was copied byte by byte, so that half of an old one met half of a new one.
#[test]
fn cve_2020_13759_an_index_is_never_seen_half_written() {
    let memory = Memory::new(&[(BASE, 0x1000)]);
    let at = GuestAddress(BASE + 0x102);
    let guest = memory.guest.clone();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for _ in 0..200_000 {
                for value in [0_u16, u16::MAX] {
                    guest.store(value, at, Ordering::Relaxed).unwrap();
                }
            }
        });
        let mut seen = 0;
        while !writer.is_finished() {
            let value: u16 = memory.guest.load(at, Ordering::Relaxed).unwrap();
            assert!(value == 0 || value == u16::MAX, "{value:#x}");
            seen += 1;
        }
        assert!(seen > 0);
    });
}
