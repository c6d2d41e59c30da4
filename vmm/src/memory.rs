//! Guest memory.

/// The guest's physical memory, shared by cloning.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
