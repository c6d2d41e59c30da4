use hull_protocol::vmm::GuestMemoryStats;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::virtio::testing::*;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const PAGE: u64 = 4096;
const CONFIG: u64 = 0x100;
/// Two neighbouring regions of guest memory, and nothing behind them.
const REGION: usize = 0x10_0000;
const SECOND: u64 = BASE + REGION as u64;
const END: u64 = SECOND + REGION as u64;
/// Pages that the tests give away: no queue or request is here.
const PLAYGROUND: u64 = BASE + 0x8_0000;

fn balloon() -> (Driver, BalloonControl) {
    let (device, control) = Balloon::new().unwrap();
    let memory = Memory::new(&[(BASE, REGION), (SECOND, REGION)]);
    let mut driver = Driver::with_memory(Box::new(device), memory);
    driver.start(u64::MAX);
    assert_eq!(driver.get(STATUS), RUNNING);
    (driver, control)
}

/// Whether the host has memory for a page of the guest.
fn is_resident(driver: &Driver, address: u64) -> bool {
    let host = driver.memory.guest.get_host_address(GuestAddress(address)).unwrap();
    let mut resident = 0;
    // SAFETY: the page is mapped; one byte is written.
    assert_eq!(unsafe { libc::mincore(host.cast(), 4096, &raw mut resident) }, 0);
    resident & 1 != 0
}

fn number(address: u64) -> u32 {
    u32::try_from(address / PAGE).unwrap()
}

fn submit_pages(driver: &mut Driver, queue: usize, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    let at = driver.put(&bytes);
    let head = driver.submit(queue, &[readable(at, u32::try_from(bytes.len()).unwrap())]);
    assert_eq!(driver.used(queue), [(head, 0)]);
}

#[test]
fn inflated_pages_leave_and_come_back_as_zeroes() {
    let (mut driver, control) = balloon();
    driver.poke(PLAYGROUND, &[0xab; 16 * 4096]);
    assert!((0..16).all(|page| is_resident(&driver, PLAYGROUND + page * PAGE)));
    // In any order, and some of them twice.
    let given = [9, 2, 3, 9, 4, 14, 2];
    let numbers: Vec<u32> = given.iter().map(|page| number(PLAYGROUND + page * PAGE)).collect();
    submit_pages(&mut driver, INFLATE, &numbers);
    for page in 0..16 {
        assert_eq!(is_resident(&driver, PLAYGROUND + page * PAGE), !given.contains(&page), "page {page}");
    }
    assert_eq!((control.stats().ballooned_bytes, control.stats().refused_bytes), (5 * PAGE, 0));
    submit_pages(&mut driver, DEFLATE, &numbers);
    for page in 0..16 {
        let byte = if given.contains(&page) { 0 } else { 0xab };
        assert!(driver.peek(PLAYGROUND + page * PAGE, 4096) == [byte; 4096]);
    }
}

#[test]
fn pages_of_neighbouring_regions_leave_as_one() {
    let (mut driver, control) = balloon();
    driver.poke(SECOND - 2 * PAGE, &[1; 4 * 4096]);
    let numbers: Vec<u32> = (0..4).map(|page| number(SECOND) - 2 + page).collect();
    submit_pages(&mut driver, INFLATE, &numbers);
    assert!((0..4).all(|page| !is_resident(&driver, SECOND - 2 * PAGE + page * PAGE)));
    // The last page and the first that does not exist.
    driver.poke(END - PAGE, &[1; 4096]);
    submit_pages(&mut driver, INFLATE, &[number(END) - 1, number(END)]);
    assert!(!is_resident(&driver, END - PAGE));
    assert_eq!((control.stats().ballooned_bytes, control.stats().refused_bytes), (5 * PAGE, PAGE));
}

#[test]
fn pages_that_do_not_exist_are_counted_and_left_alone() {
    let (mut driver, control) = balloon();
    driver.poke(PLAYGROUND, &[0xab; 4096]);
    submit_pages(&mut driver, INFLATE, &[0, u32::MAX, number(BASE) - 1, number(END), 1 << 31, 0]);
    assert_eq!((control.stats().ballooned_bytes, control.stats().refused_bytes), (0, 5 * PAGE));
    // Not whole numbers, nothing at all, and nothing to read.
    let at = driver.put(&number(PLAYGROUND).to_le_bytes());
    for chain in [[readable(at, 3)], [readable(at, 0)], [writable(at, 4)]] {
        driver.submit(INFLATE, &chain);
        assert_eq!(driver.used(INFLATE).len(), 1);
    }
    assert!(driver.peek(PLAYGROUND, 4096) == [0xab; 4096]);
    assert_eq!(driver.get(STATUS), RUNNING);
}

/// The same numbers named over and over would make one request as expensive as the driver liked.
#[test]
fn a_huge_request_is_worked_on_for_a_while_only() {
    let (mut driver, control) = balloon();
    let numbers: Vec<u8> = (0..0x2000_u32).flat_map(|at| (number(END) + 2 * at).to_le_bytes()).collect();
    let at = driver.put(&numbers);
    driver.submit(INFLATE, &[readable(at, 0x8000); 30]);
    assert_eq!(driver.used(INFLATE).len(), 1);
    assert_eq!(control.stats().refused_bytes, 1024 * PAGE);
}

#[test]
fn reported_memory_leaves_in_whole_pages() {
    let (mut driver, control) = balloon();
    driver.poke(PLAYGROUND, &[0xab; 12 * 4096]);
    let head = driver.submit(
        REPORTING,
        &[
            writable(PLAYGROUND + PAGE, 4096),
            // Half a page at both ends stays.
            writable(PLAYGROUND + 3 * PAGE + 2048, 3 * 4096),
            // No whole page.
            writable(PLAYGROUND + 8 * PAGE + 1, 4096),
            writable(PLAYGROUND + 10 * PAGE, 100),
        ],
    );
    assert_eq!(driver.used(REPORTING), [(head, 0)]);
    for page in 0..12 {
        assert_eq!(is_resident(&driver, PLAYGROUND + page * PAGE), ![1, 4, 5].contains(&page), "page {page}");
    }
    assert_eq!(
        (control.stats().reported_bytes, control.stats().refused_bytes),
        (3 * PAGE, PAGE + PAGE + 100)
    );
    assert!(driver.peek(PLAYGROUND + 3 * PAGE, 4096) == [0xab; 4096]);
    // Memory to read is none that is free.
    driver.submit(REPORTING, &[readable(PLAYGROUND, 4096)]);
    assert!(is_resident(&driver, PLAYGROUND));
}

#[test]
fn what_is_reported_may_cross_regions_but_must_exist() {
    let (mut driver, control) = balloon();
    driver.poke(SECOND - PAGE, &[1; 2 * 4096]);
    driver.submit(REPORTING, &[writable(SECOND - PAGE, 2 * 4096)]);
    assert!(!is_resident(&driver, SECOND - PAGE) && !is_resident(&driver, SECOND));
    assert_eq!(control.stats().reported_bytes, 2 * PAGE);
    driver.submit(REPORTING, &[writable(END - PAGE, 2 * 4096)]);
    assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET);
}

#[test]
fn the_driver_learns_the_target() {
    let (mut driver, control) = balloon();
    let read = |driver: &mut Driver, offset: u64| {
        let mut bytes = [0; 4];
        driver.transport.read(CONFIG + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let generation = driver.get(0xfc);
    assert_eq!((read(&mut driver, 0), read(&mut driver, 4)), (0, 0));
    control.set_target(64);
    driver.settle();
    assert_eq!(driver.get(INTERRUPT_STATUS), 2);
    assert!(driver.interrupted());
    assert_ne!(driver.get(0xfc), generation);
    assert_eq!(read(&mut driver, 0), 64 * 256);
    // It says how far it came; nothing else can be written.
    driver.transport.write(CONFIG + 4, &(16 * 256_u32).to_le_bytes());
    assert_eq!(control.stats().actual_mib, 16);
    let ignored = driver.transport.counters().ignored_accesses;
    for (offset, length) in [(0, 4), (4, 1), (4, 8), (5, 4), (8, 4), (0xeff, 4), (0xf00, 4)] {
        driver.transport.write(CONFIG + offset, &vec![0xff; length]);
    }
    assert_eq!(driver.transport.counters().ignored_accesses, ignored + 7);
    assert_eq!((read(&mut driver, 0), read(&mut driver, 4), read(&mut driver, 8)), (64 * 256, 16 * 256, 0));
    // A driver that begins anew has given nothing away.
    driver.start(u64::MAX);
    assert_eq!((control.stats().target_mib, control.stats().actual_mib), (64, 0));
    control.set_target(u32::MAX);
    assert_eq!(read(&mut driver, 0), u32::MAX);
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [tag.to_le_bytes().as_slice(), &value.to_le_bytes()].concat()
}

#[test]
fn statistics_come_when_somebody_asks() {
    let (mut driver, control) = balloon();
    let first = [entry(4, 1000), entry(5, 4000), entry(99, 1), entry(4, 1001), vec![1, 2, 3]].concat();
    let at = driver.put(&first);
    let head = driver.submit(STATISTICS, &[readable(at, u32::try_from(first.len()).unwrap())]);
    // The device keeps the buffer until it wants to know more.
    assert!(driver.used(STATISTICS).is_empty());
    let known = GuestMemoryStats { free_bytes: Some(1001), total_bytes: Some(4000), ..Default::default() };
    assert_eq!(control.stats().guest, known);
    driver.settle();
    assert_eq!(driver.used(STATISTICS), [(head, 0)]);
    driver.settle();
    assert!(driver.used(STATISTICS).is_empty());
    // Asked before the driver is ready for it: the buffer goes back at once.
    control.stats();
    driver.settle();
    let all: Vec<u8> = (0..8).flat_map(|tag| entry(tag, 10 + u64::from(tag))).collect();
    let at = driver.put(&all);
    let head = driver.submit(STATISTICS, &[readable(at, 80)]);
    assert_eq!(driver.used(STATISTICS), [(head, 0)]);
    assert_eq!(
        control.stats().guest,
        GuestMemoryStats {
            swapped_in_bytes: Some(10),
            swapped_out_bytes: Some(11),
            major_faults: Some(12),
            minor_faults: Some(13),
            free_bytes: Some(14),
            total_bytes: Some(15),
            available_bytes: Some(16),
            cache_bytes: Some(17),
        }
    );
}

#[test]
fn only_one_buffer_for_statistics_is_kept() {
    let (mut driver, control) = balloon();
    let at = driver.put(&entry(4, 7));
    let kept = driver.submit(STATISTICS, &[readable(at, 10)]);
    for _ in 0..40 {
        let head = driver.submit(STATISTICS, &[readable(at, 10)]);
        assert_eq!(driver.used(STATISTICS), [(head, 0)]);
    }
    // However much of them there is.
    let head = driver.submit(STATISTICS, &[readable(BASE, 0x8_0000); 20]);
    assert_eq!(driver.used(STATISTICS), [(head, 0)]);
    control.stats();
    driver.settle();
    assert_eq!(driver.used(STATISTICS), [(kept, 0)]);
    // A buffer from before a reset is not given back after it.
    driver.submit(STATISTICS, &[readable(at, 10)]);
    driver.start(u64::MAX);
    control.stats();
    driver.settle();
    assert!(driver.used(STATISTICS).is_empty());
}

/// Drivers number only the queues that exist.
#[test]
fn a_queue_is_what_the_features_make_it() {
    let (mut driver, control) = balloon();
    driver.start(!FEATURE_STATS_VQ);
    driver.poke(PLAYGROUND, &[1; 4096]);
    driver.submit(2, &[writable(PLAYGROUND, 4096)]);
    assert_eq!((driver.used(2).len(), control.stats().reported_bytes), (1, PAGE));
    driver.start(VERSION_1);
    driver.submit(2, &[writable(PLAYGROUND, 4096)]);
    assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET);
}

/// Whatever is given away, in any order and as often as the guest likes: what was not named is untouched.
#[test]
fn only_what_is_named_leaves() {
    let first = number(PLAYGROUND);
    // Around the border of the regions, and around the end of memory.
    let page = prop_oneof![0..8_u32, 120..136_u32, 376..390_u32];
    assert_eq!((first + 128, first + 384), (number(SECOND), number(END)));
    let requests = prop::collection::vec(prop::collection::vec(page, 0..40), 1..8);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let result = runner.run(&requests, |requests| {
        let (mut driver, control) = balloon();
        driver.poke(PLAYGROUND, &vec![0xcd; usize::try_from(END - PLAYGROUND).unwrap()]);
        for pages in &requests {
            let numbers: Vec<u32> = pages.iter().map(|page| first + page).collect();
            let bytes: Vec<u8> = numbers.iter().flat_map(|page| page.to_le_bytes()).collect();
            let at = driver.put(&bytes);
            driver.submit(INFLATE, &[readable(at, u32::try_from(bytes.len()).unwrap())]);
        }
        let named: std::collections::BTreeSet<u32> = requests.iter().flatten().copied().collect();
        for page in 0..u32::try_from((END - PLAYGROUND) / PAGE).unwrap() {
            let address = PLAYGROUND + u64::from(page) * PAGE;
            prop_assert_eq!(is_resident(&driver, address), !named.contains(&page));
            let mut byte = [0];
            driver.memory.guest.read_slice(&mut byte, GuestAddress(address + 17)).unwrap();
            prop_assert_eq!(byte[0], if named.contains(&page) { 0 } else { 0xcd });
        }
        prop_assert_eq!(driver.get(STATUS), RUNNING);
        let given: usize =
            requests.iter().map(|pages| pages.iter().collect::<std::collections::BTreeSet<_>>().len()).sum();
        let stats = control.stats();
        prop_assert_eq!(stats.ballooned_bytes + stats.refused_bytes, given as u64 * PAGE);
        Ok(())
    });
    result.unwrap();
}

/// Cloud Hypervisor #7903: the size that the guest claims was subtracted from without a look.
#[test]
fn ch_7903_a_size_beyond_all_memory_is_a_number_and_no_more() {
    let (mut driver, control) = balloon();
    for actual in [u32::MAX, 0, 1 << 31, 256] {
        for target in [0, 1, u32::MAX] {
            control.set_target(target);
            driver.transport.write(CONFIG + 4, &actual.to_le_bytes());
            let stats = control.stats();
            assert_eq!((stats.actual_mib, stats.target_mib), (actual / 256, target.min(u32::MAX / 256)));
        }
    }
    submit_pages(&mut driver, DEFLATE, &[u32::MAX, 0]);
    assert_eq!(driver.get(STATUS), RUNNING);
}
