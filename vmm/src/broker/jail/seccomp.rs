//! The system calls of the broker, each with what needs it. Any other kills the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::JailError;

/// Allowed whatever their arguments.
pub const ALLOWED: &[libc::c_long] = &[
    // server.rs: messages in and out, with descriptors.
    libc::SYS_poll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    libc::SYS_close,
    libc::SYS_fcntl,
    // names.rs.
    libc::SYS_openat2,
    libc::SYS_openat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    // The C library's renameat2 without flags.
    libc::SYS_renameat,
    libc::SYS_readlinkat,
    libc::SYS_geteuid,
    // attributes.rs.
    libc::SYS_newfstatat,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_ftruncate,
    libc::SYS_fstatfs,
    // files.rs and directories.rs.
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_getdents64,
    // xattrs.rs.
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fsetxattr,
    libc::SYS_fremovexattr,
    // The heap, the seeds of hash tables, locks of the standard library.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    libc::SYS_futex,
    // The end, by itself or by a panic with its message.
    libc::SYS_write,
    libc::SYS_exit_group,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
];

/// Allowed for memory that no code is in: argument 2 without `PROT_EXEC`.
pub const NOT_EXECUTABLE: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// The filter.
pub fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in ALLOWED {
        rules.insert(*call, Vec::new());
    }
    let executable = libc::PROT_EXEC.cast_unsigned();
    for call in NOT_EXECUTABLE {
        let mask = SeccompCmpOp::MaskedEq(u64::from(executable));
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, mask, 0)?;
        rules.insert(*call, vec![SeccompRule::new(vec![condition])?]);
    }
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    filter.try_into()
}

/// Installs the filter for the calling thread.
pub fn install() -> Result<(), JailError> {
    apply_filter(&program()?)?;
    Ok(())
}
