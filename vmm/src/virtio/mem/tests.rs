use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::*;
use crate::virtio::testing::*;

const START: u64 = 4 << 30;
const BLOCKS: u64 = 64;
const RAM: usize = 0x10_0000;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

/// A device with 128 MiB to plug, of which so many blocks are wanted.
fn mem(wanted: u64) -> (Driver, MemControl) {
    let (device, control) = Mem::new(&(START..START + BLOCKS * BLOCK_SIZE)).unwrap();
    control.request(u32::try_from(wanted * 2).unwrap());
    let memory = Memory::new(&[(BASE, RAM), (START, usize::try_from(BLOCKS * BLOCK_SIZE).unwrap())]);
    let mut driver = Driver::with_memory(Box::new(device), memory);
    driver.start(u64::MAX);
    driver.settle();
    driver.interrupted();
    (driver, control)
}

fn raw_request(driver: &mut Driver, bytes: &[u8], room: u32) -> (u32, Vec<u8>) {
    let from = driver.put(bytes);
    let to = driver.put(&[0xee; 12]);
    driver.submit(0, &[readable(from, u32::try_from(bytes.len()).unwrap()), writable(to, room)]);
    (driver.used(0)[0].1, driver.peek(to, 12))
}

/// Answer and state.
fn ask(driver: &mut Driver, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
    let mut bytes = [0; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    let (used, response) = raw_request(driver, &bytes, 10);
    assert_eq!((used, &response[2..8], &response[10..]), (10, [0; 6].as_slice(), [0xee; 2].as_slice()));
    (u16::from_le_bytes([response[0], response[1]]), u16::from_le_bytes([response[8], response[9]]))
}

fn block(index: u64) -> u64 {
    START + index * BLOCK_SIZE
}

fn config(driver: &mut Driver) -> Vec<u64> {
    let mut bytes = [0; 56];
    driver.transport.read(0x100, &mut bytes);
    bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

fn is_resident(driver: &Driver, address: u64) -> bool {
    let host = driver.memory.guest.get_host_address(GuestAddress(address)).unwrap();
    let mut resident = 0;
    // SAFETY: the page is mapped; one byte is written.
    assert_eq!(unsafe { libc::mincore(host.cast(), 4096, &raw mut resident) }, 0);
    resident & 1 != 0
}

#[test]
fn blocks_are_plugged_up_to_what_is_wanted() {
    let (mut driver, control) = mem(8);
    let size = BLOCKS * BLOCK_SIZE;
    assert_eq!(config(&mut driver), [BLOCK_SIZE, 0, START, size, size, 0, 8 * BLOCK_SIZE]);
    assert_eq!(ask(&mut driver, 0, block(2), 6), (ACK, 0));
    assert_eq!(ask(&mut driver, 0, block(20), 3), (NACK, 0));
    assert_eq!(ask(&mut driver, 0, block(20), 2), (ACK, 0));
    assert_eq!(ask(&mut driver, 0, block(30), 1), (NACK, 0));
    assert_eq!(config(&mut driver)[5], 8 * BLOCK_SIZE);
    assert_eq!(control.stats().plugged_bytes, 8 * BLOCK_SIZE);
    // Plugged, unplugged, both.
    for (first, blocks, state) in [(2, 6, 0), (8, 12, 1), (0, 4, 2), (0, 64, 2), (63, 1, 1)] {
        assert_eq!(ask(&mut driver, 3, block(first), blocks), (ACK, state));
    }
    assert_eq!(ask(&mut driver, 1, block(3), 2), (ACK, 0));
    assert_eq!(ask(&mut driver, 3, block(2), 6), (ACK, 2));
    assert_eq!(ask(&mut driver, 2, 0, 0), (ACK, 0));
    assert_eq!(ask(&mut driver, 3, block(0), 64), (ACK, 1));
    assert_eq!((config(&mut driver)[5], control.stats().plugged_bytes), (0, 0));
}

#[test]
fn nonsense_is_an_error_and_changes_nothing() {
    let (mut driver, control) = mem(BLOCKS);
    assert_eq!(ask(&mut driver, 0, block(4), 4), (ACK, 0));
    let wrong = [
        (block(64), 1),
        (block(63), 2),
        (block(0), 65),
        (block(0), u16::MAX),
        (block(0), 0),
        (block(0) + 4096, 1),
        (START - BLOCK_SIZE, 1),
        (0, 1),
        (u64::MAX, 1),
        (u64::MAX - BLOCK_SIZE + 1, 1),
    ];
    for (address, blocks) in wrong {
        for kind in [0, 1, 3] {
            assert_eq!(ask(&mut driver, kind, address, blocks), (ERROR, 0), "{kind} {address:#x} {blocks}");
        }
    }
    // Plugged already, not plugged, or only in part.
    for (kind, first, blocks) in
        [(0, 4, 1), (0, 3, 2), (0, 7, 2), (1, 3, 1), (1, 3, 2), (1, 7, 2), (4, 4, 1), (99, 0, 1)]
    {
        assert_eq!(ask(&mut driver, kind, block(first), blocks), (ERROR, 0), "{kind} {first} {blocks}");
    }
    // Too short, and no room for an answer.
    assert_eq!(raw_request(&mut driver, &[0; 23], 10), (0, vec![0xee; 12]));
    assert_eq!(raw_request(&mut driver, &[0; 24], 9), (0, vec![0xee; 12]));
    assert_eq!(control.stats().plugged_bytes, 4 * BLOCK_SIZE);
    assert_eq!(driver.get(STATUS), RUNNING);
}

#[test]
fn what_is_unplugged_goes_back_to_the_host() {
    let (mut driver, _control) = mem(BLOCKS);
    assert_eq!(ask(&mut driver, 0, block(0), 8), (ACK, 0));
    for index in 0..8 {
        driver.poke(block(index) + 100, b"data");
        driver.poke(block(index + 1) - 8, b"data");
    }
    assert_eq!(ask(&mut driver, 1, block(2), 3), (ACK, 0));
    for index in 0..8 {
        let gone = (2..5).contains(&index);
        assert_eq!(is_resident(&driver, block(index)), !gone);
        assert_eq!(is_resident(&driver, block(index + 1) - 4096), !gone);
    }
    // A guest that touches it finds zeroes; all the rest is as it was.
    assert_eq!(driver.peek(block(3) + 100, 4), [0; 4]);
    assert_eq!(
        (driver.peek(block(1) + 100, 4), driver.peek(block(5) + 100, 4)),
        (b"data".to_vec(), b"data".to_vec())
    );
    // What an unplug refuses stays.
    assert_eq!(ask(&mut driver, 1, block(4), 4), (ERROR, 0));
    assert!(is_resident(&driver, block(7)));
    assert_eq!(ask(&mut driver, 2, 0, 0), (ACK, 0));
    assert!((0..8).all(|index| !is_resident(&driver, block(index))));
}

#[test]
fn the_driver_learns_what_is_wanted_and_a_reset_forgets_nothing() {
    let (mut driver, control) = mem(4);
    assert_eq!(ask(&mut driver, 0, block(0), 4), (ACK, 0));
    let generation = driver.get(0xfc);
    driver.interrupted();
    control.request(3);
    driver.settle();
    assert_eq!(driver.get(INTERRUPT_STATUS), 2);
    assert!(driver.interrupted());
    assert_ne!(driver.get(0xfc), generation);
    // Whole blocks.
    assert_eq!(config(&mut driver)[6], 2 * BLOCK_SIZE);
    assert_eq!(ask(&mut driver, 0, block(8), 1), (NACK, 0));
    driver.poke(block(0), b"data");
    driver.start(u64::MAX);
    assert_eq!(config(&mut driver)[5..], [4 * BLOCK_SIZE, 2 * BLOCK_SIZE]);
    assert_eq!((ask(&mut driver, 3, block(0), 4), driver.peek(block(0), 4)), ((ACK, 0), b"data".to_vec()));
    control.request(u32::MAX);
    assert_eq!(config(&mut driver)[6], BLOCKS * BLOCK_SIZE);
}
