//! Guest memory goes back to the host, by guest physical addresses.

use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::segments::{GivenBack, Segments};
use crate::memory::GuestMemory;

/// Gives back the whole pages of a range that are guest memory. They read as zeroes when they are touched again.
pub fn give_back(memory: &GuestMemory, range: &Range<u64>) -> GivenBack {
    let mut total = GivenBack::default();
    for region in memory.iter() {
        let base = region.start_addr().0;
        let start = range.start.max(base);
        let Some(length) = range.end.min(base.saturating_add(region.len())).checked_sub(start) else {
            continue;
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if let Ok(slice) = region.get_slice(MemoryRegionAddress(start - base), length) {
            total.add(Segments::new(&[slice]).give_back());
        }
    }
    // What is in no region, or was not whole pages of one.
    total.refused = (range.end - range.start).saturating_sub(total.bytes);
    total
}
