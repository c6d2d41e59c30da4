//! Guests that do their worst with devices and ports. The monitor must live, answer its control socket in time, serve its
//! other devices meanwhile, and hold no more memory than before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{
    Channel, DiskAccess, DiskConfig, DiskDiscard, DiskExtent, ExitReason, MachineConfig, PmemConfig,
    RateLimits, Request, VmStats, VsockConfig,
};
use support::guest::{Code, Elf, I8042};
use support::shim::{Vmm, file, machine};

/// Windows of the devices, in the order in which [`boot`] adds them.
const BLK: u32 = 0xd000_0000;
const VSOCK: u32 = 0xd000_1000;
const RNG: u32 = 0xd000_2000;
const BALLOON: u32 = 0xd000_3000;
const MEM: u32 = 0xd000_4000;
const PMEM: u32 = 0xd000_5000;
const DEVICES: [(u32, u32); 6] = [(BLK, 1), (VSOCK, 3), (RNG, 1), (BALLOON, 4), (MEM, 1), (PMEM, 1)];

/// Where queues and buffers are: memory that the code does not lie in.
const RINGS: u32 = 0x100_0000;
const BUFFERS: u32 = 0x180_0000;
const SIZE: u32 = 8;

const STATUS: u32 = 0x70;
const NOTIFY: u32 = 0x50;
/// What the console's log takes, in bytes.
const LOG: u64 = 64 << 10;
/// The monitor answers within this, however much the guest asks of it: a bound against starvation, not a speed.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longer than any guest here takes for its next sign of life.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the monitor may hold more than when its guest began, in KiB.
const GROWTH: u64 = 1024;

/// A VM with a device of each kind that needs no privilege, and what their other ends are.
struct Victim {
    vmm: Vmm,
    _host: (tempfile::TempDir, Channel),
    held_at_first: u64,
}

fn boot(kernel: &[u8]) -> Victim {
    let vmm = Vmm::greeted();
    vmm.describe(MachineConfig { console_limit_bytes: LOG, ..machine(1) }, kernel, b"initramfs");
    let disk = DiskConfig {
        serial: "disk".into(),
        access: DiskAccess::ReadWrite,
        extents: vec![DiskExtent { offset: 0, length: 1 << 16 }],
        discard: DiskDiscard::On,
        limits: RateLimits::default(),
    };
    vmm.done(&Request::AddDisk(disk), &[file(&[0x5a; 1 << 16]).as_fd()]);
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    let config = VsockConfig { guest_cid: 3, guest_to_host_ports: vec![1024] };
    vmm.done(&Request::AddVsock(config), &[listener.as_fd(), OwnedFd::from(theirs).as_fd()]);
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::AddBalloon, &[]);
    vmm.done(&Request::AddHotplugMemory { mib: 128 }, &[]);
    let pmem = PmemConfig { name: "file".into(), length: 2 << 20, access: DiskAccess::ReadOnly };
    vmm.done(&Request::AddPmem(pmem), &[file(&vec![1; 2 << 20]).as_fd()]);
    vmm.done(&Request::Boot, &[]);
    let held_at_first = held(&vmm);
    Victim { vmm, _host: (folder, ours), held_at_first }
}

/// The monitor's own memory in KiB, besides the guest's. Pages of files are not its own, and those of a program that was
/// just built are dirty.
fn held(vmm: &Vmm) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (mut sum, mut counted) = (0, false);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap();
        if let Some((from, to)) = first.split_once('-') {
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            counted = address(to) - address(from) < 32 << 20;
        } else if counted && first == "Anonymous:" {
            sum += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    sum
}

impl Victim {
    fn stats(&self) -> VmStats {
        let start = Instant::now();
        let stats = self.vmm.stats();
        assert!(start.elapsed() < DEADLINE, "an answer took {:?}", start.elapsed());
        stats
    }

    /// Waits until the guest has said so much, asking all the time.
    fn wait_for_console(&self, bytes: u64) -> VmStats {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats();
            if stats.console_bytes >= bytes {
                return stats;
            }
            assert!(Instant::now() < deadline, "the guest is stuck: {stats:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(self) -> Vec<u8> {
        let grown = held(&self.vmm).saturating_sub(self.held_at_first);
        assert!(grown <= GROWTH, "{} KiB and {grown} more", self.held_at_first);
        self.vmm.done(&Request::Stop, &[]);
        let (reason, console, status) = self.vmm.end();
        assert_eq!((reason, status), (ExitReason::Stopped, 0));
        console
    }
}

/// A sequence of numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).unwrap() % end
    }

    fn any(&mut self) -> u32 {
        self.below(u32::MAX)
    }
}

/// Brings a device up with `queues` rings (virtio 1.3 §3.1.1), all that is offered accepted.
fn start(mut code: Code, window: u32, queues: u32) -> Code {
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
fn rings(window: u32, queue: u32) -> u32 {
    RINGS + (window - BLK) + 0x400 * queue
}

fn descriptor(
    code: Code,
    ring: u32,
    index: u32,
    (address, length, flags, next): (u32, u32, u32, u32),
) -> Code {
    let at = ring + 16 * index;
    code.store(at, address).store(at + 4, 0).store(at + 8, length).store(at + 12, next << 16 | flags)
}

/// A read of the disk's first sector as descriptors 0 to 2, and its header.
fn disk_request(code: Code) -> Code {
    let ring = rings(BLK, 0);
    let code = code.store(BUFFERS, 0).store(BUFFERS + 8, 0).store(BUFFERS + 12, 0);
    let code = descriptor(code, ring, 0, (BUFFERS, 16, 1, 1));
    let code = descriptor(code, ring, 1, (BUFFERS + 0x1000, 512, 3, 2));
    descriptor(code, ring, 2, (BUFFERS + 0x2000, 1, 2, 0))
}

/// Reads the disk for the first time since it was brought up, waits for the answer and prints its first byte.
fn read_the_disk(code: Code) -> Code {
    let ring = rings(BLK, 0);
    let code = start(code, BLK, 1).store(BUFFERS + 0x1000, 0);
    let code = disk_request(code).store(ring + 0x100, 1 << 16).store(BLK + NOTIFY, 0);
    code.wait_for(BUFFERS + 0x1000).load(BUFFERS + 0x1000).print_al()
}

#[test]
fn random_registers_in_random_order() {
    const ACCESSES: u32 = 6000;
    for seed in 1..=3 {
        let mut random = Random(seed);
        let mut code = Code::new();
        for _ in 0..ACCESSES {
            let (window, queues) = DEVICES[random.below(6) as usize];
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
        let victim = boot(&read_the_disk(code).halt().kernel());
        victim.wait_for_console(1);
        assert_eq!(victim.end(), [0x5a], "seed {seed}");
    }
}

#[test]
fn queues_that_are_reprogrammed_while_they_run() {
    let mut random = Random(7);
    let mut code = Code::new();
    for round in 0..300 {
        code = disk_request(start(code, BLK, 1));
        code = code.store(rings(BLK, 0) + 0x100, 1 << 16).store(BLK + NOTIFY, 0);
        // Another place, another size, not ready, ready; sometimes the next round's reset meets all that.
        for _ in 0..1 + random.below(6) {
            let (offset, value) = match random.below(6) {
                0 => (0x38, random.any()),
                1 => (0x80 + 4 * random.below(10), random.any()),
                2 => (0x44, 0),
                3 => (0x44, 1),
                4 => (0x30, random.below(3)),
                _ => (STATUS, [0, 4, 15, 128][random.below(4) as usize]),
            };
            code = code.store(BLK + offset, value).store(BLK + NOTIFY, 0);
        }
        if round % 100 == 99 {
            code = read_the_disk(code);
        }
    }
    let victim = boot(&code.halt().kernel());
    let stats = victim.wait_for_console(3);
    assert!(stats.devices["blk-disk"].notifications > 3, "{stats:?}");
    assert_eq!(victim.end(), [0x5a; 3]);
}

#[test]
fn chains_that_loop_and_chains_of_nonsense() {
    let mut random = Random(9);
    let mut code = Code::new();
    for (window, queues) in DEVICES {
        for round in 0..24 {
            code = start(code, window, queues);
            for queue in 0..queues {
                let ring = rings(window, queue);
                for index in 0..SIZE {
                    let (flags, next) = match round % 3 {
                        // In a circle; to itself; anywhere.
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
        }
        // What may be read is read: the status says whether a reset is due.
        code = code.load(window + STATUS);
    }
    let victim = boot(&read_the_disk(code).halt().kernel());
    victim.wait_for_console(1);
    assert_eq!(victim.end(), [0x5a]);
}

#[test]
fn a_flood_of_notifications_and_a_ring_that_is_always_full_starve_nobody() {
    // 64 KiB of randomness for each of eight chains, again and again without waiting for any.
    let ring = rings(RNG, 0);
    let mut code = start(Code::new(), RNG, 1);
    for index in 0..SIZE {
        code = descriptor(code, ring, index, (BUFFERS + 0x1_0000 * (index + 1), 0x1_0000, 2, 0));
    }
    for pair in 0..SIZE / 2 {
        code = code.store(ring + 0x104 + 4 * pair, ((2 * pair + 1) << 16) | (2 * pair));
    }
    let again = code.here();
    for _ in 0..50 {
        // The available index is always eight ahead of the used one:
        // mov ax, [used index]; add ax, 8; mov [available index], ax
        code = code.raw(&[0x66, 0xa1]).raw(&(ring + 0x202).to_le_bytes()).raw(&[0x66, 0x83, 0xc0, 8]);
        code = code.raw(&[0x66, 0xa3]).raw(&(ring + 0x102).to_le_bytes());
        code = code.store(RNG + NOTIFY, 0);
        for (window, queues) in DEVICES {
            for queue in 0..queues {
                code = code.store(window + NOTIFY, queue);
            }
        }
    }
    let code = read_the_disk(code).jump(again);
    let victim = boot(&code.kernel());
    let stats = victim.wait_for_console(5);
    assert!(stats.devices["rng"].notifications > 0 && stats.exits["mmio_write"] > 0, "{stats:?}");
    let console = victim.end();
    assert!(console.iter().all(|byte| *byte == 0x5a), "{console:?}");
}

#[test]
fn a_balloon_that_is_told_nonsense() {
    let mut random = Random(11);
    let mut code = Code::new();
    for round in 0..60 {
        code = start(code, BALLOON, 4);
        for queue in 0..4 {
            let ring = rings(BALLOON, queue);
            // Page numbers behind all memory, of no memory, of many pages that the guest has, of the ring itself.
            let list = BUFFERS + 0x1000 * queue;
            for word in 0..64 {
                let number = match (random.below(4), round % 2) {
                    (0, _) => random.any(),
                    (1, 1) => ring >> 12,
                    _ => (BUFFERS >> 12) + 64 + random.below(256),
                };
                code = code.store(list + 4 * word, number);
            }
            let length = if random.below(3) == 0 { random.below(256) } else { 256 };
            let flags = if random.below(4) == 0 { 2 } else { 0 };
            code = descriptor(code, ring, 0, (list, length, flags, 0));
            let report = BUFFERS + 0x10_0000 + random.below(0x1_0000);
            code = descriptor(code, ring, 1, (report, random.below(0x4_0000), 2, 0));
            let head = u32::from(queue == 3);
            code = code.store(ring + 0x104, head).store(ring + 0x100, 1 << 16).store(BALLOON + NOTIFY, queue);
        }
    }
    let victim = boot(&read_the_disk(code).halt().kernel());
    for mib in [1, 63, 0, 32] {
        victim.vmm.done(&Request::SetBalloon { mib }, &[]);
    }
    let stats = victim.wait_for_console(1);
    assert!(stats.balloon.unwrap().target_mib == 32);
    assert_eq!(victim.end(), [0x5a]);
}

#[test]
fn a_flood_of_ports_fills_no_disk_and_no_memory() {
    let mut random = Random(13);
    let mut code = Code::new().print_memory(BUFFERS, 2 * u32::try_from(LOG).unwrap());
    for _ in 0..4000 {
        let port = match random.below(3) {
            0 => u16::try_from(random.below(0x1_0000)).unwrap(),
            1 => 0x3f8 + u16::try_from(random.below(8)).unwrap(),
            _ => I8042,
        };
        let value = u8::try_from(random.below(256)).unwrap();
        // Two writes end a VM in good order, and are not made here.
        if (port, value) != (I8042, 0xfe) && port != 0x600 && port != 0x5ff && port != 0x5fd {
            code = code.out(port, value).read_port(port);
        }
    }
    let victim = boot(&read_the_disk(code).halt().kernel());
    let stats = victim.wait_for_console(2 * LOG + 1);
    assert!(stats.exits["port_write"] > 4000, "{stats:?}");
    let console = victim.end();
    let length = u64::try_from(console.len()).unwrap();
    assert!((LOG..LOG + 1000).contains(&length), "{length}");
}

#[test]
fn a_storm_of_resets() {
    let mut code = Code::new();
    let again = code.here();
    for _ in 0..5 {
        for (window, queues) in DEVICES {
            code = start(code, window, queues);
            for queue in 0..queues {
                code = code.store(window + NOTIFY, queue);
            }
        }
    }
    let victim = boot(&read_the_disk(code).jump(again).kernel());
    let stats = victim.wait_for_console(40);
    assert!(stats.exits["mmio_write"] > 10_000, "{stats:?}");
    let console = victim.end();
    assert!(console.iter().all(|byte| *byte == 0x5a), "{console:?}");
}

#[test]
fn triple_faults_one_after_the_other_in_the_middle_of_requests() {
    for _ in 0..10 {
        let code = disk_request(start(Code::new(), BLK, 1)).store(rings(BLK, 0) + 0x100, 1 << 16);
        let kernel = Elf::new(code.store(BLK + NOTIFY, 0).triple_fault().bytes()).build();
        let victim = boot(&kernel);
        let (reason, _, status) = victim.vmm.end();
        assert_eq!((reason, status), (ExitReason::TripleFault { vcpu: 0 }, 4));
    }
}
