//! Landlock without a single rule: no file can be opened, no port bound or connected, no process outside be signalled.
//! What was opened before, and what comes over the control socket, stays usable.

use std::ptr;

use nix::errno::Errno;

use super::{JailError, refused};

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;

/// `struct landlock_ruleset_attr`. Older kernels know its beginning only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Handled {
    file_system: u64,
    network: u64,
    scoped: u64,
}

/// What a version of Landlock can refuse (linux/landlock.h).
fn handled(version: i64) -> Handled {
    // The rights of version 1 are bits 0 to 12; REFER, TRUNCATE and IOCTL_DEV came one by one.
    let file_system = match version {
        ..=1 => 13,
        2 => 14,
        3 | 4 => 15,
        5.. => 16,
    };
    Handled {
        file_system: (1 << file_system) - 1,
        // Bind and connect of TCP.
        network: if version >= 4 { 0b11 } else { 0 },
        // Abstract unix sockets and signals.
        scoped: if version >= 6 { 0b11 } else { 0 },
    }
}

/// Closes the process in, as far as the kernel knows how. It must have given up new privileges.
pub fn restrict() -> Result<(), JailError> {
    let version = match create(ptr::null(), 0, VERSION) {
        Ok(version) => version,
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            log::warn!(
                "the host's kernel has no Landlock (5.13), or it is switched off: the jail does without"
            );
            return Ok(());
        }
        Err(errno) => return Err(refused("ask for Landlock")(errno)),
    };
    let handled = handled(version);
    let size = match version {
        ..=3 => size_of::<u64>(),
        4 | 5 => 2 * size_of::<u64>(),
        6.. => size_of::<Handled>(),
    };
    let what = "close itself in with Landlock";
    let rules = create(&raw const handled, size, 0).map_err(refused(what))?;
    // SAFETY: a descriptor that we own, and flags.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) };
    // SAFETY: the descriptor is ours and not used again.
    unsafe { libc::close(i32::try_from(rules).unwrap_or(-1)) };
    Errno::result(restricted).map_err(refused(what)).map(drop)
}

/// `landlock_create_ruleset`: a descriptor, or the version if that is what the flags ask.
fn create(attributes: *const Handled, size: usize, flags: u32) -> nix::Result<i64> {
    // SAFETY: `attributes` is null, or at least `size` bytes are there.
    Errno::result(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size, flags) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_refuses_what_it_knows() {
        let fields = |version| {
            let Handled { file_system, network, scoped } = handled(version);
            (file_system, network, scoped)
        };
        assert_eq!(fields(1), (0x1fff, 0, 0));
        assert_eq!(fields(2), (0x3fff, 0, 0));
        assert_eq!(fields(3), (0x7fff, 0, 0));
        assert_eq!(fields(4), (0x7fff, 3, 0));
        assert_eq!(fields(5), (0xffff, 3, 0));
        assert_eq!(fields(99), (0xffff, 3, 3));
    }
}
