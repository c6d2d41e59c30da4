//! The MP table (Intel MultiProcessor Specification 1.4 §4), by which a kernel without ACPI finds its processors and
//! interrupt lines.

use crate::layout::{IOAPIC, LOCAL_APIC, MP_TABLE};

/// Inputs of the I/O APIC; interrupt line `n` is input `n`.
pub const INTERRUPT_LINES: u8 = 24;

const POINTER_LENGTH: u32 = 16;
const SPEC_REVISION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const ISA_BUS: u8 = 0;
/// Active high, edge-triggered (§4.3.4).
const EDGE: u16 = 0b0101;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Interrupt types (§4.3.4).
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

/// The floating pointer and the table behind it, to be placed at [`MP_TABLE`]. Every line is an edge-triggered ISA
/// interrupt, the kind irqfd makes.
pub fn build(vcpus: u8) -> Vec<u8> {
    let entries = entries(vcpus);
    let count: u16 = entries.iter().map(|_| 1).sum();
    let body: Vec<u8> = entries.concat();
    let mut table = header(body.len(), count);
    table.extend(body);
    table[7] = checksum(&table);

    let mut image = b"_MP_".to_vec();
    let table_address = u32::try_from(MP_TABLE).unwrap_or(u32::MAX) + POINTER_LENGTH;
    image.extend(table_address.to_le_bytes());
    // Its length in units of 16 bytes, the revision, the checksum, five feature bytes: a table is present, virtual wire.
    image.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    image[10] = checksum(&image);
    image.extend(table);
    image
}

/// The base table's header (§4.2), its checksum still zero.
fn header(body_length: usize, count: u16) -> Vec<u8> {
    const LENGTH: usize = 44;
    let mut header = b"PCMP".to_vec();
    header.extend(u16::try_from(LENGTH + body_length).unwrap_or(u16::MAX).to_le_bytes());
    header.extend([SPEC_REVISION, 0]);
    header.extend(b"HULL    ");
    header.extend(b"MICROVM     ");
    // No OEM table.
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(LOCAL_APIC.to_le_bytes());
    // No extended table.
    header.extend([0; 4]);
    debug_assert_eq!(header.len(), LENGTH);
    header
}

/// The entries in the order of their types, which the specification demands (§4.3).
fn entries(vcpus: u8) -> Vec<Vec<u8>> {
    // The first id that no local APIC has.
    let ioapic_id = vcpus;
    let processors = (0..vcpus).map(processor);
    let bus = [1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' '].to_vec();
    let mut ioapic = vec![2, ioapic_id, IOAPIC_VERSION, 1];
    ioapic.extend(IOAPIC.to_le_bytes());
    let lines =
        (0..INTERRUPT_LINES).map(|line| interrupt(3, VECTORED, EDGE, [ISA_BUS, line, ioapic_id, line]));
    let local = [
        interrupt(4, EXTERNAL, 0, [ISA_BUS, 0, 0, 0]),
        interrupt(4, NMI, 0, [ISA_BUS, 0, ALL_LOCAL_APICS, 1]),
    ];
    processors.chain([bus, ioapic]).chain(lines).chain(local).collect()
}

fn processor(id: u8) -> Vec<u8> {
    const ENABLED: u8 = 1;
    const BOOT_PROCESSOR: u8 = 2;
    // Family 6; FPU and local APIC on chip. Kernels ask CPUID instead.
    const SIGNATURE: u32 = 0x600;
    const FEATURES: u32 = 0x201;
    let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
    let mut entry = vec![0, id, LOCAL_APIC_VERSION, flags];
    entry.extend(SIGNATURE.to_le_bytes());
    entry.extend(FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// An interrupt assignment: entry type 3 to an I/O APIC, 4 to local APICs. `route` is source bus, source line,
/// destination APIC, destination input.
fn interrupt(entry: u8, kind: u8, flags: u16, route: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![entry, kind];
    bytes.extend(flags.to_le_bytes());
    bytes.extend(route);
    bytes
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MP_TABLE_MAX;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u16_at(bytes: &[u8], at: usize) -> usize {
        usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    #[test]
    fn it_can_be_walked_for_every_number_of_processors() {
        for vcpus in 1..=32 {
            let image = build(vcpus);
            assert!(image.len() <= MP_TABLE_MAX, "{} bytes for {vcpus}", image.len());
            let (pointer, table) = image.split_at(16);
            assert_eq!(&pointer[..4], b"_MP_");
            assert_eq!(sum(pointer), 0);
            assert_eq!(pointer[4..8], 0x9_fc10_u32.to_le_bytes());
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(sum(table), 0);
            assert_eq!(u16_at(table, 4), table.len());

            let mut seen = [0_u8; 5];
            let (mut at, mut count) = (44, 0);
            while at < table.len() {
                let kind = table[at];
                if kind == 0 {
                    assert_eq!(table[at + 1], seen[0], "APIC ids ascend");
                    assert_eq!(table[at + 3] & 2 != 0, seen[0] == 0, "the first is the boot processor");
                }
                assert!(seen[usize::from(kind) + 1..].iter().all(|n| *n == 0), "types ascend");
                seen[usize::from(kind)] += 1;
                at += if kind == 0 { 20 } else { 8 };
                count += 1;
            }
            assert_eq!(at, table.len());
            assert_eq!(u16_at(table, 34), count);
            assert_eq!(seen, [vcpus, 1, 1, INTERRUPT_LINES, 2]);
        }
    }
}
