//! The seccomp filter that comes with a spec: compiled by the host, installed by the kernel. Here only its outer shape is checked.

use super::SpecError;

const FIELD: &str = "linux.seccomp";
/// `BPF_MAXINSNS`.
const INSTRUCTIONS_MAX: usize = 4096;
/// `SECCOMP_FILTER_FLAG_TSYNC`, `_LOG` and `_SPEC_ALLOW`: the flags that leave no descriptor behind.
const FLAGS: u32 = 0b111;

/// A program for seccomp(2).
#[derive(Clone)]
pub struct SeccompFilter {
    /// At most 4096.
    pub program: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

impl std::fmt::Debug for SeccompFilter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SeccompFilter({} instructions, flags {:#x})", self.program.len(), self.flags)
    }
}

impl SeccompFilter {
    /// From an array of `struct sock_filter` as bytes.
    pub fn from_bytes(program: &[u8], flags: u32) -> Result<Self, SpecError> {
        let (instructions, rest) = program.as_chunks::<8>();
        if !rest.is_empty() || !(1..=INSTRUCTIONS_MAX).contains(&instructions.len()) {
            return Err(SpecError::invalid(FIELD, format!("{} bytes are not a filter", program.len())));
        }
        if flags & !FLAGS != 0 {
            return Err(SpecError::unsupported(FIELD, format!("filter flags {flags:#x} are not supported")));
        }
        let program = instructions
            .iter()
            .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| libc::sock_filter {
                code: u16::from_le_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            })
            .collect();
        Ok(Self { program, flags })
    }
}
