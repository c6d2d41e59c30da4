//! Guest memory between pages that may not be touched, for tests and fuzz targets: a byte beyond either end of a region
//! ends the process.

#![allow(clippy::unwrap_used, reason = "tests only")]

use std::io;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::memory::GuestMemory;

const PAGE: usize = 4096;

/// Regions of guest memory, each between guard pages.
#[derive(Debug)]
pub struct Memory {
    /// What devices are given.
    pub guest: GuestMemory,
    mappings: Vec<(*mut libc::c_void, usize)>,
}

impl Memory {
    /// Regions by their guest address and their size in bytes, whole pages.
    pub fn new(regions: &[(u64, usize)]) -> Self {
        let mut mappings = Vec::new();
        let regions = regions.iter().map(|(base, size)| {
            let whole = size + 2 * PAGE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let map = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
            assert_ne!(map, libc::MAP_FAILED);
            let inner = map.wrapping_byte_add(PAGE);
            // SAFETY: inside the mapping just made.
            let result = unsafe { libc::mprotect(inner, *size, libc::PROT_READ | libc::PROT_WRITE) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
            mappings.push((map, whole));
            // SAFETY: the range is mapped until `drop`, which comes after that of all users.
            let region = unsafe { MmapRegionBuilder::new(*size).with_raw_mmap_pointer(inner.cast()) };
            let region = region.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).with_mmap_flags(flags);
            GuestRegionMmap::new(region.build().unwrap(), GuestAddress(*base)).unwrap()
        });
        let guest = GuestMemoryMmap::from_regions(regions.collect()).unwrap();
        Self { guest, mappings }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for (map, size) in &self.mappings {
            // SAFETY: mapped in `new`; what uses it is dropped first: nobody keeps guest memory longer than this.
            assert_eq!(unsafe { libc::munmap(*map, *size) }, 0);
        }
    }
}
