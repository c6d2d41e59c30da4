use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::state::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use super::*;
use crate::virtio::interrupt::USED_BUFFER;
use crate::virtio::testing::echo::{self, Echo, Script};
use crate::virtio::testing::{MAGIC, *};

const MEMORY: usize = 0x40000;

fn echo() -> (Driver, Arc<Mutex<Script>>) {
    let (device, script) = Echo::new();
    (Driver::new(device, MEMORY), script)
}

fn running() -> (Driver, Arc<Mutex<Script>>) {
    let (mut driver, script) = echo();
    driver.start(u64::MAX);
    assert_eq!(driver.get(STATUS), RUNNING);
    (driver, script)
}

/// Brings a device into each of the states a driver can.
fn in_state(status: u32) -> (Driver, Arc<Mutex<Script>>) {
    let (mut driver, script) = echo();
    if status & FEATURES_OK != 0 {
        driver.negotiate(u64::MAX);
        driver.set_up_queue(0);
    }
    for bit in [ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED] {
        if status & bit != 0 {
            let next = driver.get(STATUS) | bit;
            driver.set(STATUS, next);
        }
    }
    assert_eq!(driver.get(STATUS), status);
    (driver, script)
}

const STATES: [u32; 8] = [0, 1, 3, 11, 15, 128, 131, 143];

#[test]
fn a_driver_finds_a_modern_device() {
    let (mut driver, script) = running();
    assert_eq!(driver.get(MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.get(0x04), 2);
    assert_eq!(driver.get(0x08), 42);
    assert_eq!(driver.get(0x0c), u32::from_le_bytes(*b"HULL"));
    assert_eq!(driver.offered(), echo::FEATURES | VERSION_1 | RING_FEATURES);
    assert_eq!(script.lock().unwrap().features, echo::FEATURES | VERSION_1 | RING_FEATURES);
    assert_eq!(script.lock().unwrap().activations, 1);
    for (queue, size) in [(0, 16), (1, 4), (2, 0), (u32::MAX, 0)] {
        driver.set(QUEUE_SEL, queue);
        assert_eq!(driver.get(QUEUE_NUM_MAX), size);
        assert_eq!(driver.get(QUEUE_READY), u32::from(size != 0));
    }
    // No shared memory, a configuration that never changes, nothing counted as wrong so far.
    assert_eq!([driver.get(0xb0), driver.get(0xb4), driver.get(0xfc)], [u32::MAX, u32::MAX, 0]);
    assert_eq!(driver.transport.counters().ignored_accesses, 0);
}

#[test]
fn the_status_only_goes_forward_one_step_at_a_time() {
    let next = [(0, 1), (1, 3), (3, 11), (11, 15)];
    for from in STATES {
        for to in 1..=255 {
            let (mut driver, _script) = in_state(from);
            if from == 3 {
                driver.accept(VERSION_1);
            }
            driver.set(STATUS, to);
            // The device's own bit in a write means nothing.
            let wanted = to & !NEEDS_RESET;
            let allowed = next.contains(&(from, wanted)) || (from & FAILED == 0 && wanted == from | FAILED);
            assert_eq!(driver.get(STATUS), if allowed { wanted } else { from }, "{from} -> {to}");
        }
        let (mut driver, _script) = in_state(from);
        driver.set(STATUS, 0);
        assert_eq!(driver.get(STATUS), 0);
    }
}

#[test]
fn features_that_were_not_offered_or_without_version_1_are_refused() {
    for features in [0, VERSION_1 | 1 << 1, VERSION_1 | 1 << 63, echo::FEATURES, u64::MAX] {
        let (mut driver, script) = in_state(3);
        driver.accept(features);
        driver.set(STATUS, 11);
        assert_eq!(driver.get(STATUS), 3, "{features:#x}");
        // It may try again.
        driver.accept(VERSION_1);
        driver.set(STATUS, 11);
        assert_eq!(driver.get(STATUS), 11);
        // Settled is settled.
        driver.accept(VERSION_1 | echo::FEATURES);
        driver.set(STATUS, 15);
        assert_eq!(script.lock().unwrap().features, VERSION_1);
    }
}

#[test]
fn feature_words_beyond_64_bits_do_not_exist() {
    let (mut driver, _script) = in_state(3);
    for selector in [2, 3, u32::MAX] {
        driver.set(DEVICE_FEATURES_SEL, selector);
        assert_eq!(driver.get(DEVICE_FEATURES), 0);
        driver.set(DRIVER_FEATURES_SEL, selector);
        driver.set(DRIVER_FEATURES, u32::MAX);
    }
    driver.accept(VERSION_1);
    driver.set(STATUS, 11);
    assert_eq!(driver.get(STATUS), 11);
}

#[test]
fn queues_are_configured_between_features_ok_and_driver_ok_only() {
    for state in STATES {
        let (mut driver, _script) = in_state(state);
        let before = driver.transport.state.clone();
        driver.set(QUEUE_SEL, 1);
        driver.set(QUEUE_NUM, 2);
        driver.set_address(QUEUE_DESC, 0xdead_beef_0000);
        driver.set(QUEUE_READY, 1);
        assert_eq!(driver.transport.state != before, state == 11, "{state}");
        assert_eq!(driver.transport.counters().ignored_accesses, if state == 11 { 0 } else { 4 });
    }
}

/// CVE-2026-5747: a queue's size was still writable while the device used it.
#[test]
fn cve_2026_5747_nothing_of_a_running_queue_can_be_written() {
    let (mut driver, _script) = running();
    let before = driver.transport.state.clone();
    for queue in 0..2 {
        driver.set(QUEUE_SEL, queue);
        for register in (0x38..0x50).chain(0x80..0xac).step_by(4) {
            for value in [0, 1, 3, 0x8000, u32::MAX] {
                driver.set(register, value);
            }
        }
    }
    assert_eq!(driver.transport.state, before);
    let request = driver.put(b"still here");
    let answer = driver.allocate(10);
    driver.submit(0, &[readable(request, 10), writable(answer, 10)]);
    assert_eq!(driver.peek(answer, 10), b"still here");
}

#[test]
fn a_ready_queue_is_left_alone_until_it_is_not_ready() {
    let (mut driver, script) = echo();
    driver.negotiate(u64::MAX);
    driver.set_up_queue(0);
    driver.set(QUEUE_NUM, 3);
    driver.set_address(QUEUE_DESC, u64::MAX);
    assert_eq!(driver.transport.counters().ignored_accesses, 3);
    driver.set(QUEUE_READY, 0);
    assert_eq!(driver.get(QUEUE_READY), 0);
    driver.set(QUEUE_NUM, 8);
    driver.set(QUEUE_READY, 1);
    driver.set(STATUS, RUNNING);
    assert_eq!(script.lock().unwrap().activations, 1);
}

#[test]
fn a_broken_queue_at_driver_ok_needs_a_reset_and_survives_it() {
    let end = BASE + MEMORY as u64;
    let broken: [(u64, u64); 16] = [
        (QUEUE_NUM, 0),
        (QUEUE_NUM, 3),
        (QUEUE_NUM, 32),
        (QUEUE_NUM, 0x1_0010),
        (QUEUE_NUM, 0xffff_ffff),
        (QUEUE_DESC, BASE + 8),
        (QUEUE_DESC, end - 16 * 16 + 16),
        (QUEUE_DESC, 0),
        (QUEUE_DESC, !15),
        (QUEUE_DRIVER, BASE + 1),
        (QUEUE_DRIVER, end - 36),
        (QUEUE_DRIVER, 0),
        (QUEUE_DRIVER, u64::MAX - 1),
        (QUEUE_DEVICE, BASE + 2),
        (QUEUE_DEVICE, end - 132),
        (QUEUE_DEVICE, u64::MAX - 3),
    ];
    for (register, value) in broken {
        let (mut driver, script) = echo();
        driver.negotiate(u64::MAX);
        driver.set_up_queue(0);
        driver.set(QUEUE_READY, 0);
        if register == QUEUE_NUM {
            driver.set(register, u32::try_from(value).unwrap());
        } else {
            driver.set_address(register, value);
        }
        driver.set(QUEUE_READY, 1);
        driver.set(STATUS, RUNNING);
        assert_eq!(driver.get(STATUS), RUNNING | NEEDS_RESET, "{register:#x} = {value:#x}");
        assert_eq!(driver.get(INTERRUPT_STATUS), CONFIGURATION_CHANGE);
        assert!(driver.interrupted());
        driver.kick(0);
        driver.settle();
        assert_eq!(script.lock().unwrap().activations, 0);
        driver.start(u64::MAX);
        assert_eq!(driver.get(STATUS), RUNNING);
    }
}

#[test]
fn rings_may_end_exactly_at_the_end_of_memory() {
    let end = BASE + MEMORY as u64;
    for (register, value) in [(QUEUE_DESC, end - 256), (QUEUE_DRIVER, end - 38), (QUEUE_DEVICE, end - 136)] {
        let (mut driver, _script) = echo();
        driver.negotiate(u64::MAX);
        driver.set_up_queue(0);
        driver.set(QUEUE_READY, 0);
        driver.set_address(register, value);
        driver.set(QUEUE_READY, 1);
        driver.set(STATUS, RUNNING);
        assert_eq!(driver.get(STATUS), RUNNING, "{register:#x}");
        // And using them to their last byte touches no guard page.
        driver.kick(0);
        driver.settle();
    }
}

#[test]
fn a_device_can_be_reset_and_used_again() {
    let (mut driver, script) = running();
    for round in 1..=3 {
        let request = driver.put(b"again");
        let answer = driver.allocate(5);
        let head = driver.submit(1, &[readable(request, 5), writable(answer, 5)]);
        assert_eq!(driver.used(1), [(head, 5)]);
        assert_eq!(driver.peek(answer, 5), b"again");
        assert_eq!(driver.get(INTERRUPT_STATUS), USED_BUFFER);
        assert!(driver.interrupted());
        driver.submit(1, &[readable(request, 5), writable(answer, 5)]);
        driver.set(STATUS, 0);
        assert_eq!((driver.get(STATUS), driver.get(INTERRUPT_STATUS)), (0, 0));
        assert_eq!(driver.get(QUEUE_READY), 0);
        let heard = script.lock().unwrap().notified.len();
        driver.kick(1);
        driver.transport.queue_event(1);
        assert_eq!(script.lock().unwrap().notified.len(), heard, "a device in reset was notified");
        assert_eq!(script.lock().unwrap().activations, round);
        driver.start(u64::MAX);
    }
    assert!(script.lock().unwrap().resets >= 3);
}

#[test]
fn a_queue_the_driver_left_out_is_never_notified() {
    let (mut driver, script) = in_state(15);
    for queue in [1, 2, 3, 0xffff, u32::MAX] {
        driver.set(QUEUE_NOTIFY, queue);
        driver.settle();
        driver.transport.queue_event(usize::try_from(queue).unwrap());
    }
    assert!(script.lock().unwrap().notified.is_empty());
    assert_eq!(driver.get(STATUS), RUNNING);
}

#[test]
fn configuration_space_is_read_in_any_size_and_ends_in_zeroes() {
    let (mut driver, _script) = echo();
    let whole: Vec<u8> = (1..=10).chain(std::iter::repeat_n(0, 54)).collect();
    for size in 1..=8 {
        for offset in 0..56_usize {
            let mut data = vec![0xaa; size];
            driver.transport.read(0x100 + offset as u64, &mut data);
            assert_eq!(data, whole[offset..offset + size], "{size} bytes at {offset}");
        }
    }
    for offset in [WINDOW_SIZE - 1, WINDOW_SIZE, u64::MAX] {
        let mut data = [0xaa; 8];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
}

#[test]
fn registers_are_read_and_written_in_words_only() {
    let (mut driver, _script) = in_state(11);
    let before = driver.transport.state.clone();
    for size in [0, 1, 2, 3, 5, 8, 16] {
        for offset in 0..0x100 {
            let mut data = vec![0xaa; size];
            driver.transport.read(offset, &mut data);
            assert_eq!(data, vec![0; size], "{size} bytes at {offset:#x}");
            driver.transport.write(offset, &vec![0xff; size]);
        }
    }
    assert_eq!(driver.transport.state, before);
}

proptest! {
    /// Whatever is written wherever in whatever size, there is an answer, and from activation to reset the queues'
    /// configuration stays what it was.
    #[test]
    fn register_programs_never_panic_and_never_change_a_running_device(
        state in prop::sample::select(STATES.as_slice()),
        accesses in prop::collection::vec(
            (
                prop_oneof![0..0x110_u64, (0..0x44_u64).prop_map(|word| word * 4), any::<u64>()],
                prop_oneof![4 => Just(4_usize), 1 => 0..=16_usize],
                prop_oneof![0..256_u64, any::<u64>(), (0..64_u32).prop_map(|bit| 1 << bit)],
                any::<bool>(),
            ),
            0..200,
        ),
    ) {
        let (mut driver, _script) = in_state(state);
        for (offset, size, value, write) in accesses {
            let before = driver.transport.state.clone();
            let mut data = [0; 16];
            data[..8].copy_from_slice(&value.to_le_bytes());
            if write {
                driver.transport.write(offset, &data[..size]);
            } else {
                driver.transport.read(offset, &mut data[..size]);
            }
            driver.settle();
            match (&before, &driver.transport.state) {
                (State::Running(before), State::Running(after) | State::NeedsReset(after)) => {
                    prop_assert_eq!(before, after);
                }
                (State::Running(_), after) => prop_assert!(matches!(after, State::Reset | State::Failed(_))),
                _ => {}
            }
        }
        driver.start(u64::MAX);
        prop_assert_eq!(driver.get(STATUS), RUNNING);
    }
}
