//! Devices that come and go while the guest runs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::fs;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hull_protocol::fs::BrokerChannel;
use hull_protocol::vmm::{
    DiskAccess, DiskConfig, DiskDiscard, DiskExtent, ExitReason, FailureCode, FsCache, FsConfig, Message,
    NetworkBackend, NetworkConfig, NetworkLimits, RateLimits, Request, TokenBucket, Unplug,
};
use support::guest::Code;
use support::shim::{Vmm, file, machine};
use support::tap::tap;

use FailureCode::{InvalidRequest, NotFound, Resources, WrongState};

/// The window of the slot after that of the entropy device.
const WINDOW: u32 = 0xd000_1000;
const DESCRIPTORS: u32 = 0x20_0000;
const AVAILABLE: u32 = 0x20_1000;
const USED: u32 = 0x20_2000;
const HEADER: u32 = 0x20_3000;
const STATUS: u32 = 0x20_3010;
const DATA: u32 = 0x20_4000;

fn disk(serial: &str) -> Request {
    let extents = vec![DiskExtent { offset: 0, length: 4096 }];
    Request::AddDisk(DiskConfig {
        serial: serial.into(),
        access: DiskAccess::ReadOnly,
        extents,
        discard: DiskDiscard::Off,
        limits: RateLimits::default(),
    })
}

fn plug(vmm: &Vmm, serial: &str, content: u8) -> Message {
    let file = file(&[content; 4096]);
    vmm.ask(&disk(serial), &[file.as_fd()])
}

fn unplug(serial: &str, how: Unplug) -> Request {
    Request::Unplug { name: format!("blk-{serial}"), how }
}

/// A VM with an entropy device in slot 0.
fn boot(code: &Code) -> Vmm {
    let vmm = Vmm::greeted();
    vmm.describe(machine(1), &code.kernel(), b"initramfs");
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::Boot, &[]);
    vmm
}

/// Waits until the guest has printed so many bytes.
fn wait_for_console(vmm: &Vmm, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let stats = vmm.stats();
        if stats.console_bytes >= bytes {
            return;
        }
        assert!(Instant::now() < deadline, "the guest has not printed {bytes} bytes: {stats:?}");
    }
}

/// Waits for a disk in the slot, brings it up and reads its first sector to [`DATA`], three times (virtio 1.3 §3.1.1, §5.2.6).
fn read_the_disk(mut code: Code) -> Code {
    code = code.wait_for(WINDOW + 8);
    for (address, value) in [(AVAILABLE, 0), (USED, 0), (DATA, 0)] {
        code = code.store(address, value);
    }
    let registers = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11)];
    let queue =
        [(0x30, 0), (0x38, 8), (0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED), (0x44, 1), (0x70, 15)];
    for (offset, value) in registers.into_iter().chain(queue) {
        code = code.store(WINDOW + offset, value);
    }
    // The header says: read sector 0. The head of the chain is always descriptor 0.
    let chain = [(HEADER, 16, 1_u32 << 16 | 1), (DATA, 512, 2 << 16 | 3), (STATUS, 1, 2)];
    for (index, (address, length, flags)) in (0_u32..).zip(chain) {
        let at = DESCRIPTORS + 16 * index;
        code = code.store(at, address).store(at + 8, length).store(at + 12, flags);
    }
    for request in 1_u32..=3 {
        code = code.store(AVAILABLE, request << 16).store(WINDOW + 0x50, 0);
        // cmp word [USED + 2], request; jne back
        let compare =
            [&[0x66, 0x83, 0x3d][..], &(USED + 2).to_le_bytes(), &[request.to_le_bytes()[0], 0x75, 0xf6]];
        code = code.raw(&compare.concat());
    }
    code
}

fn rss_kib(vmm: &Vmm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(vmm: &Vmm) -> usize {
    fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap().count()
}

#[test]
fn a_disk_comes_and_goes_a_thousand_times() {
    const ROUNDS: u64 = 1000;
    let start = Code::new().here();
    // The driver lets go, then tells the first byte, then waits until the disk has gone, and says so.
    let code = read_the_disk(Code::new()).store(WINDOW + 0x70, 0).load(DATA).print_al();
    let vmm = boot(&code.wait_for_zero(WINDOW + 8).print_al().jump(start));
    let mut at_first = None;
    for round in 1..=ROUNDS {
        let content = u8::try_from(round % 256).unwrap();
        assert_eq!(plug(&vmm, "a", content), Message::Plugged { slot: 1 });
        wait_for_console(&vmm, 2 * round - 1);
        vmm.done(&unplug("a", Unplug::Released), &[]);
        wait_for_console(&vmm, 2 * round);
        if round == 100 {
            at_first = Some((descriptors(&vmm), rss_kib(&vmm)));
        }
    }
    let (files, memory) = at_first.unwrap();
    assert_eq!(descriptors(&vmm), files);
    assert!(rss_kib(&vmm) <= memory + 128, "{} KiB have become {}", memory, rss_kib(&vmm));
    vmm.done(&Request::Stop, &[]);
    let expected: Vec<u8> = (1..=ROUNDS).flat_map(|round| [u8::try_from(round % 256).unwrap(), 0]).collect();
    assert_eq!(vmm.end().1, expected);
}

#[test]
fn a_network_comes_and_goes() {
    // Device id, and the first four bytes of the address in the configuration space.
    let code = Code::new().wait_for(WINDOW + 8).load(WINDOW + 8).print_eax().load(WINDOW + 0x100).print_eax();
    let vmm = boot(&code.halt());
    // Answered by the event loop, which has its descriptors by then.
    vmm.stats();
    let files = descriptors(&vmm);
    let bucket = TokenBucket { size: NonZeroU64::MIN, refill_ms: NonZeroU32::MIN, one_time_burst: 0 };
    let limits = RateLimits { bandwidth: Some(bucket), operations: None };
    let limits = NetworkLimits { to_guest: limits, from_guest: limits };
    let mac = [2, 3, 4, 5, 6, 7];
    let backend = NetworkBackend::Userspace;
    let network = Request::AddNetwork(NetworkConfig { name: "eth0".into(), mac, mtu: 1500, limits, backend });
    let unplug = Request::Unplug { name: "net-eth0".into(), how: Unplug::Released };
    for _ in 0..20 {
        assert_eq!(vmm.ask(&network, &[tap().as_fd()]), Message::Plugged { slot: 1 });
        wait_for_console(&vmm, 8);
        vmm.done(&unplug, &[]);
    }
    assert_eq!(descriptors(&vmm), files);
    vmm.refused(&network, &[file(b"").as_fd()], InvalidRequest);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().1, [1, 0, 0, 0, 2, 3, 4, 5]);
}

#[test]
fn a_file_system_comes_and_goes() {
    // Device id, and the first four bytes of the tag.
    let code = Code::new().wait_for(WINDOW + 8).load(WINDOW + 8).print_eax().load(WINDOW + 0x100).print_eax();
    let vmm = boot(&code.halt());
    vmm.stats();
    let files = descriptors(&vmm);
    let fs = Request::AddFs(FsConfig { tag: "volumes".into(), cache: FsCache::Auto });
    let unplug = Request::Unplug { name: "fs-volumes".into(), how: Unplug::Released };
    let broker = || OwnedFd::from(BrokerChannel::pair().unwrap().0);
    for _ in 0..100 {
        assert_eq!(vmm.ask(&fs, &[broker().as_fd()]), Message::Plugged { slot: 1 });
        wait_for_console(&vmm, 8);
        let message = vmm.refused(&fs, &[broker().as_fd()], WrongState);
        assert!(message.contains("one file system device"), "{message}");
        vmm.done(&unplug, &[]);
    }
    assert_eq!(descriptors(&vmm), files);
    vmm.refused(&fs, &[file(b"").as_fd()], InvalidRequest);
    vmm.refused(&fs, &[], InvalidRequest);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().1, b"\x1a\0\0\0volu");
}

#[test]
fn a_disk_in_use_is_taken_only_by_force() {
    // The driver holds on; the disk vanishes under it, and its next request reaches nobody.
    let code = read_the_disk(Code::new()).load(DATA).print_al().wait_for_zero(WINDOW + 8);
    let code = code.store(WINDOW + 0x50, 0).load(WINDOW).print_eax().load(WINDOW + 0x70).print_eax().halt();
    let vmm = boot(&code);
    plug(&vmm, "a", b'A');
    wait_for_console(&vmm, 1);
    let message = vmm.refused(&unplug("a", Unplug::Released), &[], WrongState);
    assert!(message.contains("still holds blk-a"), "{message}");
    vmm.done(&unplug("a", Unplug::Forced), &[]);
    wait_for_console(&vmm, 9);
    assert!(!vmm.stats().devices.contains_key("blk-a"));
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().1, b"Avirt\0\0\0\0");
}

#[test]
fn a_full_table_has_room_again_after_an_unplug() {
    let vmm = boot(&Code::new().halt());
    for slot in 1..32 {
        assert_eq!(plug(&vmm, &format!("disk{slot}"), 0), Message::Plugged { slot });
    }
    let content = file(&[0; 4096]);
    let message = vmm.refused(&disk("more"), &[content.as_fd()], Resources);
    assert!(message.contains("at most 32 devices"), "{message}");
    vmm.done(&unplug("disk17", Unplug::Released), &[]);
    vmm.done(&unplug("disk3", Unplug::Released), &[]);
    assert_eq!(plug(&vmm, "more", 0), Message::Plugged { slot: 3 });
    assert_eq!(plug(&vmm, "disk3", 0), Message::Plugged { slot: 17 });
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn what_cannot_be_plugged_or_unplugged_is_refused() {
    let vmm = boot(&Code::new().halt());
    let content = file(&[0; 4096]);
    let fds: &[BorrowedFd<'_>] = &[content.as_fd()];
    for how in [Unplug::Released, Unplug::Forced] {
        let message = vmm.refused(&unplug("a", how), &[], NotFound);
        assert!(message.contains("no device blk-a"), "{message}");
    }
    plug(&vmm, "a", 0);
    vmm.refused(&disk("a"), fds, WrongState);
    vmm.refused(&disk("b"), &[], InvalidRequest);
    vmm.refused(&disk("name longer than twenty"), fds, InvalidRequest);
    vmm.refused(&unplug("a", Unplug::Released), fds, InvalidRequest);
    vmm.refused(&Request::AddEntropy, &[], WrongState);
    vmm.done(&unplug("a", Unplug::Released), &[]);
    vmm.refused(&unplug("a", Unplug::Released), &[], NotFound);
    // Before there is a guest nothing is plugged.
    let vmm = Vmm::greeted();
    vmm.refused(&unplug("a", Unplug::Released), &[], WrongState);
}
