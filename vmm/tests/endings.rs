//! Every way in which a VM ends, with micro-guests on `/dev/kvm`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use hull_protocol::vmm::{ExitReason, Message, Request};
use support::guest::{Code, Elf, I8042};
use support::shim::{Vmm, machine};

fn run(code: &Code) -> (ExitReason, String, i32) {
    let (reason, console, status) = Vmm::boot(machine(1), &code.kernel()).end();
    (reason, String::from_utf8(console).unwrap(), status)
}

#[test]
fn an_orderly_shutdown() {
    let ended = run(&Code::new().print("good bye\n").shut_down());
    assert_eq!(ended, (ExitReason::Shutdown, "good bye\n".into(), 0));
}

#[test]
fn other_values_at_the_exit_port_mean_nothing() {
    let ended = run(&Code::new().out(0x600, 2).out(0x600, 0).print("still here").shut_down());
    assert_eq!(ended, (ExitReason::Shutdown, "still here".into(), 0));
}

#[test]
fn a_reset_without_a_word() {
    // The controller's status must read as ready, or a kernel would wait.
    let code = Code::new().read_port(I8042).print_al().out(I8042, 0xfe).halt();
    assert_eq!(run(&code), (ExitReason::GuestReset, "\0".into(), 2));
}

#[test]
fn a_reset_after_a_panic() {
    let line = "[    1.000000] Kernel panic - not syncing: test\n";
    let ended = run(&Code::new().print(line).print("after\n").out(I8042, 0xfe).halt());
    let reason = ExitReason::GuestPanic { message: "test".into() };
    assert_eq!(ended, (reason, format!("{line}after\n"), 3));
}

#[test]
fn a_triple_fault() {
    let (reason, console, status) = run(&Code::new().print("x").triple_fault());
    assert_eq!((reason, console.as_str(), status), (ExitReason::TripleFault { vcpu: 0 }, "x", 4));
}

#[test]
fn code_that_is_not_there() {
    // jmp to where no memory is
    let (reason, _, status) = run(&Code::new().raw(&[0xb8, 0, 0, 0, 0xe0, 0xff, 0xe0]));
    let ExitReason::VcpuError { vcpu: 0, detail } = reason else { panic!("{reason:?}") };
    assert!(detail.contains("rip 0xe0000000"), "{detail}");
    assert_eq!(status, 5);
}

#[test]
fn a_guest_that_halts_can_be_stopped() {
    for vcpus in [1, 3] {
        let vmm = Vmm::boot(machine(vcpus), &Code::new().halt().kernel());
        assert_eq!(vmm.ask(&Request::Stop, &[]), Message::Done);
        let (reason, _, status) = vmm.end();
        assert_eq!((reason, status), (ExitReason::Stopped, 0));
    }
}

#[test]
fn a_guest_that_spins_can_be_stopped() {
    // Many times: the kick must not be lost, wherever it meets the vCPU.
    for _ in 0..20 {
        let vmm = Vmm::boot(machine(1), &Code::new().spin().kernel());
        assert_eq!(vmm.ask(&Request::Stop, &[]), Message::Done);
        assert_eq!(vmm.end().0, ExitReason::Stopped);
    }
}

#[test]
fn a_guest_that_exits_without_end_can_be_stopped() {
    // in al, dx; jmp back
    let vmm = Vmm::boot(machine(1), &Code::new().raw(&[0xec, 0xeb, 0xfd]).kernel());
    assert_eq!(vmm.ask(&Request::Stop, &[]), Message::Done);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn a_closed_socket_ends_everything() {
    let vmm = Vmm::boot(machine(2), &Code::new().halt().kernel());
    assert_eq!(vmm.hang_up().code(), Some(0));
    assert_eq!(Vmm::spawn().hang_up().code(), Some(0));
    assert_eq!(Vmm::greeted().hang_up().code(), Some(0));
}

#[test]
fn stop_before_the_boot() {
    for vmm in [Vmm::spawn(), Vmm::greeted(), Vmm::with_machine(machine(1), &Code::new().halt().kernel())] {
        assert_eq!(vmm.ask(&Request::Stop, &[]), Message::Done);
        assert_eq!(vmm.end().0, ExitReason::Stopped);
    }
}

#[test]
fn a_second_processor_can_end_the_vm_and_is_named() {
    // The boot processor sends INIT and start-up to APIC 1, which begins at 0x8000 in real mode.
    const ICR_LOW: u32 = 0xfee0_0300;
    const ICR_HIGH: u32 = 0xfee0_0310;
    let start = Code::new()
        .print("boot ")
        .store(ICR_HIGH, 1 << 24)
        .store(ICR_LOW, 0x4500)
        .store(ICR_HIGH, 1 << 24)
        .store(ICR_LOW, 0x4608)
        .halt();
    // mov dx, 0x3f8; mov al, '2'; out dx, al; mov dx, 0x600; mov al, 1; out dx, al; hlt
    let second = [0xba, 0xf8, 0x03, 0xb0, b'2', 0xee, 0xba, 0x00, 0x06, 0xb0, 0x01, 0xee, 0xf4];
    let kernel = Elf::new(start.bytes()).segment(0x8000, &second).build();
    let (reason, console, _) = Vmm::boot(machine(2), &kernel).end();
    assert_eq!((reason, console), (ExitReason::Shutdown, b"boot 2".to_vec()));

    // lidt [0x8010]; ud2, with zeros at 0x8010
    let mut fault = vec![0x0f, 0x01, 0x1e, 0x10, 0x80, 0x0f, 0x0b];
    fault.resize(32, 0);
    let kernel = Elf::new(start.bytes()).segment(0x8000, &fault).build();
    let (reason, _, _) = Vmm::boot(machine(2), &kernel).end();
    // A KVM that emulates real mode may fail at delivering the exception instead of faulting thrice.
    let by_the_second =
        matches!(reason, ExitReason::TripleFault { vcpu: 1 } | ExitReason::VcpuError { vcpu: 1, .. });
    assert!(by_the_second, "{reason:?}");
}

#[test]
fn nothing_is_left_of_a_vm() {
    let vmm = Vmm::boot(machine(4), &Code::new().halt().kernel());
    let pid = vmm.pid();
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        let mut names: Vec<String> =
            tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap()).collect();
        // Newer kernels add a thread of KVM's own.
        names.retain(|name| !name.starts_with("kvm-"));
        names.sort();
        names.concat()
    };
    // A thread takes its name itself, a moment after it was made. That of the file system is there before there is one.
    let all = "fs\nhull-vmm\nvcpu0\nvcpu1\nvcpu2\nvcpu3\n";
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while threads() != all && std::time::Instant::now() < patience {
        std::thread::yield_now();
    }
    assert_eq!(threads(), all);
    assert_eq!(vmm.hang_up().code(), Some(0));
    assert_eq!(threads(), "");
}
