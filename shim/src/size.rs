//! How much memory a VM must have for its containers to have theirs: the one place that says so, at its start and when it changes.

/// For so many bytes of limits the VM has one more, for what grows with a guest's memory: the kernel's page structures (a 64th), hash
/// tables, and what it keeps free.
const GROWS: u64 = 32;

/// The memory of a VM in MiB whose containers may take `limit` bytes together, where `overhead_mib` are for the guest itself.
pub fn memory_mib(limit: u64, overhead_mib: u32) -> u64 {
    let limit = limit.div_ceil(1 << 20);
    limit + u64::from(overhead_mib) + share_mib(limit)
}

/// What of that grows with the limit, which is in MiB as well.
pub fn share_mib(limit_mib: u64) -> u64 {
    limit_mib.div_ceil(GROWS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmDefaults;
    use hull_protocol::agent::memory::{share_after, share_of_containers};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    /// Below it there is one zone of memory, and above it another.
    const GAP_MIB: u64 = 3 << 10;

    /// Guests that run their agent: the VM's memory in MiB, and what is available, in KiB.
    const GUESTS: [(u64, u64); 7] = [
        (192, 157_344),
        (512, 470_676),
        (2048, 1_985_000),
        (4096, 4_006_996),
        (8192, 8_106_284),
        (32_768, 32_700_528),
        (131_072, 131_152_136),
    ];

    /// What is available at least, in MiB: without the kernel, the agent, the page structures, hash tables and what is kept free.
    fn available(size: u64) -> u64 {
        let zones = 1 + u64::from(size > GAP_MIB);
        // Where there are huge pages, the kernel keeps some room for them.
        let free = if size < 512 { 4 } else { 34 * zones };
        let lower_zones = (size.saturating_sub(GAP_MIB) / 256).min(GAP_MIB);
        size.saturating_sub(36 + size / 64 + size / 512 + free + lower_zones + size / 500)
    }

    fn default_overhead() -> u32 {
        VmDefaults::default().overhead_mib
    }

    #[test]
    fn the_kernel_takes_no_more_than_is_reckoned_with() {
        for (size, kib) in GUESTS {
            assert!(available(size) <= kib / 1024, "{size}: {} of {} MiB", available(size), kib / 1024);
        }
    }

    #[test]
    fn the_limit_the_guests_own_and_a_part_of_the_limit() {
        assert_eq!(memory_mib(0, 128), 128);
        assert_eq!(memory_mib(64 * MIB, 128), 64 + 128 + 2);
        assert_eq!(memory_mib(64 * MIB + 1, 50), 65 + 50 + 3);
        assert_eq!(memory_mib(4096 * MIB, 128), 4096 + 128 + 128);
        assert!(memory_mib(u64::MAX, u32::MAX) > 1 << 40);
    }

    proptest! {
        #[test]
        fn a_container_may_have_its_whole_limit(limit in 1_u64..1 << 20) {
            let bound = share_of_containers(available(memory_mib(limit * MIB, default_overhead())) * MIB);
            prop_assert!(bound >= limit * MIB, "{} of {limit} MiB", bound / MIB);
        }

        #[test]
        fn also_when_its_vm_has_grown_for_it(limit in 1_u64..1 << 20, began in 64_u64..1 << 15) {
            let size = memory_mib(limit * MIB, default_overhead());
            let before = share_of_containers(available(began) * MIB);
            // A VM that has begun with less than its guest itself needs has what it was made with.
            prop_assume!(size > began && began >= u64::from(default_overhead()));
            let bound = share_after(before, began * MIB, size * MIB);
            prop_assert!(bound >= limit * MIB, "{began}, then {size}: {} of {limit} MiB", bound / MIB);
        }
    }
}
