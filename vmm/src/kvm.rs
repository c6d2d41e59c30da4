//! The KVM virtual machine: memory slots, interrupt chips, event descriptors, filter of registers (KVM API §4).
//!
//! Owns the order in which KVM is asked. Memory slots come before the interrupt chips and event descriptors last:
//! newer kernels wait for a grace period when a slot is added to a VM that already has devices on its buses.

mod msr;

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use hull_protocol::vmm::DiskAccess;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::layout;
use crate::memory::GuestMemory;
use crate::vcpu::cpuid::Lacking;
use crate::virtio::pmem::FileRegion;

/// Why KVM cannot do what is needed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not `/dev/kvm`, or of another age.
    #[error("the first descriptor is not /dev/kvm: its API version is {0}, not 12")]
    Version(i32),
    /// Something that cannot be done without.
    #[error("this host's KVM lacks {0:?}")]
    Capability(Cap),
    /// More vCPUs than the host's KVM gives a VM.
    #[error("this host's KVM gives a VM at most {0} vCPUs")]
    TooManyVcpus(usize),
    /// An older processor than the CPU template is for.
    #[error(transparent)]
    Template(Lacking),
    /// A request that KVM refused.
    #[error("KVM refused to {what}")]
    Ioctl {
        /// What was asked.
        what: &'static str,
        /// The reason.
        source: kvm_ioctls::Error,
    },
    /// The host has no event descriptors left.
    #[error("cannot make an event descriptor")]
    Event(#[source] std::io::Error),
    /// The guest's model specific registers cannot be set.
    #[error("KVM refused to set model specific register {0:#x}")]
    Msr(u32),
}

/// Names what was asked when KVM refuses.
pub(crate) fn asked(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { what, source }
}

/// A `/dev/kvm` that can do what is needed.
#[derive(Debug)]
pub struct Kvm {
    system: kvm_ioctls::Kvm,
}

const NEEDED: [Cap; 8] = [
    Cap::Irqchip,
    Cap::UserMemory,
    Cap::SetTssAddr,
    Cap::ExtCpuid,
    Cap::Irqfd,
    Cap::Ioeventfd,
    Cap::ImmediateExit,
    Cap::TscDeadlineTimer,
];

impl Kvm {
    /// Takes `/dev/kvm` and looks at what it can do.
    pub fn new(fd: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is owned and given away here.
        let system = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        let version = system.get_api_version();
        if version != KVM_API_VERSION.cast_signed() {
            return Err(KvmError::Version(version));
        }
        match NEEDED.into_iter().find(|cap| !system.check_extension(*cap)) {
            Some(missing) => Err(KvmError::Capability(missing)),
            None => Ok(Self { system }),
        }
    }

    /// The CPU features that KVM can give a guest.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(asked("name the CPU's features"))
    }

    /// Whether a VM can have so many vCPUs.
    pub fn check_vcpus(&self, vcpus: u8) -> Result<(), KvmError> {
        let most = self.system.get_max_vcpus();
        if usize::from(vcpus) > most { Err(KvmError::TooManyVcpus(most)) } else { Ok(()) }
    }
}

/// A virtual machine with memory and interrupt chips.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    /// What the slots refer to: it must stay mapped as long as the VM exists.
    memory: GuestMemory,
    _files: Vec<FileRegion>,
}

impl Vm {
    /// A VM whose physical memory is `memory` and the `files`, with in-kernel PIC, I/O APIC and local APICs and without a PIT.
    pub fn new(kvm: &Kvm, memory: &GuestMemory, files: Vec<FileRegion>) -> Result<Self, KvmError> {
        let fd = kvm.system.create_vm().map_err(asked("create a VM"))?;
        fd.set_identity_map_address(layout::IDENTITY_MAP).map_err(asked("place its identity map"))?;
        let tss = usize::try_from(layout::TSS).unwrap_or(usize::MAX);
        fd.set_tss_address(tss).map_err(asked("place its task state"))?;
        if kvm.system.check_extension(Cap::X86MsrFilter) {
            msr::restrict(&fd)?;
        } else {
            log::warn!(
                "the host's KVM (before Linux 5.10) cannot keep a guest from model specific registers"
            );
        }
        let ram = memory.iter().map(|region| {
            let address = memory
                .get_host_address(region.start_addr())
                .map_err(|_| asked("add guest memory")(kvm_ioctls::Error::new(libc::EFAULT)))?;
            Ok(kvm_userspace_memory_region {
                slot: 0,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: address as u64,
            })
        });
        let mapped = files.iter().map(|FileRegion { start, mapping }| {
            Ok(kvm_userspace_memory_region {
                slot: 0,
                flags: match mapping.access() {
                    DiskAccess::ReadOnly => KVM_MEM_READONLY,
                    DiskAccess::ReadWrite => 0,
                },
                guest_phys_addr: *start,
                memory_size: mapping.length(),
                userspace_addr: mapping.address(),
            })
        });
        for (slot, region) in (0..).zip(ram.chain(mapped)) {
            let region = kvm_userspace_memory_region { slot, ..region? };
            // SAFETY: the region is mapped for its whole length, and the VM keeps it so by owning `memory` and
            // `_files`.
            unsafe { fd.set_user_memory_region(region) }.map_err(asked("add guest memory"))?;
        }
        fd.create_irq_chip().map_err(asked("create the interrupt chips"))?;
        Ok(Self { fd, memory: memory.clone(), _files: files })
    }

    /// Creates a vCPU with the given APIC id.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(asked("create a vCPU"))
    }

    /// The guest's physical memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// An event that raises an edge on an interrupt line.
    pub fn interrupt(&self, line: u32) -> Result<EventFd, KvmError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(KvmError::Event)?;
        self.connect_interrupt(line, &event)?;
        Ok(event)
    }

    /// Raises an edge on an interrupt line when `event` is signalled. Several events may share a line.
    pub fn connect_interrupt(&self, line: u32, event: &EventFd) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, line).map_err(asked("connect an interrupt"))
    }

    /// Undoes [`connect_interrupt`](Self::connect_interrupt).
    pub fn disconnect_interrupt(&self, line: u32, event: &EventFd) -> Result<(), KvmError> {
        self.fd.unregister_irqfd(event, line).map_err(asked("disconnect an interrupt"))
    }

    /// Signals `event` when the guest writes the 32-bit `value` to `address`, without a way through the monitor.
    pub fn notify_on_write(&self, address: u64, value: u32, event: &EventFd) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(asked("connect a queue notification"))
    }

    /// Undoes [`notify_on_write`](Self::notify_on_write).
    pub fn stop_notifying(&self, address: u64, value: u32, event: &EventFd) -> Result<(), KvmError> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(asked("disconnect a queue notification"))
    }
}
