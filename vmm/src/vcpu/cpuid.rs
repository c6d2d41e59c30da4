//! What CPUID tells the guest: what KVM supports, or what of it a [`template`] shows, less nested virtualisation and
//! performance counters, plus the hypervisor bit, the TSC deadline timer and a topology of one package with one thread a
//! core.

use hull_protocol::vmm::CpuTemplate;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::kvm::KvmError;

mod template;

pub use template::Lacking;

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the leaf has sub-leaves.
const INDEXED: u32 = 1;

/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor.
const MULTI_THREADING: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX.
const SVM: u32 = 1 << 2;

/// Where this vCPU is among the others.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// This vCPU, which is also its APIC id.
    pub id: u8,
    /// How many there are, at least one.
    pub vcpus: u8,
}

impl Topology {
    /// Bits of an APIC id that tell the vCPUs of the package apart.
    fn id_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

/// The leaves of one vCPU. `supported` is what KVM offers; its own leaves (0x4000_0000 on) stay.
pub fn build(supported: &CpuId, template: CpuTemplate, topology: Topology) -> Result<CpuId, KvmError> {
    let offered = supported.as_slice();
    let is_amd = offered.iter().any(|leaf| leaf.function == 0 && is_amd(leaf));
    let mut leaves: Vec<kvm_cpuid_entry2> =
        offered.iter().filter(|leaf| !matches!(leaf.function, 0xb | 0x1f)).copied().collect();
    template::apply(template, &mut leaves).map_err(KvmError::Template)?;
    for leaf in &mut leaves {
        adjust(leaf, topology, is_amd);
    }
    let highest = offered.iter().find(|leaf| leaf.function == 0).map_or(0, |leaf| leaf.eax);
    for function in [0xb, 0x1f].into_iter().filter(|function| *function <= highest) {
        leaves.extend(extended_topology(function, topology));
    }
    CpuId::from_entries(&leaves)
        .map_err(|_| crate::kvm::asked("take so many CPUID leaves")(kvm_ioctls::Error::new(libc::E2BIG)))
}

fn is_amd(leaf: &kvm_cpuid_entry2) -> bool {
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}

fn adjust(leaf: &mut kvm_cpuid_entry2, topology: Topology, is_amd: bool) {
    let (id, vcpus) = (u32::from(topology.id), u32::from(topology.vcpus));
    match leaf.function {
        0x1 => {
            leaf.ecx = leaf.ecx & !VMX | HYPERVISOR | TSC_DEADLINE;
            leaf.ebx = leaf.ebx & 0x0000_ffff | id << 24 | 1 << topology.id_bits() << 16;
            leaf.edx &= !MULTI_THREADING;
            if vcpus > 1 {
                leaf.edx |= MULTI_THREADING;
            }
        }
        // Deterministic cache parameters: the third level is everybody's, the others a core's own.
        0x4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
            let level = leaf.eax >> 5 & 0x7;
            let sharing = if level >= 3 { (1 << topology.id_bits()) - 1 } else { 0 };
            leaf.eax = leaf.eax & 0x0000_3fff | sharing << 14;
            if leaf.function == 0x4 {
                leaf.eax |= ((1 << topology.id_bits()) - 1) << 26;
            }
        }
        // Performance counters; nested virtualisation's features.
        0xa | 0x8000_000a => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        0x8000_0001 => leaf.ecx &= !SVM,
        0x8000_0008 if is_amd => leaf.ecx = topology.id_bits() << 12 | (vcpus - 1),
        0x8000_001e if is_amd => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
        _ => {}
    }
}

/// The extended topology enumeration: threads, cores, the end.
fn extended_topology(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index: u32, shift, processors, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: INDEXED,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: u32::from(topology.id),
        ..kvm_cpuid_entry2::default()
    };
    let vcpus = u32::from(topology.vcpus);
    [level(0, 0, 1, THREADS), level(1, topology.id_bits(), vcpus, CORES), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        entry(0, 0, [0x1f, word(0), word(8), word(4)])
    }

    fn build_for(vendor_name: &[u8; 12], id: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let offered = [
            vendor(vendor_name),
            entry(1, 0, [0, 0x0706_0800, VMX, 0]),
            entry(4, 3, [0x63, 0, 0, 0]),
            entry(0xa, 0, [1, 2, 3, 4]),
            entry(0xb, 0, [9, 9, 9, 9]),
            entry(0x4000_0000, 0, [0x4000_0001, 1, 2, 3]),
            entry(0x8000_0001, 0, [0, 0, SVM | 1, 0]),
            entry(0x8000_0008, 0, [0x30, 0, 0x7007, 0]),
        ];
        let supported = CpuId::from_entries(&offered).unwrap();
        build(&supported, CpuTemplate::Host, Topology { id, vcpus }).unwrap().as_slice().to_vec()
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> = leaves.iter().filter(|l| (l.function, l.index) == (function, index)).collect();
        assert_eq!(found.len(), 1, "leaf {function:#x} {index}");
        *found[0]
    }

    #[test]
    fn a_guest_sees_a_hypervisor_and_no_nesting() {
        let leaves = build_for(b"GenuineIntel", 0, 1);
        let one = find(&leaves, 1, 0);
        assert_eq!(one.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!((one.ebx, one.edx), (0x0001_0800, 0));
        assert_eq!(find(&leaves, 0x8000_0001, 0).ecx, 1);
        assert_eq!(find(&leaves, 0xa, 0).eax, 0);
        assert_eq!(find(&leaves, 0x4000_0000, 0).eax, 0x4000_0001);
        assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 0x7007, "reserved on Intel");
    }

    #[test]
    fn every_vcpu_knows_its_place() {
        for id in 0..3 {
            let leaves = build_for(b"AuthenticAMD", id, 3);
            let id = u32::from(id);
            assert_eq!(find(&leaves, 1, 0).ebx, id << 24 | 4 << 16 | 0x0800);
            assert_eq!(find(&leaves, 1, 0).edx, MULTI_THREADING);
            assert_eq!(find(&leaves, 4, 3).eax, 0x63 | 3 << 14 | 3 << 26);
            for function in [0xb, 0x1f] {
                let (threads, cores) = (find(&leaves, function, 0), find(&leaves, function, 1));
                assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, id));
                assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, id));
                assert_eq!(find(&leaves, function, 2).ecx, 2);
            }
            assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 2 << 12 | 2);
        }
    }
}
