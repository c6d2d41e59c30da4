//! What the control socket accepts and what it refuses, with an answer that helps.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::os::fd::AsFd;
use std::process::Command;

use hull_protocol::vmm::{
    DiskAccess, DiskConfig, DiskDiscard, DiskExtent, ExitReason, FailureCode, JailConfig, MachineConfig,
    Message, RateLimits, Request, VERSION, VsockConfig,
};
use support::guest::{Code, ENTRY, Elf};
use support::shim::{Vmm, file, kvm, machine};

use FailureCode::{InvalidRequest, Kernel, Kvm, Resources, WrongState};

fn disk(serial: &str) -> Request {
    let extents = vec![DiskExtent { offset: 0, length: 4096 }];
    Request::AddDisk(DiskConfig {
        serial: serial.into(),
        access: DiskAccess::ReadOnly,
        extents,
        discard: DiskDiscard::On,
        limits: RateLimits::default(),
    })
}

/// That the monitor still does what it is told, from the description on.
fn still_works(vmm: Vmm) {
    vmm.describe(machine(1), &Code::new().shut_down().kernel(), b"initramfs");
    vmm.done(&Request::Boot, &[]);
    assert_eq!(vmm.end().0, ExitReason::Shutdown);
}

#[test]
fn nothing_before_hello() {
    let vmm = Vmm::spawn();
    let jail = Request::Jail(JailConfig::Unprivileged);
    for request in
        [jail, Request::Machine(machine(1)), disk("a"), Request::AddEntropy, Request::Boot, Request::Stats]
    {
        vmm.refused(&request, &[], WrongState);
    }
    let message = vmm.refused(&Request::Hello { version: VERSION + 1 }, &[], InvalidRequest);
    assert!(message.contains("speaks version 1"), "{message}");
    vmm.done(&Request::Hello { version: VERSION }, &[]);
    vmm.refused(&Request::Hello { version: VERSION }, &[], WrongState);
    // Nor before the jail.
    for request in [Request::Machine(machine(1)), disk("a"), Request::AddEntropy, Request::Boot] {
        let message = vmm.refused(&request, &[], WrongState);
        assert_eq!(message, "close the jail first");
    }
    let jail = Request::Jail(vmm.jail());
    vmm.refused(&jail, &[file(b"x").as_fd()], InvalidRequest);
    vmm.done(&jail, &[]);
    vmm.refused(&jail, &[], WrongState);
    still_works(vmm);
}

#[test]
fn what_is_not_a_request_is_answered() {
    let vmm = Vmm::greeted();
    let Message::Failed(failure) = vmm.ask_nonsense() else { panic!() };
    assert_eq!(failure.code, InvalidRequest);
    still_works(vmm);
}

#[test]
fn a_machine_needs_its_descriptors() {
    let vmm = Vmm::greeted();
    let (kvm, other) = (kvm(), file(b"x"));
    let (kvm, other) = (kvm.as_fd(), other.as_fd());
    let request = Request::Machine(machine(1));
    for fds in [&[][..], &[kvm], &[kvm, other, other], &[kvm, other, other, other, other]] {
        let message = vmm.refused(&request, fds, InvalidRequest);
        assert!(
            message.contains("4 file descriptors") && message.contains(&format!("came with {}", fds.len()))
        );
    }
    let message = vmm.refused(&request, &[other, other, other, other], Kvm);
    assert!(message.contains("not /dev/kvm"), "{message}");
    still_works(vmm);
}

#[test]
fn a_machine_has_limits() {
    let vmm = Vmm::greeted();
    let (kvm, other) = (kvm(), file(b"x"));
    let fds = [kvm.as_fd(), other.as_fd(), other.as_fd(), other.as_fd()];
    for vcpus in [0, 33, 255] {
        let message = vmm.refused(&Request::Machine(machine(vcpus)), &fds, InvalidRequest);
        assert_eq!(message, format!("{vcpus} vCPUs are not between 1 and 32"));
    }
    for memory_mib in [0, 31, (1 << 20) + 1, u32::MAX] {
        let config = MachineConfig { memory_mib, ..machine(1) };
        let message = vmm.refused(&Request::Machine(config), &fds, InvalidRequest);
        assert!(message.starts_with(&format!("{memory_mib} MiB")), "{message}");
    }
    let config = MachineConfig { kernel_args: "a\nb".into(), ..machine(1) };
    vmm.refused(&Request::Machine(config), &fds, InvalidRequest);
    vmm.done(&Request::Machine(machine(1)), &fds);
    vmm.refused(&Request::Machine(machine(1)), &fds, WrongState);
}

#[test]
fn descriptors_where_none_belong_are_refused() {
    let vmm = Vmm::greeted();
    let extra = file(b"x");
    for request in [Request::AddEntropy, Request::Boot, Request::Stop] {
        vmm.refused(&request, &[extra.as_fd()], InvalidRequest);
    }
    vmm.describe(machine(1), &Code::new().halt().kernel(), b"initramfs");
    vmm.done(&Request::Boot, &[]);
    for request in [Request::Stats, Request::Stop] {
        vmm.refused(&request, &[extra.as_fd()], InvalidRequest);
    }
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn devices_are_checked_and_exist_once() {
    let vmm = Vmm::greeted();
    let image = file(&[0; 4096]);
    vmm.refused(&disk("rootfs"), &[], InvalidRequest);
    vmm.refused(&disk("rootfs"), &[image.as_fd(), image.as_fd()], InvalidRequest);
    vmm.done(&disk("rootfs"), &[image.as_fd()]);
    let message = vmm.refused(&disk("rootfs"), &[image.as_fd()], WrongState);
    assert!(message.contains("rootfs"), "{message}");
    vmm.done(&Request::AddEntropy, &[]);
    vmm.refused(&Request::AddEntropy, &[], WrongState);
    vmm.done(&Request::AddBalloon, &[]);
    vmm.refused(&Request::AddBalloon, &[], WrongState);
    vmm.refused(&Request::SetBalloon { mib: 1 }, &[], WrongState);
    let vsock = Request::AddVsock(VsockConfig { guest_cid: 3, guest_to_host_ports: vec![] });
    vmm.refused(&vsock, &[], InvalidRequest);
    for disks in 2.. {
        match vmm.ask(&disk(&format!("disk{disks}")), &[image.as_fd()]) {
            Message::Done => {}
            Message::Failed(failure) => {
                assert_eq!((failure.code, disks), (Resources, 31), "{}", failure.message);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    still_works(vmm);
}

#[test]
fn a_boot_needs_a_machine_and_happens_once() {
    let vmm = Vmm::greeted();
    let message = vmm.refused(&Request::Boot, &[], WrongState);
    assert!(message.contains("no machine"), "{message}");
    vmm.refused(&Request::Stats, &[], WrongState);
    vmm.describe(machine(1), &Code::new().halt().kernel(), b"initramfs");
    vmm.done(&Request::Boot, &[]);
    for request in [Request::Boot, Request::AddEntropy, Request::Hello { version: VERSION }] {
        let message = vmm.refused(&request, &[], WrongState);
        assert_eq!(message, "the VM runs already");
    }
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn a_balloon_is_set_while_the_vm_runs() {
    let kernel = Code::new().halt().kernel();
    let vmm = Vmm::boot(machine(1), &kernel);
    let message = vmm.refused(&Request::SetBalloon { mib: 1 }, &[], WrongState);
    assert!(message.contains("no balloon"), "{message}");
    assert_eq!(vmm.stats().balloon, None);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);

    let vmm = Vmm::greeted();
    let machine = machine(1);
    let memory = machine.memory_mib;
    vmm.describe(machine, &kernel, b"initramfs");
    vmm.done(&Request::AddBalloon, &[]);
    vmm.done(&Request::Boot, &[]);
    for mib in [memory, memory + 1, u32::MAX] {
        vmm.refused(&Request::SetBalloon { mib }, &[], InvalidRequest);
    }
    vmm.done(&Request::SetBalloon { mib: memory - 1 }, &[]);
    assert_eq!(vmm.stats().balloon.unwrap().target_mib, memory - 1);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn memory_to_plug_is_described_before_and_asked_for_while_the_vm_runs() {
    let kernel = Code::new().halt().kernel();
    let vmm = Vmm::greeted();
    vmm.refused(&Request::AddHotplugMemory { mib: 128 }, &[], WrongState);
    vmm.describe(machine(1), &kernel, b"initramfs");
    for mib in [0, 1, 127, 129, 1 << 31] {
        vmm.refused(&Request::AddHotplugMemory { mib }, &[], InvalidRequest);
    }
    vmm.done(&Request::AddHotplugMemory { mib: 1 << 18 }, &[]);
    vmm.refused(&Request::AddHotplugMemory { mib: 128 }, &[], WrongState);
    vmm.refused(&Request::SetHotplugMemory { mib: 1 }, &[], WrongState);
    vmm.done(&Request::Boot, &[]);
    vmm.refused(&Request::SetHotplugMemory { mib: (1 << 18) + 1 }, &[], InvalidRequest);
    vmm.done(&Request::SetHotplugMemory { mib: 3 }, &[]);
    let stats = vmm.stats().hotplug.unwrap();
    assert_eq!((stats.most_bytes, stats.requested_bytes, stats.plugged_bytes), (1 << 38, 4 << 20, 0));
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);

    // Its device may come later: there is no trace of it before.
    let vmm = Vmm::greeted();
    vmm.describe(machine(1), &kernel, b"initramfs");
    vmm.done(&Request::ReserveHotplugMemory { mib: 256 }, &[]);
    vmm.refused(&Request::AddHotplugMemory { mib: 128 }, &[], WrongState);
    vmm.refused(&Request::PlugHotplugMemory, &[], WrongState);
    vmm.done(&Request::Boot, &[]);
    assert!(!vmm.stats().devices.contains_key("mem"));
    assert_eq!(vmm.ask(&Request::PlugHotplugMemory, &[]), Message::Plugged { slot: 0 });
    assert!(vmm.stats().devices.contains_key("mem"));
    vmm.refused(&Request::PlugHotplugMemory, &[], WrongState);
    vmm.refused(&Request::SetHotplugMemory { mib: 257 }, &[], InvalidRequest);
    vmm.done(&Request::SetHotplugMemory { mib: 256 }, &[]);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);

    let vmm = Vmm::boot(machine(1), &kernel);
    vmm.refused(&Request::SetHotplugMemory { mib: 1 }, &[], WrongState);
    vmm.refused(&Request::PlugHotplugMemory, &[], WrongState);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

/// The message of a boot that fails because of its kernel or initramfs.
fn boot_fails(config: MachineConfig, kernel: &[u8], initramfs: &[u8], code: FailureCode) -> String {
    let vmm = Vmm::greeted();
    vmm.describe(config, kernel, initramfs);
    let message = vmm.refused(&Request::Boot, &[], code);
    // Nothing but Stop is left.
    vmm.refused(&Request::Boot, &[], WrongState);
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
    message
}

#[test]
fn bad_kernels_are_named() {
    let code = Code::new().shut_down();
    let good = code.kernel();
    let kernel_fails = |kernel: &[u8]| boot_fails(machine(1), kernel, b"initramfs", Kernel);

    for bad in
        [&b""[..], b"\x7fELF", b"#!/bin/sh\necho this is no kernel, but it is long enough for a header\n"]
    {
        let message = kernel_fails(bad);
        assert!(message.contains("must be an x86-64 ELF vmlinux"), "{message}");
    }
    for length in [60, 100, good.len() / 2, good.len() - 21] {
        kernel_fails(&good[..length]);
    }
    let message = kernel_fails(&Elf::new(code.bytes()).pvh_entry(None).build());
    assert!(message.contains("CONFIG_PVH"), "{message}");
    for entry in [0, 0xf_ffff, ENTRY + 0x1000, u32::MAX] {
        let message = kernel_fails(&Elf::new(code.bytes()).pvh_entry(Some(entry)).build());
        assert!(message.contains("does not fit"), "{message}");
    }
    kernel_fails(&Elf::new(code.bytes()).bss(1 << 30).build());
    kernel_fails(&Elf::new(code.bytes()).bss(u64::MAX).build());
    kernel_fails(&Elf::new(code.bytes()).segment(0x0fff_0000, b"behind all memory").build());
}

#[test]
fn bad_initramfs_files_are_named() {
    let kernel = Code::new().shut_down().kernel();
    let message = boot_fails(machine(1), &kernel, b"", Kernel);
    assert_eq!(message, "the initramfs is empty");
    let large = vec![0; 40 << 20];
    let message = boot_fails(MachineConfig { memory_mib: 32, ..machine(1) }, &kernel, &large, Kernel);
    assert!(message.contains("more memory"), "{message}");
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let config = MachineConfig { kernel_args: "x".repeat(2048), ..machine(1) };
    let message = boot_fails(config, &Code::new().halt().kernel(), b"initramfs", InvalidRequest);
    assert!(message.contains("longer than 2047 bytes"), "{message}");
}

#[test]
fn a_monitor_without_its_socket_says_so() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hull-vmm")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&[]).starts_with("hull-vmm: descriptor 3 must be a SOCK_SEQPACKET socket: "));
    assert!(run(&["--help"]).contains("takes no arguments"));
}
