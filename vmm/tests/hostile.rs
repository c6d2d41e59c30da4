//! Guests that do their worst with devices and ports. The monitor must live, answer its control socket in time, serve its
//! other devices meanwhile, and hold no more memory than before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use hull_protocol::vmm::{Channel, DiskAccess, ExitReason, MachineConfig, PmemConfig, Request, VsockConfig};
use support::attacks::{bad_chains, random_accesses, reprogram};
use support::driver::{
    BLK, BUFFERS, NOTIFY, SIZE, STATUS, descriptor, disk_request, offer_again, read_the_disk, rings, start,
};
use support::guest::{Code, Elf, I8042};
use support::random::Random;
use support::shim::{Vmm, file, machine};
use support::victim::{Victim, disk};

/// Windows of the devices, in the order in which [`boot`] adds them, after the disk.
const VSOCK: u32 = 0xd000_1000;
const RNG: u32 = 0xd000_2000;
const BALLOON: u32 = 0xd000_3000;
const MEM: u32 = 0xd000_4000;
const PMEM: u32 = 0xd000_5000;
const DEVICES: [(u32, u32); 6] = [(BLK, 1), (VSOCK, 3), (RNG, 1), (BALLOON, 4), (MEM, 1), (PMEM, 1)];

/// What the console's log takes, in bytes.
const LOG: u64 = 64 << 10;

/// A VM with a device of each kind that needs no privilege; [net and fs](hostile_net_fs.rs) have a file of their own.
fn boot(kernel: &[u8]) -> Victim {
    let vmm = Vmm::greeted();
    vmm.describe(MachineConfig { console_limit_bytes: LOG, ..machine(1) }, kernel, b"initramfs");
    disk(&vmm);
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
    Victim::new(vmm, (folder, ours))
}

#[test]
fn random_registers_in_random_order() {
    for seed in 1..=3 {
        let code = random_accesses(&mut Random(seed), &DEVICES, 6000, Code::new());
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
        code = reprogram(&mut random, BLK, code);
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
            code = bad_chains(&mut random, (window, queues), round, code);
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
        code = offer_again(code, RNG, 0, 8);
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
