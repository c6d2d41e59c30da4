//! What a disk needs while it runs without io_uring, and what is on files in general.

use super::{Rule, always};

pub(super) const RULES: &[Rule] = &[
    always(libc::SYS_pread64, "statistics of KVM; reads into one buffer"),
    always(libc::SYS_pwrite64, "writes of zeroes"),
    always(libc::SYS_preadv, "reads into the guest's buffers"),
    always(libc::SYS_pwritev, "writes out of the guest's buffers"),
    always(libc::SYS_fdatasync, "flush"),
    always(libc::SYS_fallocate, "discard and zeroes"),
];
