//! Named CPU templates: a table of features by the level that they belong to, and what becomes of everything else.
//!
//! A template other than the host's own shows exactly its level of the x86-64 psABI (§3.1.1, "micro-architecture levels")
//! with what every processor of that age has, so that a guest which was saved on one host goes on on another. Mitigations
//! of processor faults are shown where the host has them: a guest must not go without.

use hull_protocol::vmm::CpuTemplate;
use kvm_bindings::kvm_cpuid_entry2;

use Level::{Base, Mitigation, V2, V3};
use Register::{Eax, Ebx, Ecx, Edx};

/// From where on a feature is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// By every template; the host must have it.
    Base,
    /// From this template on; the host must have it then.
    V2,
    /// The same.
    V3,
    /// By every template where the host has it.
    Mitigation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit: its name, its leaf, register and number, and its level.
type Feature = (&'static str, u32, Register, u8, Level);

/// Sub-leaf 0 of each leaf. A bit of these registers that is not here is shown by no template.
const FEATURES: &[Feature] = &[
    ("fpu", 1, Edx, 0, Base),
    ("vme", 1, Edx, 1, Mitigation),
    ("de", 1, Edx, 2, Base),
    ("pse", 1, Edx, 3, Base),
    ("tsc", 1, Edx, 4, Base),
    ("msr", 1, Edx, 5, Base),
    ("pae", 1, Edx, 6, Base),
    ("mce", 1, Edx, 7, Base),
    ("cx8", 1, Edx, 8, Base),
    ("apic", 1, Edx, 9, Base),
    ("sep", 1, Edx, 11, Base),
    ("mtrr", 1, Edx, 12, Base),
    ("pge", 1, Edx, 13, Base),
    ("mca", 1, Edx, 14, Base),
    ("cmov", 1, Edx, 15, Base),
    ("pat", 1, Edx, 16, Base),
    ("pse36", 1, Edx, 17, Base),
    ("clflush", 1, Edx, 19, Base),
    ("mmx", 1, Edx, 23, Base),
    ("fxsr", 1, Edx, 24, Base),
    ("sse", 1, Edx, 25, Base),
    ("sse2", 1, Edx, 26, Base),
    ("syscall", 0x8000_0001, Edx, 11, Base),
    ("nx", 0x8000_0001, Edx, 20, Base),
    ("rdtscp", 0x8000_0001, Edx, 27, Base),
    ("lm", 0x8000_0001, Edx, 29, Base),
    // KVM's own work, on every host.
    ("x2apic", 1, Ecx, 21, Base),
    // Whether time goes on evenly is a matter of the host, not of the processor's age.
    ("invariant tsc", 0x8000_0007, Edx, 8, Mitigation),
    ("arat", 6, Eax, 2, Mitigation),
    ("sse3", 1, Ecx, 0, V2),
    ("ssse3", 1, Ecx, 9, V2),
    ("cx16", 1, Ecx, 13, V2),
    ("sse4.1", 1, Ecx, 19, V2),
    ("sse4.2", 1, Ecx, 20, V2),
    ("popcnt", 1, Ecx, 23, V2),
    ("lahf", 0x8000_0001, Ecx, 0, V2),
    ("pclmul", 1, Ecx, 1, V3),
    ("fma", 1, Ecx, 12, V3),
    ("movbe", 1, Ecx, 22, V3),
    ("aes", 1, Ecx, 25, V3),
    ("xsave", 1, Ecx, 26, V3),
    ("avx", 1, Ecx, 28, V3),
    ("f16c", 1, Ecx, 29, V3),
    ("rdrand", 1, Ecx, 30, V3),
    ("fsgsbase", 7, Ebx, 0, V3),
    ("bmi1", 7, Ebx, 3, V3),
    ("avx2", 7, Ebx, 5, V3),
    ("smep", 7, Ebx, 7, V3),
    ("bmi2", 7, Ebx, 8, V3),
    ("lzcnt", 0x8000_0001, Ecx, 5, V3),
    ("md_clear", 7, Edx, 10, Mitigation),
    ("spec_ctrl", 7, Edx, 26, Mitigation),
    ("stibp", 7, Edx, 27, Mitigation),
    ("flush_l1d", 7, Edx, 28, Mitigation),
    ("ssbd", 7, Edx, 31, Mitigation),
    ("amd ibpb", 0x8000_0008, Ebx, 12, Mitigation),
    ("amd ibrs", 0x8000_0008, Ebx, 14, Mitigation),
    ("amd stibp", 0x8000_0008, Ebx, 15, Mitigation),
    ("amd ssbd", 0x8000_0008, Ebx, 24, Mitigation),
    ("amd virt_ssbd", 0x8000_0008, Ebx, 25, Mitigation),
];

/// The registers that hold nothing but features.
const FEATURE_REGISTERS: [(u32, Register); 10] = [
    (1, Ecx),
    (1, Edx),
    (6, Eax),
    (7, Ebx),
    (7, Ecx),
    (7, Edx),
    (0x8000_0001, Ecx),
    (0x8000_0001, Edx),
    (0x8000_0007, Edx),
    (0x8000_0008, Ebx),
];

/// Leaves that tell something else that is true of any host: identity, caches, topology, frequency, KVM, addresses.
const PLAIN_LEAVES: [u32; 18] = [
    0,
    2,
    4,
    0xb,
    0x15,
    0x16,
    0x1f,
    0x4000_0000,
    0x4000_0001,
    0x4000_0010,
    0x8000_0000,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_001d,
    0x8000_001e,
];

/// The leaf of extended states: the x87, SSE and AVX states (Intel SDM vol. 1 §13.1), and what they take, in bytes.
const STATES: u32 = 0xd;
const STATES_AVX: u32 = 0b111;
const STATES_BYTES: u32 = 512 + 64 + 256;
const XSAVEOPT: u32 = 1;

/// The host's processor is too old for a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this host's KVM cannot give a guest what the CPU template needs: it lacks {}", .0.join(", "))]
pub struct Lacking(Vec<&'static str>);

/// Reduces what KVM offers to what the template shows.
pub fn apply(template: CpuTemplate, leaves: &mut Vec<kvm_cpuid_entry2>) -> Result<(), Lacking> {
    let level = match template {
        CpuTemplate::Host => return Ok(()),
        CpuTemplate::V2 => V2,
        CpuTemplate::V3 => V3,
    };
    let lacking: Vec<&str> = FEATURES
        .iter()
        .filter(|(_, leaf, register, bit, since)| *since <= level && !has(leaves, *leaf, *register, *bit))
        .map(|(name, ..)| *name)
        .collect();
    if !lacking.is_empty() {
        return Err(Lacking(lacking));
    }
    leaves.retain_mut(|leaf| reduce(leaf, level));
    Ok(())
}

/// Whether the leaf stays.
fn reduce(leaf: &mut kvm_cpuid_entry2, level: Level) -> bool {
    let function = leaf.function;
    if function == STATES {
        return level >= V3 && reduce_states(leaf);
    }
    if FEATURE_REGISTERS.iter().all(|(of, _)| *of != function) {
        return PLAIN_LEAVES.contains(&function);
    }
    if function == 7 {
        // The number of further sub-leaves, none of which has anything for a template.
        leaf.eax = 0;
    }
    for (_, register) in FEATURE_REGISTERS.iter().filter(|(of, _)| *of == function) {
        *value_mut(leaf, *register) &= shown(function, *register, level);
    }
    leaf.index == 0
}

fn reduce_states(leaf: &mut kvm_cpuid_entry2) -> bool {
    match leaf.index {
        0 => {
            leaf.eax &= STATES_AVX;
            (leaf.ebx, leaf.ecx, leaf.edx) = (STATES_BYTES, STATES_BYTES, 0);
            true
        }
        1 => {
            leaf.eax &= XSAVEOPT;
            (leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0);
            true
        }
        // The AVX state's size and place.
        2 => true,
        _ => false,
    }
}

/// The bits of a register that are shown at a level.
fn shown(leaf: u32, register: Register, level: Level) -> u32 {
    let of_register = FEATURES.iter().filter(|feature| (feature.1, feature.2) == (leaf, register));
    let of_level = of_register.filter(|(.., since)| *since <= level || *since == Mitigation);
    of_level.fold(0, |bits, (_, _, _, bit, _)| bits | 1 << bit)
}

fn has(leaves: &[kvm_cpuid_entry2], function: u32, register: Register, bit: u8) -> bool {
    let mut leaves = leaves.iter().filter(|leaf| leaf.function == function && leaf.index == 0);
    leaves.any(|leaf| value(leaf, register) & 1 << bit != 0)
}

fn value(leaf: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Eax => leaf.eax,
        Ebx => leaf.ebx,
        Ecx => leaf.ecx,
        Edx => leaf.edx,
    }
}

fn value_mut(leaf: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Eax => &mut leaf.eax,
        Ebx => &mut leaf.ebx,
        Ecx => &mut leaf.ecx,
        Edx => &mut leaf.edx,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
        let (eax, ebx, ecx, edx) = (value, value, value, value);
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    /// A host that has everything.
    fn future() -> Vec<kvm_cpuid_entry2> {
        let leaves = (0..=0x24).chain(0x4000_0000..=0x4000_0001).chain(0x8000_0000..=0x8000_0028);
        let mut leaves: Vec<_> = leaves.map(|function| entry(function, 0, u32::MAX)).collect();
        leaves.extend((1..20).map(|index| entry(STATES, index, u32::MAX)));
        leaves.extend((1..3).map(|index| entry(7, index, u32::MAX)));
        leaves
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves.iter().find(|leaf| (leaf.function, leaf.index) == (function, index)).unwrap()
    }

    #[test]
    fn a_future_host_shows_the_level_and_no_more() {
        let mut v3 = future();
        apply(CpuTemplate::V3, &mut v3).unwrap();
        // bmi1, avx2, smep, bmi2, fsgsbase; no AVX-512, no protection keys, no further sub-leaves.
        let seven = find(&v3, 7, 0);
        assert_eq!((seven.eax, seven.ebx, seven.ecx, seven.edx), (0, 0x1a9, 0, 0x9c00_0400));
        assert_eq!(find(&v3, STATES, 0).eax, 7);
        assert_eq!(find(&v3, STATES, 1).eax, 1);
        assert!(!v3.iter().any(|leaf| leaf.function == 7 && leaf.index > 0));
        assert!(!v3.iter().any(|leaf| leaf.function == STATES && leaf.index > 2));
        // Trace, tiles, enclaves, memory encryption, performance counters, monitor/mwait.
        for gone in [5, 0xa, 0x12, 0x14, 0x1d, 0x1e, 0x24, 0x8000_000a, 0x8000_001f, 0x8000_0021] {
            assert!(!v3.iter().any(|leaf| leaf.function == gone), "{gone:#x}");
        }
        let mut v2 = future();
        apply(CpuTemplate::V2, &mut v2).unwrap();
        assert_eq!(find(&v2, 7, 0).ebx, 0);
        assert_eq!(find(&v2, 1, 0).ecx, 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23);
        assert!(!v2.iter().any(|leaf| leaf.function == STATES), "no extended states without xsave");
        let mut host = future();
        apply(CpuTemplate::Host, &mut host).unwrap();
        assert_eq!(host, future());
    }

    #[test]
    fn each_feature_that_a_template_needs_is_missed_by_name() {
        for (name, function, register, bit, since) in FEATURES {
            let mut leaves = future();
            for leaf in leaves.iter_mut().filter(|leaf| leaf.function == *function) {
                *value_mut(leaf, *register) &= !(1 << bit);
            }
            let refused = |template| apply(template, &mut leaves.clone()).err();
            let missing = Some(Lacking(vec![name]));
            let expected = match since {
                Base | V2 => [missing.clone(), missing],
                V3 => [None, missing],
                Mitigation => [None, None],
            };
            assert_eq!([refused(CpuTemplate::V2), refused(CpuTemplate::V3)], expected, "{name}");
        }
    }

    #[test]
    fn no_bit_is_said_twice_or_outside_of_what_is_reduced() {
        for (index, (name, leaf, register, bit, _)) in FEATURES.iter().enumerate() {
            assert!(FEATURE_REGISTERS.contains(&(*leaf, *register)), "{name}");
            assert!(*bit < 32);
            let same = |other: &&Feature| (other.1, other.2, other.3) == (*leaf, *register, *bit);
            assert!(!FEATURES[..index].iter().any(|other| same(&other)), "{name}");
        }
    }

    proptest! {
        /// Two hosts that both have what a template needs show the same, mitigations apart.
        #[test]
        fn hosts_look_alike(noise in proptest::collection::vec(any::<u32>(), 4)) {
            let mut a = future();
            let mut b = future();
            for (leaf, noise) in b.iter_mut().zip(noise.iter().cycle()) {
                let kept = |register| shown(leaf.function, register, V3);
                leaf.eax &= noise | kept(Eax);
                leaf.ebx &= noise | kept(Ebx);
                leaf.ecx &= noise | kept(Ecx);
                leaf.edx &= noise | kept(Edx);
            }
            apply(CpuTemplate::V3, &mut a).unwrap();
            apply(CpuTemplate::V3, &mut b).unwrap();
            for (function, register) in FEATURE_REGISTERS {
                prop_assert_eq!(value(&find(&a, function, 0), register), value(&find(&b, function, 0), register));
            }
        }
    }
}
