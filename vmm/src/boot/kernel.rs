//! Loads the kernel and the initramfs straight from their files into guest memory.

use std::fs::File;
use std::io;
use std::ops::Range;

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::source::Source;
use crate::layout::{HIGH_MEMORY, RamSize};
use crate::memory::GuestMemory;

const PAGE: u64 = 4096;

/// Why a kernel or an initramfs cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not an ELF file, or a broken one, or one that does not fit.
    #[error("cannot load the kernel, which must be an x86-64 ELF vmlinux")]
    Elf(#[source] loader::Error),
    /// The ELF file says nowhere where to enter it.
    #[error("the kernel has no PVH note: it must be built with CONFIG_PVH")]
    NoPvhNote,
    /// It wants to be started or to end outside of where it was loaded.
    #[error("the kernel does not fit: it ends at {end:#x} and starts at {entry:#x}, but has {:#x} to {:#x}", room.start, room.end)]
    DoesNotFit {
        /// The end of its last segment.
        end: u64,
        /// Its PVH entry.
        entry: u64,
        /// Where it may be.
        room: Range<u64>,
    },
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs")]
    Initramfs(#[source] io::Error),
    /// There is nothing in it.
    #[error("the initramfs is empty")]
    EmptyInitramfs,
    /// The initramfs does not fit between kernel and the end of low memory.
    #[error("the initramfs of {size} bytes does not fit behind the kernel: give the VM more memory")]
    InitramfsDoesNotFit {
        /// Its size.
        size: u64,
    },
    /// The initramfs ended early, or could not be read.
    #[error("cannot load the initramfs")]
    InitramfsRead(#[source] vm_memory::GuestMemoryError),
}

/// Where things are after loading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The PVH entry, a 32-bit physical address.
    pub entry: u32,
    /// The initramfs.
    pub initramfs: Range<u64>,
}

/// Loads both. The kernel goes where its ELF segments say, the initramfs to the top of low memory.
pub fn load(
    memory: &GuestMemory,
    ram: RamSize,
    kernel: &File,
    initramfs: &File,
) -> Result<Loaded, KernelError> {
    let room = HIGH_MEMORY..ram.low_end();
    let loaded = Elf::load(memory, None, &mut Source::new(kernel), Some(GuestAddress(room.start)))
        .map_err(KernelError::Elf)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(KernelError::NoPvhNote);
    };
    let (entry, end) = (entry.raw_value(), loaded.kernel_end);
    let fits = end <= room.end && (room.start..end).contains(&entry);
    let entry32 = u32::try_from(entry).ok().filter(|_| fits);
    let Some(entry) = entry32 else {
        return Err(KernelError::DoesNotFit { end, entry, room });
    };
    Ok(Loaded { entry, initramfs: load_initramfs(memory, initramfs, end..room.end)? })
}

fn load_initramfs(memory: &GuestMemory, file: &File, room: Range<u64>) -> Result<Range<u64>, KernelError> {
    let size = file.metadata().map_err(KernelError::Initramfs)?.len();
    if size == 0 {
        return Err(KernelError::EmptyInitramfs);
    }
    let start =
        room.end.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|start| *start >= room.start);
    let (Some(start), Ok(length)) = (start, usize::try_from(size)) else {
        return Err(KernelError::InitramfsDoesNotFit { size });
    };
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut Source::new(file), length)
        .map_err(KernelError::InitramfsRead)?;
    Ok(start..start + size)
}
