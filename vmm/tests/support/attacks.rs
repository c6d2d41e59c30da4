//! What a hostile guest can do to any virtio device, as code.

use super::driver::{BUFFERS, NOTIFY, SIZE, STATUS, descriptor, rings, start};
use super::guest::Code;
use super::random::Random;

/// A device: its window, and how many queues it has.
pub type Device = (u32, u32);

/// Reads and writes of every size at random offsets of random devices, which are brought up now and then.
pub fn random_accesses(random: &mut Random, devices: &[Device], count: u32, mut code: Code) -> Code {
    let number = u32::try_from(devices.len()).unwrap();
    for _ in 0..count {
        let (window, queues) = devices[random.below(number) as usize];
        if random.below(64) == 0 {
            code = start(code, window, queues);
        }
        let offset = if random.below(8) == 0 { random.below(0x1000) } else { 4 * random.below(0x48) };
        let value = match random.below(4) {
            0 => random.any(),
            1 => rings(window, random.below(4)),
            2 => 1 << random.below(32),
            _ => random.below(16),
        };
        let address = (window + offset).to_le_bytes();
        code = match random.below(8) {
            // mov byte, word; mov al, ax, eax from memory
            0 => code.raw(&[0xc6, 0x05]).raw(&address).raw(&value.to_le_bytes()[..1]),
            1 => code.raw(&[0x66, 0xc7, 0x05]).raw(&address).raw(&value.to_le_bytes()[..2]),
            2 => code.raw(&[0xa0]).raw(&address),
            3 => code.raw(&[0x66, 0xa1]).raw(&address),
            4 => code.load(window + offset),
            _ => code.store(window + offset, value),
        };
    }
    code
}

/// Gives the queues of a running device another place, another size, makes them not ready, ready, stops the device, each
/// time with a notification: sometimes the next reset meets all that.
pub fn reprogram(random: &mut Random, window: u32, mut code: Code) -> Code {
    for _ in 0..1 + random.below(6) {
        let (offset, value) = match random.below(6) {
            0 => (0x38, random.any()),
            1 => (0x80 + 4 * random.below(10), random.any()),
            2 => (0x44, 0),
            3 => (0x44, 1),
            4 => (0x30, random.below(3)),
            _ => (STATUS, [0, 4, 15, 128][random.below(4) as usize]),
        };
        code = code.store(window + offset, value).store(window + NOTIFY, random.below(2));
    }
    code
}

/// Brings a device up with all its rings full of bad chains: by turns in a circle, of themselves, of nonsense.
pub fn bad_chains(random: &mut Random, (window, queues): Device, round: u32, code: Code) -> Code {
    let mut code = start(code, window, queues);
    for queue in 0..queues {
        let ring = rings(window, queue);
        for index in 0..SIZE {
            let (flags, next) = match round % 3 {
                0 => (1, (index + 1) % SIZE),
                1 => (3, index),
                _ => (random.below(8), random.below(2 * SIZE)),
            };
            let address = if random.below(4) == 0 { random.any() } else { BUFFERS + 0x1000 * index };
            let length = if random.below(4) == 0 { random.any() } else { random.below(0x2000) };
            code = descriptor(code, ring, index, (address, length, flags, next));
        }
        // Eight heads, or an index that has run far ahead.
        for pair in 0..SIZE / 2 {
            code = code.store(ring + 0x104 + 4 * pair, ((2 * pair + 1) << 16) | (2 * pair));
        }
        let index = if random.below(4) == 0 { random.below(0xffff) } else { SIZE };
        code = code.store(ring + 0x100, index << 16).store(window + NOTIFY, queue);
    }
    code
}
