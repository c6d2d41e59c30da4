//! A file mapped into the monitor, for the guest to see. The monitor itself never looks at it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use hull_protocol::vmm::DiskAccess;

/// What guests want start and size of persistent memory to be multiples of, in bytes.
pub const ALIGNMENT: u64 = 2 << 20;

/// A shared mapping of a file from its beginning, and zeroes behind it up to a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub struct FileMapping {
    address: *mut libc::c_void,
    length: usize,
    access: DiskAccess,
}

// SAFETY: it is an address and a length; nobody dereferences it here.
unsafe impl Send for FileMapping {}
// SAFETY: as above; nothing changes between `new` and `drop`.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps the first `length` bytes of a file that is open for as much as `access` says.
    pub fn new(file: &File, length: u64, access: DiskAccess) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let whole = length.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_large)?;
        let (whole, length) = (usize::try_from(whole), usize::try_from(length));
        let (Ok(whole), Ok(length)) = (whole, length) else { return Err(too_large()) };
        let protection = match access {
            DiskAccess::ReadOnly => libc::PROT_READ,
            DiskAccess::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let zeroes = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe { libc::mmap(ptr::null_mut(), whole, protection, zeroes, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // From here on it is unmapped when something fails.
        let mapping = Self { address, length: whole, access };
        let shared = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: it replaces the front of the mapping just made, which nobody uses yet.
        let front = unsafe { libc::mmap(address, length, protection, shared, file.as_raw_fd(), 0) };
        if front == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is that of the mapping; MADV_DONTDUMP changes no contents.
        if unsafe { libc::madvise(address, whole, libc::MADV_DONTDUMP) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    /// Where it is in the monitor.
    pub fn address(&self) -> u64 {
        self.address as u64
    }

    /// In bytes, a multiple of [`ALIGNMENT`].
    pub fn length(&self) -> u64 {
        self.length as u64
    }

    /// What the guest may do.
    pub fn access(&self) -> DiskAccess {
        self.access
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; a VM that refers to it holds a share.
        if unsafe { libc::munmap(self.address, self.length) } != 0 {
            log::error!("cannot unmap a file: {}", io::Error::last_os_error());
        }
    }
}
