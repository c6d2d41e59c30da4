//! The state in which vCPUs start: the boot processor at the PVH entry, the others waiting for it (the state KVM gives
//! them).

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::{KvmError, asked};
use crate::layout;
use crate::memory::GuestMemory;

const CR0_PE: u64 = 1;
/// The one bit of EFLAGS that is always set.
const FLAGS_RESERVED: u64 = 1 << 1;

/// Segment types (Intel SDM vol. 3 §3.4.5.1, §3.5).
const CODE_EXECUTE_READ: u8 = 0xb;
const DATA_READ_WRITE: u8 = 0x3;
const TSS_BUSY_32: u8 = 0xb;

/// Model specific registers that must differ from their reset value.
const MSRS: [(u32, u64); 2] = [
    // IA32_MISC_ENABLE: fast string operations.
    (0x1a0, 1),
    // IA32_MTRR_DEF_TYPE: enabled, write-back everywhere.
    (0x2ff, 1 << 11 | 6),
];

/// Offsets and modes of the local APIC's two interrupt inputs (Intel SDM vol. 3 §11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_EXTERNAL: u32 = 0b111 << 8;
const DELIVERY_MODE: u32 = 0b111 << 8;
const MASKED: u32 = 1 << 16;

/// What every vCPU needs, after its CPUID.
pub fn set_common(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries = MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::Msr(MSRS[0].0))?;
    let set = vcpu.set_msrs(&msrs).map_err(asked("set model specific registers"))?;
    if let Some((refused, _)) = MSRS.get(set) {
        return Err(KvmError::Msr(*refused));
    }

    let mut apic = vcpu.get_lapic().map_err(asked("read a local APIC"))?;
    for (offset, mode) in [(LVT_LINT0, DELIVER_EXTERNAL), (LVT_LINT1, DELIVER_NMI)] {
        let register = &mut apic.regs[offset..offset + 4];
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(register.iter()) {
            *to = from.cast_unsigned();
        }
        let value = u32::from_le_bytes(bytes) & !(DELIVERY_MODE | MASKED) | mode;
        for (to, from) in register.iter_mut().zip(value.to_le_bytes()) {
            *to = from.cast_signed();
        }
    }
    vcpu.set_lapic(&apic).map_err(asked("set a local APIC"))
}

/// Puts the boot processor at a PVH entry: 32-bit protected mode, flat segments, no paging, EBX at the start info.
pub fn set_boot_processor(vcpu: &VcpuFd, memory: &GuestMemory, entry: u32) -> Result<(), KvmError> {
    let code = flat(1, CODE_EXECUTE_READ);
    let data = flat(2, DATA_READ_WRITE);
    let task = kvm_segment { limit: 0x67, g: 0, db: 0, s: 0, ..flat(3, TSS_BUSY_32) };
    // Not needed by the protocol, but a guest that reloads a segment before it has its own table finds the same again.
    let table = [0, descriptor(&code), descriptor(&data), descriptor(&task)].map(u64::to_le_bytes).concat();
    memory
        .write_slice(&table, GuestAddress(layout::GDT))
        .map_err(|_| asked("write the descriptor table")(kvm_ioctls::Error::new(libc::EFAULT)))?;

    let mut special = vcpu.get_sregs().map_err(asked("read a vCPU's registers"))?;
    special.gdt.base = layout::GDT;
    special.gdt.limit = u16::try_from(table.len() - 1).unwrap_or(u16::MAX);
    special.cs = code;
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = task;
    special.cr0 = special.cr0 & !(1 << 31) | CR0_PE;
    special.cr4 = 0;
    special.efer = 0;
    vcpu.set_sregs(&special).map_err(asked("set a vCPU's registers"))?;
    let registers = kvm_regs {
        rip: u64::from(entry),
        rbx: layout::START_INFO,
        rflags: FLAGS_RESERVED,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&registers).map_err(asked("set a vCPU's registers"))
}

/// A 32-bit segment over all of the address space.
fn flat(index: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: index * 8,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// The descriptor of a segment with base zero, as it stands in the table (Intel SDM vol. 3 §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(descriptor(&flat(1, CODE_EXECUTE_READ)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(2, DATA_READ_WRITE)), 0x00cf_9300_0000_ffff);
        let task = kvm_segment { limit: 0x67, g: 0, db: 0, s: 0, ..flat(3, TSS_BUSY_32) };
        assert_eq!(descriptor(&task), 0x0000_8b00_0000_0067);
    }
}
