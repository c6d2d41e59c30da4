//! Micro-guests on KVM: does code at ring 0 run, how fast, and does it run all that a Linux kernel needs?
//!
//! A `/dev/kvm` that opens and creates VMs is not enough: an emulating or incomplete KVM lets a guest fail, or crawl, in its
//! first instructions. Every guest here gets a VM of its own, 64 KiB of memory and one vCPU; a guest that does not end is
//! stopped by an alarm.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::alarm;

use super::guest::{self, Feature, Register};

/// Guest memory in bytes.
const MEMORY: usize = 0x1_0000;
/// Page tables: one entry each in the first two, one 2 MiB page.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
/// Seconds after which a guest is stopped.
const PATIENCE: u32 = 5;
/// Rounds of the counted loop, two instructions each.
const ROUNDS: u32 = 100_000;
/// Attempts, of which the best counts: a busy host must not look like a slow one.
const ATTEMPTS: u32 = 5;
/// Real CPUs take a third of a nanosecond for an instruction, emulated ones with nested paging a few, an emulating KVM 500.
const NATIVE_LIMIT: Duration = Duration::from_nanos(50);

/// Why a guest did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// An ioctl failed.
    #[error("{what}: {source}")]
    Ioctl {
        /// Which.
        what: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Memory for the guest, or the alarm.
    #[error("cannot set the guest up")]
    SetUp(#[from] nix::Error),
    /// The guest got an exception.
    #[error("{0} faults")]
    Fault(&'static str),
    /// The instruction did something else than it should.
    #[error("{0} gives a wrong result")]
    Wrong(&'static str),
    /// KVM gave up: emulation failure, triple fault, entry failure.
    #[error("{name} ends the VM ({exit})")]
    Ended {
        /// What was tried.
        name: &'static str,
        /// The exit.
        exit: String,
    },
    /// The guest did not end.
    #[error("{0} does not end within {PATIENCE} seconds")]
    Hangs(&'static str),
}

fn ioctl(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Ioctl { what, source }
}

/// How fast a guest's kernel code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    instructions: u32,
    took: Duration,
}

impl Speed {
    /// Whether the CPU runs it, not KVM's emulator.
    pub fn is_native(self) -> bool {
        self.took / self.instructions < NATIVE_LIMIT
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_second = f64::from(self.instructions) / self.took.as_secs_f64().max(1e-9);
        write!(f, "{:.0} million instructions a second", per_second / 1e6)
    }
}

/// Checks that a whole VM can be made and that a trivial guest runs.
pub fn create(kvm: &Kvm) -> Result<(), ProbeError> {
    let vm = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
    vm.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
    Guest::new(kvm)?.run("a guest", &guest::report(guest::GOOD))
}

/// Measures a counted loop.
pub fn speed(kvm: &Kvm) -> Result<Speed, ProbeError> {
    let mut best = Duration::MAX;
    for _ in 0..ATTEMPTS {
        let mut machine = Guest::new(kvm)?;
        // The first entry pays for page faults on the host.
        machine.run("a guest", &guest::report(guest::GOOD))?;
        let code = guest::counted_loop(ROUNDS);
        let start = Instant::now();
        machine.run("a counted loop", &code)?;
        best = best.min(start.elapsed());
    }
    Ok(Speed { instructions: 2 * ROUNDS, took: best })
}

/// Tries each instruction that the CPU claims to have. The names of those that work, or all failures.
pub fn instructions(kvm: &Kvm) -> Result<Vec<&'static str>, Vec<ProbeError>> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| vec![ProbeError::Ioctl { what: "KVM_GET_SUPPORTED_CPUID", source }])?;
    let mut worked = Vec::new();
    let mut failures = Vec::new();
    for trial in guest::trials() {
        if trial.feature.is_some_and(|feature| !has(&cpuid, feature)) {
            continue;
        }
        match Guest::new(kvm).and_then(|mut machine| machine.run(trial.name, &trial.code)) {
            Ok(()) => worked.push(trial.name),
            Err(failure) => failures.push(failure),
        }
    }
    if failures.is_empty() { Ok(worked) } else { Err(failures) }
}

fn has(cpuid: &CpuId, feature: Feature) -> bool {
    let entry = cpuid.as_slice().iter().find(|entry| entry.function == feature.leaf && entry.index == 0);
    entry.is_some_and(|entry| {
        let register = match feature.register {
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
        };
        register >> feature.bit & 1 == 1
    })
}

/// A VM in 64-bit mode. The vCPU and the VM go before the memory that they use: fields are dropped in this order.
struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Memory,
}

impl Guest {
    fn new(kvm: &Kvm) -> Result<Self, ProbeError> {
        let vm = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
        let mut memory = Memory::new()?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.address.as_ptr() as u64,
        };
        // SAFETY: the region is our own mapping of exactly this size, and it outlives the VM (see the struct's field order).
        unsafe { vm.set_user_memory_region(region) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(ioctl("KVM_CREATE_VCPU"))?;
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(ioctl("KVM_SET_CPUID2"))?;
        tables(&mut memory);
        enter_long_mode(&mut vcpu, &cpuid)?;
        Ok(Self { vcpu, _vm: vm, memory })
    }

    /// Runs code until it reports.
    fn run(&mut self, name: &'static str, code: &[u8]) -> Result<(), ProbeError> {
        self.memory.write(guest::CODE, code);
        let regs = kvm_regs { rip: guest::CODE, rsp: guest::STACK, rflags: 2, ..kvm_regs::default() };
        self.vcpu.set_regs(&regs).map_err(ioctl("KVM_SET_REGS"))?;
        let _alarm = Alarm::set()?;
        let ended = |exit: String| Err(ProbeError::Ended { name, exit });
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, [value])) if port == u16::from(guest::PORT) => match *value {
                guest::GOOD => Ok(()),
                guest::FAULT => Err(ProbeError::Fault(name)),
                _ => Err(ProbeError::Wrong(name)),
            },
            Ok(VcpuExit::Shutdown) => ended("triple fault".to_owned()),
            Ok(VcpuExit::InternalError) => ended("KVM cannot emulate it".to_owned()),
            Ok(exit) => ended(format!("{exit:?}")),
            Err(error) if error.errno() == libc::EINTR => Err(ProbeError::Hangs(name)),
            Err(error) => ended(io::Error::from_raw_os_error(error.errno()).to_string()),
        }
    }
}

/// Page tables, segment descriptors, interrupt descriptors and their handlers.
fn tables(memory: &mut Memory) {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    memory.write_words(PML4, &[PDPT | PRESENT_WRITABLE]);
    memory.write_words(PDPT, &[PD | PRESENT_WRITABLE]);
    memory.write_words(PD, &[PRESENT_WRITABLE | LARGE_PAGE]);
    // Null, 64-bit code at 8, data at 16 (Intel SDM vol. 3, 3.4.5).
    memory.write_words(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    for vector in 0..32 {
        let handler = if vector == 3 { guest::BREAKPOINT_HANDLER } else { guest::HANDLER };
        // An interrupt gate into segment 8 (Intel SDM vol. 3, 6.14.1).
        let gate = (handler & 0xffff) | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        memory.write_words(IDT + 16 * vector, &[gate, handler >> 32]);
    }
    memory.write(guest::HANDLER, &guest::report(guest::FAULT));
    memory.write(guest::BREAKPOINT_HANDLER, &guest::breakpoint_handler());
}

fn enter_long_mode(vcpu: &mut VcpuFd, cpuid: &CpuId) -> Result<(), ProbeError> {
    let mut sregs = vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
    let segment = |selector, kind, long| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = segment(8, 0b1011, 1);
    let data = segment(16, 0b0011, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 23);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 16 * 32 - 1);
    sregs.cr3 = PML4;
    sregs.cr0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG, WP, NE, ET, MP, PE
    sregs.cr4 = 1 << 10 | 1 << 9 | 1 << 5; // OSXMMEXCPT, OSFXSR, PAE
    let xsave = Feature { leaf: 1, register: Register::Ecx, bit: 26 };
    if has(cpuid, xsave) {
        sregs.cr4 |= 1 << 18; // OSXSAVE
    }
    sregs.efer = 1 << 10 | 1 << 8; // LMA, LME
    vcpu.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))
}

/// The guest's memory.
struct Memory {
    address: std::ptr::NonNull<libc::c_void>,
}

impl Memory {
    fn new() -> Result<Self, ProbeError> {
        let length = std::num::NonZeroUsize::MIN.saturating_add(MEMORY - 1);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nothing that exists.
        let address = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE)? };
        Ok(Self { address })
    }

    /// Copies bytes to a guest address. Everything written is a constant of this module that fits.
    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap_or(MEMORY);
        assert!(
            at.checked_add(bytes.len()).is_some_and(|end| end <= MEMORY),
            "a micro-guest is larger than its memory"
        );
        // SAFETY: the range was just checked to lie in the mapping, which is ours alone while no vCPU runs (`&mut self`), and
        // `bytes` cannot overlap it.
        unsafe {
            let target = self.address.as_ptr().cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }

    fn write_words(&mut self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(at, &bytes);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping of this size; the VM that used it was dropped before (see `Guest`).
        let unmapped = unsafe { munmap(self.address, MEMORY) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Interrupts `KVM_RUN` by SIGALRM after [`PATIENCE`].
struct Alarm;

extern "C" fn interrupt(_: libc::c_int) {}

impl Alarm {
    fn set() -> Result<Self, ProbeError> {
        // Without SA_RESTART: the ioctl shall return.
        let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, so it is safe whenever it runs.
        unsafe { sigaction(Signal::SIGALRM, &action)? };
        alarm::set(PATIENCE);
        Ok(Self)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        alarm::cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds() {
        let speed = |nanos| Speed { instructions: 200_000, took: Duration::from_nanos(nanos) };
        assert!(speed(70_000).is_native());
        assert!(speed(2_000_000).is_native());
        assert!(!speed(100_000_000).is_native());
        assert_eq!(speed(100_000_000).to_string(), "2 million instructions a second");
    }
}
