//! The VM around a container: how large it is and who ends it. Written as annotations, read by the shim.

use hull_shim::config::VmDefaults;
use hull_shim::size;

use crate::quantity::{Bytes, Cpus};

/// Guest memory without `-m`, in MiB.
const DEFAULT_MEMORY_MIB: u64 = 512;
/// vCPUs without `--cpus`: a second one costs exits at boot, and most commands have no use for it.
const DEFAULT_VCPUS: u64 = 1;
/// The most vCPUs a VM can have.
const MAX_VCPUS: u64 = 32;
/// The most memory a VM can have, in MiB: 1 TiB.
const MAX_MEMORY_MIB: u64 = 1 << 20;

/// Why there can be no such VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmSizeError {
    /// More memory than a VM can have.
    #[error("the memory limit is too large: a microVM has at most 1 TiB")]
    Memory,
    /// More vCPUs than a VM can have.
    #[error("too many CPUs: a microVM has at most {MAX_VCPUS}")]
    Cpus,
    /// More CPUs than the host has; docker refuses that too.
    #[error("range of CPUs is from 0.01 to {0}.00, as there are only {0} CPUs available")]
    HostCpus(u64),
}

/// Shape of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmSize {
    /// Number of vCPUs.
    pub vcpus: u64,
    /// Guest memory in MiB.
    pub memory_mib: u64,
}

impl VmSize {
    /// The VM for a container with these limits on a host with `host_cpus`.
    pub fn for_limits(
        memory: Option<Bytes>,
        cpus: Option<Cpus>,
        host_cpus: u64,
    ) -> Result<Self, VmSizeError> {
        let vcpus = match cpus {
            None => DEFAULT_VCPUS,
            Some(cpus) if cpus.ceil() > host_cpus => return Err(VmSizeError::HostCpus(host_cpus)),
            Some(cpus) => cpus.ceil(),
        };
        let of_limit = |limit: Bytes| size::memory_mib(limit.0, VmDefaults::default().overhead_mib);
        let memory_mib = memory.map_or(DEFAULT_MEMORY_MIB, of_limit);
        if vcpus > MAX_VCPUS {
            return Err(VmSizeError::Cpus);
        }
        if memory_mib > MAX_MEMORY_MIB {
            return Err(VmSizeError::Memory);
        }
        Ok(Self { vcpus, memory_mib })
    }

    /// As the shim reads it.
    pub fn annotations(self) -> [(String, String); 2] {
        [
            ("dev.hull.vm.vcpus".to_owned(), self.vcpus.to_string()),
            ("dev.hull.vm.memory-mib".to_owned(), self.memory_mib.to_string()),
        ]
    }
}

/// Who ends the VM and removes the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// This process, which waits for the container.
    Managed,
    /// The shim, which keeps the bundle.
    Keep,
    /// The shim, which removes the bundle.
    Remove,
}

impl Lifecycle {
    /// The annotation's name.
    pub const ANNOTATION: &str = "dev.hull.lifecycle";

    /// The annotation's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::Keep => "keep",
            Self::Remove => "remove",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_is_larger_than_the_limit() {
        let size = |memory: Option<&str>, cpus: Option<&str>, host| {
            VmSize::for_limits(memory.map(|m| m.parse().unwrap()), cpus.map(|c| c.parse().unwrap()), host)
        };
        assert_eq!(size(None, None, 8), Ok(VmSize { vcpus: 1, memory_mib: 512 }));
        assert_eq!(size(None, None, 1), Ok(VmSize { vcpus: 1, memory_mib: 512 }));
        assert_eq!(size(Some("64m"), Some("0.5"), 8), Ok(VmSize { vcpus: 1, memory_mib: 194 }));
        assert_eq!(size(Some("65537k"), Some("2.5"), 8), Ok(VmSize { vcpus: 3, memory_mib: 196 }));
        assert_eq!(size(None, Some("2.5"), 2), Err(VmSizeError::HostCpus(2)));
        assert_eq!(size(None, Some("33"), 64), Err(VmSizeError::Cpus));
        assert_eq!(size(Some("2t"), None, 2), Err(VmSizeError::Memory));
    }
}
