//! The PVH boot protocol (Xen `docs/misc/pvh.pandoc`): what the entry point finds through EBX.

use std::ops::Range;

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::load_cmdline;
use vm_memory::GuestAddress;

use crate::layout::{CMDLINE, MEMMAP, MODULES, RamSize, START_INFO};
use crate::memory::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The version of `hvm_start_info` that has a memory map.
const VERSION: u32 = 1;

/// Why the start info cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StartInfoError {
    /// The command line.
    #[error("cannot write the kernel command line")]
    Cmdline(#[source] linux_loader::loader::Error),
    /// The rest.
    #[error("cannot write the PVH start info")]
    StartInfo(#[source] linux_loader::configurator::Error),
}

/// Writes command line, memory map, module list (the initramfs) and start info.
pub fn write_start_info(
    memory: &GuestMemory,
    ram: RamSize,
    initramfs: &Range<u64>,
    line: &Cmdline,
) -> Result<(), StartInfoError> {
    load_cmdline(memory, GuestAddress(CMDLINE), line).map_err(StartInfoError::Cmdline)?;
    let memmap = ram.memmap();
    let module = hvm_modlist_entry {
        paddr: initramfs.start,
        size: initramfs.end - initramfs.start,
        cmdline_paddr: 0,
        reserved: 0,
    };
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: 1,
        modlist_paddr: MODULES,
        cmdline_paddr: CMDLINE,
        memmap_paddr: MEMMAP,
        memmap_entries: u32::try_from(memmap.len()).unwrap_or(u32::MAX),
        ..hvm_start_info::default()
    };
    let mut parameters = BootParams::new(&start_info, GuestAddress(START_INFO));
    parameters.set_sections(&memmap, GuestAddress(MEMMAP));
    parameters.set_modules(&[module], GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(StartInfoError::StartInfo)
}
