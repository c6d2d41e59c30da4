//! When and where a process runs: sched_setattr(2), ioprio_set(2), sched_setaffinity(2); and personality(2).

use super::check;

/// `struct sched_attr`, without what later kernels added to its end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerAttributes {
    /// Of this structure; set by [`set_scheduler`].
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the ordinary policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`, nanoseconds.
    pub period: u64,
}

/// A set of up to 1024 processors, one bit each.
pub type CpuSet = [u64; 16];

/// Sets a process's scheduling policy; 0 is the caller.
pub fn set_scheduler(pid: libc::pid_t, attributes: &SchedulerAttributes) -> nix::Result<()> {
    #[allow(clippy::cast_possible_truncation, reason = "48 bytes")]
    let attributes = SchedulerAttributes { size: size_of::<SchedulerAttributes>() as u32, ..*attributes };
    // SAFETY: the structure says its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) })?;
    Ok(())
}

/// Sets a process's I/O priority; 0 is the caller: the class in the upper three bits of 16, the level in the lower 13.
pub fn set_io_priority(pid: libc::pid_t, priority: u16) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: integers.
    check(unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, libc::c_int::from(priority))
    })?;
    Ok(())
}

/// Sets on which processors a process may run; 0 is the caller.
pub fn set_affinity(pid: libc::pid_t, cpus: &CpuSet) -> nix::Result<()> {
    // SAFETY: the set and its size belong together.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of::<CpuSet>(), cpus.as_ptr()) })?;
    Ok(())
}

/// Sets the calling process's execution domain.
pub fn set_personality(domain: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: an integer.
    check(libc::c_long::from(unsafe { libc::personality(domain) }))?;
    Ok(())
}
