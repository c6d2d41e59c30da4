//! Compiles the `linux.seccomp` object of an OCI runtime-spec (config-linux.md "Seccomp") to the classic BPF of seccomp(2).
//!
//! For x86-64 kernels, with the 32-bit and x32 calls that such a kernel may serve. Pure: no system call, no global state, no C
//! library. A profile means what it means to runc and libseccomp; where they are laxer, `compile` says so.
//!
//! | module | what it is for |
//! |---|---|
//! | `profile` | the JSON object, checked |
//! | `arch` | system call numbers of each architecture |
//! | `compile` | which call gets which verdict, as a search tree |
//! | `bpf` | instructions and jumps |
//! | `evaluate` | what a program says to one call, for tests |

mod arch;
mod bpf;
mod compile;
mod evaluate;
mod profile;

#[cfg(test)]
mod tests;

pub use arch::Architecture;
pub use bpf::Instruction;
pub use compile::{Filter, compile};
pub use evaluate::{Call, Fault, evaluate};
pub use profile::{Condition, Operator, Profile, Rule, Verdict};

/// Why a profile cannot become a filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the JSON that the specification describes.
    #[error("linux.seccomp is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// A value that cannot be right.
    #[error("linux.seccomp.{field}: {reason}")]
    Invalid {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A field that means something which cannot be done here.
    #[error("linux.seccomp.{field}: {reason}")]
    Unsupported {
        /// The field's name.
        field: &'static str,
        /// What cannot be done.
        reason: String,
    },
    /// The kernel takes no longer program (`BPF_MAXINSNS`).
    #[error("linux.seccomp: the filter has {0} instructions, more than the 4096 that the kernel takes")]
    TooLong(usize),
}

impl Error {
    fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    fn unsupported(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Unsupported { field, reason: reason.into() }
    }
}
