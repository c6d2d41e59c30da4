//! What the machine has.

/// The memory that the kernel manages, in bytes (sysinfo(2)).
pub fn total_memory() -> u64 {
    // SAFETY: all zeros are a valid value of this plain structure.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call, which fails for a wrong address only.
    unsafe { libc::sysinfo(&raw mut info) };
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}
