//! A driver of virtio devices in instructions: what hostile guests begin with before they do their worst.

use super::guest::Code;

/// The window of the first device, a disk in all tests that use it here.
pub const BLK: u32 = 0xd000_0000;
/// Where queues and buffers are: memory that the code does not lie in.
pub const RINGS: u32 = 0x100_0000;
pub const BUFFERS: u32 = 0x180_0000;
/// Of each queue.
pub const SIZE: u32 = 8;

/// Registers (virtio 1.3 §4.2.2).
pub const STATUS: u32 = 0x70;
pub const NOTIFY: u32 = 0x50;

/// Brings a device up with `queues` rings (virtio 1.3 §3.1.1), all that is offered accepted.
pub fn start(mut code: Code, window: u32, queues: u32) -> Code {
    for (offset, value) in [(STATUS, 0), (STATUS, 1), (STATUS, 3)] {
        code = code.store(window + offset, value);
    }
    for half in [0, 1] {
        // What is read is written: mov eax, [offered]; mov [accepted], eax
        code = code.store(window + 0x14, half).store(window + 0x24, half).load(window + 0x10);
        code = code.raw(&[0xa3]).raw(&(window + 0x20).to_le_bytes());
    }
    code = code.store(window + STATUS, 11);
    for queue in 0..queues {
        let rings = rings(window, queue);
        code = code.store(rings + 0x100, 0).store(rings + 0x200, 0);
        for (offset, value) in [
            (0x30, queue),
            (0x38, SIZE),
            (0x80, rings),
            (0x90, rings + 0x100),
            (0xa0, rings + 0x200),
            (0x44, 1),
        ] {
            code = code.store(window + offset, value);
        }
    }
    code.store(window + STATUS, 15)
}

/// Where a queue's descriptors are; the available ring 256 bytes further, the used ring 512.
pub fn rings(window: u32, queue: u32) -> u32 {
    RINGS + (window - BLK) + 0x400 * queue
}

/// Writes a descriptor: address, length, flags, next.
pub fn descriptor(
    code: Code,
    ring: u32,
    index: u32,
    (address, length, flags, next): (u32, u32, u32, u32),
) -> Code {
    let at = ring + 16 * index;
    code.store(at, address).store(at + 4, 0).store(at + 8, length).store(at + 12, next << 16 | flags)
}

/// A read of the disk's first sector as descriptors 0 to 2, and its header.
pub fn disk_request(code: Code) -> Code {
    let ring = rings(BLK, 0);
    let code = code.store(BUFFERS, 0).store(BUFFERS + 8, 0).store(BUFFERS + 12, 0);
    let code = descriptor(code, ring, 0, (BUFFERS, 16, 1, 1));
    let code = descriptor(code, ring, 1, (BUFFERS + 0x1000, 512, 3, 2));
    descriptor(code, ring, 2, (BUFFERS + 0x2000, 1, 2, 0))
}

/// Reads the disk for the first time since it was brought up, waits for the answer and prints its first byte.
pub fn read_the_disk(code: Code) -> Code {
    let ring = rings(BLK, 0);
    let code = start(code, BLK, 1).store(BUFFERS + 0x1000, 0);
    let code = disk_request(code).store(ring + 0x100, 1 << 16).store(BLK + NOTIFY, 0);
    code.wait_for(BUFFERS + 0x1000).load(BUFFERS + 0x1000).print_al()
}

/// Lets the device have what lies in the ring up to the available index `count`, and waits until it has used all of it.
pub fn submit(code: Code, window: u32, queue: u32, count: u16) -> Code {
    let ring = rings(window, queue);
    let code = code.store(ring + 0x100, u32::from(count) << 16).store(window + NOTIFY, queue);
    // cmp word [used index], count; jne back
    let compare =
        [&[0x66, 0x81, 0x3d][..], &(ring + 0x202).to_le_bytes(), &count.to_le_bytes(), &[0x75, 0xf5]];
    code.raw(&compare.concat())
}

/// Offers the ring's first `heads` available entries again whenever the device has used them, and notifies it.
pub fn offer_again(code: Code, window: u32, queue: u32, heads: u8) -> Code {
    let ring = rings(window, queue);
    // mov ax, [used index]; add ax, heads; mov [available index], ax
    let code = code.raw(&[0x66, 0xa1]).raw(&(ring + 0x202).to_le_bytes()).raw(&[0x66, 0x83, 0xc0, heads]);
    code.raw(&[0x66, 0xa3]).raw(&(ring + 0x102).to_le_bytes()).store(window + NOTIFY, queue)
}
