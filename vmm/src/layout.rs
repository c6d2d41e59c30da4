//! The guest's physical address map.
//!
//! ```text
//! 0x0000_0500  GDT                       \
//! 0x0000_6000  PVH start_info, modules    |  RAM, read by the kernel's first instructions
//! 0x0000_7000  PVH memory map             |
//! 0x0002_0000  command line              /
//! 0x0009_fc00  MP table                     reserved up to 1 MiB
//! 0x0010_0000  kernel ... initramfs         RAM up to 3 GiB
//! 0xc000_0000  gap: virtio-mmio windows at 0xd000_0000, IOAPIC, local APIC, KVM's own pages
//! 0x1_0000_0000                             the rest of RAM, then regions that are no RAM at boot
//! ```

use std::ops::Range;

use linux_loader::loader::elf::start_info::hvm_memmap_table_entry;

/// The boot processor's descriptor table.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH boot protocol.
pub const START_INFO: u64 = 0x6000;
/// The list of PVH modules.
pub const MODULES: u64 = 0x6040;
/// The PVH memory map.
pub const MEMMAP: u64 = 0x7000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The longest command line an x86 kernel takes, its final zero included, in bytes.
pub const CMDLINE_MAX: usize = 2048;
/// The MP floating pointer and table: the last KiB of base memory, where kernels search.
pub const MP_TABLE: u64 = 0x9_fc00;
/// Room for the MP table, in bytes.
pub const MP_TABLE_MAX: usize = 0x400;
/// End of base memory and of what is reserved behind it: kernels are loaded from here on.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where no RAM is.
pub const GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// The first virtio-mmio window.
pub const DEVICES: u64 = 0xd000_0000;
/// The I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page that KVM needs on Intel (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel (`KVM_SET_TSS_ADDR`).
pub const TSS: u64 = 0xfffb_d000;

const MIB: u64 = 1 << 20;

/// The type of RAM in a memory map (as E820).
const MEMMAP_RAM: u32 = 1;
/// The type of what must be left alone.
const MEMMAP_RESERVED: u32 = 2;

/// A size of guest memory that can be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSize(u64);

impl RamSize {
    /// The least a VM gets, in MiB.
    pub const MIN_MIB: u32 = 32;
    /// The most a VM gets, in MiB: 1 TiB.
    pub const MAX_MIB: u32 = 1 << 20;

    /// `None` outside [`MIN_MIB`](Self::MIN_MIB) to [`MAX_MIB`](Self::MAX_MIB).
    pub fn from_mib(mib: u32) -> Option<Self> {
        (Self::MIN_MIB..=Self::MAX_MIB).contains(&mib).then_some(Self(u64::from(mib) * MIB))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Where RAM is, in ascending order: one range, or two around the gap.
    pub fn ranges(self) -> Vec<Range<u64>> {
        let above = self.0.saturating_sub(GAP.start);
        let ranges = [0..self.low_end(), GAP.end..GAP.end + above];
        ranges.into_iter().filter(|range| !range.is_empty()).collect()
    }

    /// The end of RAM below the gap.
    pub fn low_end(self) -> u64 {
        self.0.min(GAP.start)
    }

    /// The address space behind RAM and the gap.
    pub fn beyond(self) -> Beyond {
        Beyond(self.ranges().iter().map(|range| range.end).fold(GAP.end, u64::max))
    }

    /// The memory map that the kernel is told. It covers all RAM.
    pub fn memmap(self) -> Vec<hvm_memmap_table_entry> {
        let entry = |range: Range<u64>, type_| hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_,
            reserved: 0,
        };
        let mut map = vec![
            entry(0..MP_TABLE, MEMMAP_RAM),
            entry(MP_TABLE..HIGH_MEMORY, MEMMAP_RESERVED),
            entry(HIGH_MEMORY..self.low_end(), MEMMAP_RAM),
        ];
        map.extend(self.ranges().into_iter().skip(1).map(|range| entry(range, MEMMAP_RAM)));
        map
    }
}

/// Gives out address space that no RAM lies in, in ascending order.
#[derive(Clone, Debug)]
pub struct Beyond(u64);

impl Beyond {
    /// Addresses of more bits are beyond what processors of servers can have.
    const END: u64 = 1 << 46;

    /// The next so many bytes at a multiple of `alignment`, a power of two. `None` if there are not that many.
    pub fn take(&mut self, bytes: u64, alignment: u64) -> Option<u64> {
        let start = self.0.checked_next_multiple_of(alignment)?;
        let end = start.checked_add(bytes).filter(|end| *end <= Self::END)?;
        self.0 = end;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sizes() -> impl Strategy<Value = RamSize> {
        let around_the_gap = 3000..5000_u32;
        prop_oneof![RamSize::MIN_MIB..=RamSize::MAX_MIB, around_the_gap, Just(3072), Just(3073)]
            .prop_map(|mib| RamSize::from_mib(mib).unwrap())
    }

    proptest! {
        #[test]
        fn ram_is_all_there_and_never_in_the_gap(size in sizes()) {
            let ranges = size.ranges();
            prop_assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), size.bytes());
            for range in &ranges {
                prop_assert!(!range.is_empty());
                prop_assert!(range.end <= GAP.start || range.start >= GAP.end);
            }
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        }

        #[test]
        fn the_memory_map_covers_ram_once(size in sizes()) {
            let map = size.memmap();
            prop_assert!(map.windows(2).all(|pair| pair[0].addr + pair[0].size <= pair[1].addr));
            prop_assert_eq!(map.iter().map(|entry| entry.size).sum::<u64>(), size.bytes());
            let ranges = size.ranges();
            for entry in &map {
                prop_assert!(entry.size > 0);
                prop_assert!(ranges.iter().any(|range| range.start <= entry.addr && entry.addr + entry.size <= range.end));
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_beyond_overlaps_nothing(size in sizes(), wanted in prop::collection::vec((1..1_u64 << 44, 12..31_u32), 1..6)) {
            let mut beyond = size.beyond();
            let mut free = size.ranges().iter().map(|range| range.end).fold(GAP.end, u64::max);
            for (bytes, shift) in wanted {
                let Some(start) = beyond.take(bytes, 1 << shift) else {
                    prop_assert!(free + bytes + (1 << shift) > 1 << 46);
                    continue;
                };
                prop_assert!(start >= free && start.is_multiple_of(1 << shift));
                free = start + bytes;
                prop_assert!(free <= 1 << 46);
            }
            prop_assert_eq!(beyond.take(u64::MAX, 4096), None);
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert_eq!(RamSize::from_mib(31), None);
        assert_eq!(RamSize::from_mib(0), None);
        assert_eq!(RamSize::from_mib(RamSize::MAX_MIB + 1), None);
        assert_eq!(RamSize::from_mib(32).unwrap().bytes(), 32 << 20);
    }

    #[test]
    fn what_the_boot_reads_does_not_overlap() {
        let memmap_entries = 4 * size_of::<hvm_memmap_table_entry>() as u64;
        let parts = [
            GDT..GDT + 32,
            START_INFO..START_INFO + 56,
            MODULES..MODULES + 32,
            MEMMAP..MEMMAP + memmap_entries,
            CMDLINE..CMDLINE + CMDLINE_MAX as u64,
            MP_TABLE..MP_TABLE + MP_TABLE_MAX as u64,
        ];
        assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start));
        assert_eq!(parts[5].end, 0xa_0000);
    }
}
