//! KVM's own counters of a vCPU (KVM API §4.133, `KVM_GET_STATS_FD`).

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

const HEADER: usize = 24;
/// A descriptor without its name.
const DESCRIPTOR: usize = 16;
/// More than any kernel has, so that a wrong header cannot make us read for ever.
const DESCRIPTORS_MAX: u32 = 1024;
const NAME_MAX: u32 = 256;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct Statistics {
    file: File,
}

impl Statistics {
    /// The vCPU's counters, or `None` where the kernel (before 5.14) has none.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: a vCPU descriptor and a request without argument.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD) };
        // SAFETY: the kernel has just made this descriptor for us.
        (fd >= 0).then(|| Self { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// The value of a counter, or `None` where the kernel has no such counter.
    pub fn read(&self, name: &str) -> Option<u64> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, 0).ok()?;
        let field = |index: usize| u32_at(&header, index * 4);
        let (name_size, count) = (field(1)?, field(2)?);
        let (descriptors, data) = (u64::from(field(4)?), u64::from(field(5)?));
        if name_size > NAME_MAX || count > DESCRIPTORS_MAX {
            return None;
        }
        let size = DESCRIPTOR + usize::try_from(name_size).ok()?;
        let mut descriptor = vec![0; size];
        for index in 0..u64::from(count) {
            self.file.read_exact_at(&mut descriptor, descriptors + index * size as u64).ok()?;
            if is_named(&descriptor[DESCRIPTOR..], name) {
                let offset = u32_at(&descriptor, 8)?;
                let mut value = [0; 8];
                self.file.read_exact_at(&mut value, data + u64::from(offset)).ok()?;
                return Some(u64::from_le_bytes(value));
            }
        }
        None
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn is_named(field: &[u8], name: &str) -> bool {
    field.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
}
