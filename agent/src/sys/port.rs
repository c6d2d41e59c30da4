//! Ending the machine: the exit port of Hull's monitor, and reboot(2).

use super::check;

/// Writes one byte to an x86 I/O port.
#[cfg(target_arch = "x86_64")]
pub fn write(port: u16, value: u8) -> nix::Result<()> {
    // SAFETY: ioperm only changes this process's I/O permissions; the port belongs to Hull's monitor and has no effect on
    // memory.
    unsafe {
        check(libc::c_long::from(libc::ioperm(libc::c_ulong::from(port), 1, 1)))?;
        std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}

/// Powers the machine off. Returns only on failure.
pub fn power_off() -> nix::Result<()> {
    // SAFETY: LINUX_REBOOT_CMD_POWER_OFF takes no argument.
    check(libc::c_long::from(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF) }))?;
    Ok(())
}

/// Restarts the machine. Returns only on failure.
pub fn restart() -> nix::Result<()> {
    // SAFETY: LINUX_REBOOT_CMD_RESTART takes no argument.
    check(libc::c_long::from(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_RESTART) }))?;
    Ok(())
}
