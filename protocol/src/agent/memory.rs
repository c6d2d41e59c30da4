//! What containers get of a guest's memory. The agent bounds them by it, and a VM is made large enough for their limits by it.

/// What containers do not get of the memory that is available: for buffers of the kernel's, the agent, and its helpers.
pub const KEPT: u64 = 24 << 20;

/// So many bytes of memory that is plugged cost one of what was there before: the kernel's page structures (64 bytes for 4 KiB), and
/// what it keeps free for itself, in this zone and in the lower ones.
const PLUGGED_COSTS: u64 = 40;

/// What containers may take together where so much is available and none runs yet: never less than three quarters.
pub fn share_of_containers(available: u64) -> u64 {
    available - KEPT.min(available / 4)
}

/// What becomes of their share when the guest's memory changes: they get what comes, and lose what goes.
pub fn share_after(share: u64, total_before: u64, total: u64) -> u64 {
    let usable = |bytes: u64| bytes - bytes.div_ceil(PLUGGED_COSTS);
    let (more, less) = (total.saturating_sub(total_before), total_before.saturating_sub(total));
    share.saturating_add(usable(more)).saturating_sub(usable(less))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn little_and_much_memory() {
        let share = |available: u64| share_of_containers(available * MIB) / MIB;
        assert_eq!((share(480), share(40), share(8000)), (456, 30, 7976));
        assert_eq!(share_of_containers(0), 0);
    }

    #[test]
    fn what_comes_and_goes_is_the_containers() {
        let (share, total) = (450 * MIB, 500 * MIB);
        let more = share_after(share, total, 900 * MIB);
        assert_eq!(more, (450 + 390) * MIB);
        assert_eq!(share_after(more, 900 * MIB, 900 * MIB), more);
        assert_eq!(share_after(more, 900 * MIB, total), share);
        assert_eq!(share_after(10 * MIB, total, 0), 0);
    }

    proptest! {
        #[test]
        fn containers_get_most_and_not_all(available in 1_u64..1 << 41) {
            let share = share_of_containers(available);
            prop_assert!(share <= available && share >= available - available / 4);
        }

        #[test]
        fn the_kernel_has_its_part_of_what_comes(share in 0_u64..1 << 41, total in 0_u64..1 << 41, more in 0_u64..1 << 41) {
            let after = share_after(share, total, total + more);
            prop_assert!(after >= share && after + more / 64 <= share + more);
            prop_assert_eq!(share_after(after, total + more, total), share);
        }
    }
}
