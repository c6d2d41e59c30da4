//! What the driver says about the guest's memory (virtio 1.3 §5.5.6.3). For people to read: nothing is decided by it.

use hull_protocol::vmm::GuestMemoryStats;

use crate::virtio::segments::Segments;

/// A tag of 16 and a value of 64 bits, packed.
const ENTRY_LENGTH: usize = 10;
/// The most entries that are looked at; the standard knows sixteen tags.
const ENTRIES_MAX: usize = 32;

/// The figures that are known by their tags. Of several with one tag the last counts.
pub fn parse(buffer: Segments<'_, '_>) -> GuestMemoryStats {
    let mut bytes = [0; ENTRY_LENGTH * ENTRIES_MAX];
    let length = buffer.copy_to(&mut bytes);
    let mut stats = GuestMemoryStats::default();
    for [tag_low, tag_high, value @ ..] in bytes[..length].as_chunks::<ENTRY_LENGTH>().0 {
        let value = Some(u64::from_le_bytes(*value));
        match u16::from_le_bytes([*tag_low, *tag_high]) {
            0 => stats.swapped_in_bytes = value,
            1 => stats.swapped_out_bytes = value,
            2 => stats.major_faults = value,
            3 => stats.minor_faults = value,
            4 => stats.free_bytes = value,
            5 => stats.total_bytes = value,
            6 => stats.available_bytes = value,
            7 => stats.cache_bytes = value,
            _ => {}
        }
    }
    stats
}
