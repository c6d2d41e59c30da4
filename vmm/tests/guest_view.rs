//! What a guest finds: boot information, ports, memory that is not there, devices. And what its monitor is like from
//! outside while it runs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::fs;
use std::os::fd::AsFd;

use hull_protocol::vmm::{
    CpuTemplate, DeviceStats, ExitReason, FailureCode, MachineConfig, Message, Request, STATS_VERSION,
};
use support::guest::{CONSOLE, Code};
use support::shim::{Vmm, file, kvm, machine};

fn console_of(vmm: Vmm) -> Vec<u8> {
    let (reason, console, _) = vmm.end();
    assert_eq!(reason, ExitReason::Shutdown);
    console
}

fn output(config: MachineConfig, code: &Code) -> Vec<u8> {
    console_of(Vmm::boot(config, &code.kernel()))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Takes `length` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

/// The words that announce all slots.
fn slots() -> Vec<String> {
    let lines = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 9, 10, 11, 12, 14, 15];
    let lines = lines.into_iter().cycle().take(32).enumerate();
    lines.map(|(slot, line)| format!("virtio_mmio.device=4K@0xd00{slot:02x}000:{line}")).collect()
}

#[test]
fn boot_information_follows_the_pvh_protocol() {
    const MIB: u64 = 1 << 20;
    // mov esi, ebx; mov ecx, 56
    let code = Code::new().raw(&[0x89, 0xde, 0xb9, 56, 0, 0, 0]).print_esi();
    // mov esi, [ebx + 16]; mov ecx, 32: the module list
    let code = code.raw(&[0x8b, 0x73, 16, 0xb9, 32, 0, 0, 0]).print_esi();
    // mov edi, [ebx + 16]; mov esi, [edi]; mov ecx, [edi + 8]: the initramfs
    let code = code.raw(&[0x8b, 0x7b, 16, 0x8b, 0x37, 0x8b, 0x4f, 8]).print_esi();
    // mov esi, [ebx + 40]; imul ecx, [ebx + 48], 24: the memory map
    let code = code.raw(&[0x8b, 0x73, 40, 0x6b, 0x4b, 48, 24]).print_esi();
    // mov esi, [ebx + 24]; mov ecx, 2048: the command line
    let code = code.raw(&[0x8b, 0x73, 24, 0xb9, 0, 8, 0, 0]).print_esi();
    let kernel = code.print_memory(0x9_fc00, 1024).shut_down().kernel();

    // 3.5 GiB reaches around the gap; memory that is never touched costs nothing.
    for memory_mib in [64, 3072, 3584] {
        let vmm = Vmm::greeted();
        let config = MachineConfig { memory_mib, kernel_args: "quiet last=word".into(), ..machine(3) };
        vmm.describe(config, &kernel, b"this is the initramfs");
        vmm.done(&Request::AddEntropy, &[]);
        vmm.done(&Request::Boot, &[]);
        let console = console_of(vmm);
        let mut rest = &console[..];

        let start_info = take(&mut rest, 56);
        assert_eq!((u32_at(start_info, 0), u32_at(start_info, 4)), (0x336e_c578, 1));
        assert_eq!((u32_at(start_info, 12), u64_at(start_info, 32)), (1, 0), "one module, no ACPI");
        let module = take(&mut rest, 32);
        let ram_end = u64::from(memory_mib) * MIB;
        let low_end = ram_end.min(0xc000_0000);
        assert_eq!((u64_at(module, 0), u64_at(module, 8)), (low_end - 4096, 21));
        assert_eq!(take(&mut rest, 21), b"this is the initramfs");

        let entries = usize::try_from(u32_at(start_info, 48)).unwrap();
        let map: Vec<(u64, u64, u32)> = take(&mut rest, entries * 24)
            .chunks(24)
            .map(|entry| (u64_at(entry, 0), u64_at(entry, 8), u32_at(entry, 16)))
            .collect();
        let mut expected = vec![(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, low_end - MIB, 1)];
        if ram_end > low_end {
            expected.push((1 << 32, ram_end - low_end, 1));
        }
        assert_eq!(map, expected);

        let line = take(&mut rest, 2048).split(|byte| *byte == 0).next().unwrap();
        assert_eq!(
            String::from_utf8_lossy(line),
            format!(
                "console=ttyS0 panic=-1 reboot=k quiet rdinit=/init {} quiet last=word",
                slots().join(" ")
            )
        );
        assert_eq!(rest, {
            let mut table = hull_vmm::boot::mptable::build(3);
            table.resize(1024, 0);
            table
        });
    }
}

#[test]
fn memory_around_the_gap_is_there() {
    // The last word below the gap. What is above 4 GiB is out of reach of 32-bit code.
    let code = Code::new().store(0xbfff_fffc, 0x6b6f_6b6f).load(0xbfff_fffc).print_eax().shut_down();
    assert_eq!(output(MachineConfig { memory_mib: 3584, ..machine(1) }, &code), b"okok");
}

#[test]
fn nothing_reads_as_ones_and_swallows_writes() {
    let code = Code::new().store(0xe000_0000, 0x1234).load(0xe000_0000).print_eax();
    // Behind the last slot.
    let code = code.store(0xd002_0000, 0x1234).load(0xd002_0000).print_eax();
    let code = code.out(0x80, 1).read_port(0xcfc).print_al().shut_down();
    assert_eq!(output(machine(1), &code), [0xff; 9]);
}

#[test]
fn a_device_answers_in_its_window() {
    let code = Code::new().load(0xd000_0000).print_eax().load(0xd000_0008).print_eax();
    let code = code.load(0xd000_1000).print_eax().load(0xd000_1004).print_eax();
    let code = code.load(0xd000_1008).print_eax().load(0xd000_100c).print_eax().shut_down();
    let vmm = Vmm::greeted();
    vmm.describe(machine(1), &code.kernel(), b"initramfs");
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::Boot, &[]);
    // The magic word, the device id of an entropy source, and a placeholder in the next slot.
    assert_eq!(console_of(vmm), b"virt\x04\0\0\0virt\x02\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_device_serves_its_queue() {
    const WINDOW: u32 = 0xd000_0000;
    const DESCRIPTORS: u32 = 0x20_0000;
    const AVAILABLE: u32 = 0x20_1000;
    const USED: u32 = 0x20_2000;
    const BUFFER: u32 = 0x20_3000;
    let set = |code: Code, offset: u32, value: u32| code.store(WINDOW + offset, value);
    // Status: acknowledge, driver; features: VIRTIO_F_VERSION_1 (virtio 1.3 §3.1.1, §4.2.2).
    let mut code = Code::new();
    for (offset, value) in
        [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11)]
    {
        code = set(code, offset, value);
    }
    // Queue 0 of 8 entries, then DRIVER_OK.
    for (offset, value) in
        [(0x30, 0), (0x38, 8), (0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED), (0x44, 1), (0x70, 15)]
    {
        code = set(code, offset, value);
    }
    // One device-writable buffer of 8 bytes, made available, notified.
    let code = code.store(DESCRIPTORS, BUFFER).store(DESCRIPTORS + 8, 8).store(DESCRIPTORS + 12, 2);
    let code = set(code.store(AVAILABLE, 1 << 16), 0x50, 0);
    // The used ring's index, then its element, the buffer and the interrupt status. What is waited for is the index
    // and the half of the element behind it that stays zero: the flags before it come and go.
    let code = code
        .wait_for(USED + 2)
        .print_memory(USED, 12)
        .print_memory(BUFFER, 8)
        .load(WINDOW + 0x60)
        .print_eax();

    let vmm = Vmm::greeted();
    vmm.describe(machine(1), &code.out(0x80, 0).halt().kernel(), b"initramfs");
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::Boot, &[]);
    let stats = loop {
        let stats = vmm.stats();
        if stats.console_bytes == 24 {
            break stats;
        }
    };
    let rng = DeviceStats { notifications: 1, interrupts: 1, bytes_to_guest: 8, ..DeviceStats::default() };
    assert_eq!((stats.version, stats.devices["rng"], stats.ram_bytes), (STATS_VERSION, rng, 64 << 20));
    // KVM took the notification itself: of 16 register writes 15 came to the monitor.
    assert_eq!(stats.exits["mmio_write"], 15);
    vmm.done(&Request::Stop, &[]);
    let (_, console, _) = vmm.end();
    // The ring's flags say whether the device wants to be notified just then, which nobody knows.
    assert_eq!(console[2..12], [1_u32 << 16, 0, 8].map(u32::to_le_bytes).concat()[2..]);
    assert_ne!(console[12..20], [0; 8]);
    assert_eq!(console[20..], [1, 0, 0, 0]);
}

#[test]
fn the_console_is_bounded() {
    let code = Code::new().print("0123456789").print("ABC\n").print("more\n").shut_down();
    let console = output(MachineConfig { console_limit_bytes: 12, ..machine(1) }, &code);
    let console = String::from_utf8(console).unwrap();
    assert_eq!(
        console,
        "0123456789AB\n[hull: the console's limit of 12 bytes is reached; the rest is dropped]\n"
    );
}

#[test]
fn counters_count() {
    // Six bytes one by one; the last store to nowhere is awaited by its counter.
    let code =
        Code::new().print("").out(CONSOLE, b'a').out(CONSOLE, b'b').out(CONSOLE, b'\n').load(0xe000_0000);
    let vmm = Vmm::boot(machine(2), &code.store(0xe000_0000, 1).halt().kernel());
    let stats = loop {
        let stats = vmm.stats();
        if stats.exits["mmio_write"] == 1 {
            break stats;
        }
    };
    assert_eq!((stats.exits["port_write"], stats.exits["mmio_read"]), (3, 1));
    assert_eq!(stats.console_bytes, 3);
    assert!(stats.start_to_first_entry_us > 0);
    // What KVM itself counts is bounded by nothing: none where it is too old, and where it emulates instructions, one exit of
    // the processor can be several of ours.
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

/// What the monitor's descriptors are, without those that have no path.
fn open_files(vmm: &Vmm) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap();
    let targets =
        descriptors.map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_str().unwrap().to_owned());
    let mut targets: Vec<String> = targets.filter(|target| !target.starts_with("anon_inode:")).collect();
    targets.sort();
    targets
}

#[test]
fn no_path_is_opened() {
    let vmm = Vmm::greeted();
    let inherited = open_files(&vmm);
    vmm.describe(machine(2), &Code::new().halt().kernel(), b"initramfs");
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::Boot, &[]);
    // Of what was passed only the console's nameless file stays open.
    let mut new = open_files(&vmm);
    new.retain(|target| !inherited.contains(target));
    assert!(matches!(&new[..], [log] if log.ends_with(" (deleted)")), "{new:?}");
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn the_monitor_itself_is_small() {
    let vmm = Vmm::boot(machine(2), &Code::new().halt().kernel());
    vmm.stats();
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (mut in_guest_memory, mut kib) = (false, 0_u64);
    for line in smaps.lines() {
        let field = |name: &str| {
            line.strip_prefix(name).map(|rest| rest.trim().trim_end_matches(" kB").parse().unwrap())
        };
        if let Some(size) = field("Size:") {
            in_guest_memory = size == 64 * 1024_u64;
        } else if let Some(private) = field("Private_Dirty:").or(field("Private_Clean:")) {
            kib += if in_guest_memory { 0 } else { private };
        }
    }
    println!("private memory besides guest RAM: {kib} KiB");
    assert!(kib > 0 && kib <= 4096, "{kib} KiB");
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

#[test]
fn registers_out_of_reach_fault_and_do_not_exit() {
    // The time stamp counter, EFER.
    let allowed = Code::new().read_msr(0x10).read_msr(0xc000_0080).print("read").shut_down();
    assert_eq!(output(machine(1), &allowed), b"read");
    // An energy meter, which KVM would read as zero; Hyper-V's; one that nobody knows. Without an interrupt table the
    // fault is a triple one.
    for register in [0x606, 0x4000_0000, 0xdead_beef] {
        for code in [Code::new().print("x").read_msr(register), Code::new().print("x").clear_msr(register)] {
            let (reason, console, _) = Vmm::boot(machine(1), &code.print("y").shut_down().kernel()).end();
            assert_eq!(
                (reason, &console[..]),
                (ExitReason::TripleFault { vcpu: 0 }, &b"x"[..]),
                "{register:#x}"
            );
        }
    }
}

/// Leaf 7: `mov eax, 7; xor ecx, ecx; cpuid`, then EBX.
fn print_leaf_seven(code: Code) -> Code {
    code.raw(&[0xb8, 7, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2, 0x89, 0xd8]).print_eax()
}

#[test]
fn a_cpu_template_hides_what_is_newer() {
    let kernel = print_leaf_seven(Code::new()).shut_down().kernel();
    let seen = |cpu| {
        let vmm = Vmm::with_machine(MachineConfig { cpu, ..machine(2) }, &kernel);
        match vmm.ask(&Request::Boot, &[]) {
            Message::Done => {}
            Message::Failed(failure) => {
                assert_eq!(failure.code, FailureCode::Kvm);
                assert!(failure.message.contains("it lacks "), "{}", failure.message);
                return None;
            }
            other => panic!("{other:?}"),
        }
        let console = vmm.end().1;
        Some(u32::from_le_bytes(console.try_into().unwrap()))
    };
    let host = seen(CpuTemplate::Host).unwrap();
    // Level 2 has nothing in this leaf. A host of fewer features than a template's, which there are, refuses by name.
    if let Some(features) = seen(CpuTemplate::V2) {
        assert_eq!(features, 0);
    }
    if let Some(features) = seen(CpuTemplate::V3) {
        assert_eq!(features & host, 0x1a9);
    }
}

#[test]
fn vcpus_that_are_not_started_are_named_to_the_kernel() {
    let config = MachineConfig { online_vcpus: Some(2), ..machine(4) };
    // mov esi, [ebx + 24]; mov ecx, 2048: the command line
    let code = Code::new().raw(&[0x8b, 0x73, 24, 0xb9, 0, 8, 0, 0]).print_esi();
    let line = String::from_utf8(output(config, &code.shut_down())).unwrap();
    assert!(line.contains(" maxcpus=2"), "{line}");
    let vmm = Vmm::greeted();
    for online in [0, 5] {
        let config = MachineConfig { online_vcpus: Some(online), ..machine(4) };
        let fds = [kvm(), file(b""), file(b""), file(b"")];
        let fds = fds.each_ref().map(AsFd::as_fd);
        vmm.refused(&Request::Machine(config), &fds, FailureCode::InvalidRequest);
    }
}
