//! A VM that is held and let go.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{
    DiskAccess, DiskConfig, DiskDiscard, DiskExtent, ExitReason, FailureCode, RateLimits, Request, Unplug,
};
use support::guest::Code;
use support::shim::{Vmm, file, machine};

use FailureCode::WrongState;

/// A guest that counts by writing to a port for ever.
fn counter() -> Code {
    let code = Code::new();
    let start = code.here();
    code.out(0x80, 0).jump(start)
}

fn count(vmm: &Vmm) -> u64 {
    vmm.stats().exits["port_write"]
}

fn wait_for_more(vmm: &Vmm, than: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(vmm) <= than {
        assert!(Instant::now() < deadline, "the guest stands still");
    }
}

#[test]
fn a_counter_stops_and_goes_on() {
    // The second processor waits to be started: it is held and let go too.
    let vmm = Vmm::boot(machine(2), &counter().kernel());
    wait_for_more(&vmm, 0);
    for _ in 0..100 {
        vmm.done(&Request::Pause, &[]);
        let stopped = count(&vmm);
        for _ in 0..20 {
            assert_eq!(count(&vmm), stopped);
        }
        vmm.done(&Request::Resume, &[]);
        wait_for_more(&vmm, stopped);
    }
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn a_guest_without_exits_or_without_work_is_paused_too() {
    for code in [Code::new().spin(), Code::new().halt()] {
        let vmm = Vmm::boot(machine(3), &code.kernel());
        for _ in 0..50 {
            vmm.done(&Request::Pause, &[]);
            vmm.done(&Request::Resume, &[]);
        }
        vmm.done(&Request::Stop, &[]);
        assert_eq!(vmm.end().0, ExitReason::Stopped);
    }
}

#[test]
fn a_paused_vm_can_be_asked_and_ended_but_not_changed() {
    let vmm = Vmm::boot(machine(1), &counter().kernel());
    vmm.refused(&Request::Resume, &[], WrongState);
    vmm.done(&Request::Pause, &[]);
    vmm.refused(&Request::Pause, &[], WrongState);
    let extents = vec![DiskExtent { offset: 0, length: 512 }];
    let disk = DiskConfig {
        serial: "a".into(),
        access: DiskAccess::ReadOnly,
        extents,
        discard: DiskDiscard::Off,
        limits: RateLimits::default(),
    };
    let content = file(&[0; 512]);
    vmm.refused(&Request::AddDisk(disk.clone()), &[content.as_fd()], WrongState);
    let unplug = Request::Unplug { name: "blk-a".into(), how: Unplug::Forced };
    vmm.refused(&unplug, &[], WrongState);
    vmm.done(&Request::Resume, &[]);
    vmm.ask(&Request::AddDisk(disk), &[content.as_fd()]);
    vmm.done(&Request::Pause, &[]);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
    let vmm = Vmm::boot(machine(1), &counter().kernel());
    vmm.done(&Request::Pause, &[]);
    assert_eq!(vmm.hang_up().code(), Some(0));
}

/// What the guest asked of a device while the VM was being paused is done after the pause, not lost.
#[test]
fn a_notification_outlives_a_pause() {
    const WINDOW: u32 = 0xd000_0000;
    const RINGS: u32 = 0x20_0000;
    let mut code = Code::new();
    let registers = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11)];
    let queue =
        [(0x38, 8), (0x80, RINGS), (0x90, RINGS + 0x1000), (0xa0, RINGS + 0x2000), (0x44, 1), (0x70, 15)];
    for (offset, value) in registers.into_iter().chain(queue) {
        code = code.store(WINDOW + offset, value);
    }
    // One buffer of 8 bytes over and over: make it available, notify, wait until it is used, print a letter.
    code = code.store(RINGS, 0x20_3000).store(RINGS + 8, 8).store(RINGS + 12, 2);
    let start = code.here();
    // inc word [available index]; mov dword [notify], 0; mov ax, [available index]; cmp [used index], ax; jne back
    let index = (RINGS + 0x1002).to_le_bytes();
    let used = (RINGS + 0x2002).to_le_bytes();
    code = code.raw(&[&[0x66, 0xff, 0x05][..], &index].concat()).store(WINDOW + 0x50, 0);
    code = code.raw(&[&[0x66, 0xa1][..], &index, &[0x66, 0x39, 0x05], &used, &[0x75, 0xf7]].concat());
    code = code.out(0x80, 0).jump(start);
    let vmm = Vmm::greeted();
    vmm.describe(machine(1), &code.kernel(), b"initramfs");
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::Boot, &[]);
    wait_for_more(&vmm, 0);
    for _ in 0..200 {
        vmm.done(&Request::Pause, &[]);
        let stopped = vmm.stats();
        assert_eq!(vmm.stats(), stopped, "neither processors nor devices move");
        vmm.done(&Request::Resume, &[]);
        wait_for_more(&vmm, stopped.exits["port_write"]);
    }
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}
