//! Guest memory: anonymous, private, left out of core dumps.

use std::io;
use std::ops::Range;

use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout::RamSize;

/// The guest's physical memory, shared by cloning.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Why guest memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refused.
    #[error("cannot reserve {bytes} bytes of guest memory")]
    Map {
        /// The size of the piece that was refused.
        bytes: u64,
        /// The host's reason.
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The host would have written guest memory into core dumps.
    #[error("cannot keep guest memory out of core dumps")]
    Advise(#[source] io::Error),
    /// The layout makes no sense.
    #[error("the memory layout is wrong")]
    Layout(#[from] vm_memory::GuestRegionCollectionError),
}

/// Memory of the given size, and a region behind it in which more can be plugged: all zero, of which the host gives
/// pages as they are touched.
pub fn allocate(size: RamSize, hotplug: Option<Range<u64>>) -> Result<GuestMemory, MemoryError> {
    let regions = size
        .ranges()
        .into_iter()
        .chain(hotplug)
        .map(|range| {
            let bytes = range.end - range.start;
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            let mapping = MmapRegion::build(
                None,
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            )
            .map_err(|source| MemoryError::Map { bytes, source })?;
            // SAFETY: the range is the mapping made above; MADV_DONTDUMP changes no contents.
            let advised =
                unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) };
            if advised != 0 {
                return Err(MemoryError::Advise(io::Error::last_os_error()));
            }
            let overflow = vm_memory::GuestRegionCollectionError::UnsortedMemoryRegions;
            GuestRegionMmap::new(mapping, GuestAddress(range.start)).ok_or(MemoryError::Layout(overflow))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(GuestMemory::from_regions(regions)?)
}
