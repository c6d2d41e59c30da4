//! The capabilities that the ownership of files needs, and none besides (capabilities(7)).

use std::io;

use super::{JailError, step};

/// Each with what it is for.
pub const KEPT: [u32; 4] = [
    // CAP_CHOWN: what the guest makes is the guest's user's.
    0,
    // CAP_DAC_OVERRIDE: the guest's kernel has checked permissions, with groups that the broker does not know.
    1, // CAP_FOWNER: modes and times of files of any of the guest's users.
    3, // CAP_FSETID: set-group-id bits, as the guest's kernel decided.
    4,
];

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops every other capability, from the bounding set first.
pub fn reduce() -> Result<(), JailError> {
    for capability in (0..64).filter(|capability| !KEPT.contains(capability)) {
        // SAFETY: takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        if result != 0 {
            let error = io::Error::last_os_error();
            // Beyond the last one that the kernel knows.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return step("drop a capability for good", Err(error));
        }
    }
    // SAFETY: takes numbers only.
    let ambient = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    step("clear ambient capabilities", check(i64::from(ambient)))?;
    let kept = KEPT.iter().fold(0, |set, capability| set | 1 << capability);
    let header = Header { version: VERSION_3, pid: 0 };
    let low = Data { effective: kept, permitted: kept, inheritable: 0 };
    let data = [low, Data { effective: 0, permitted: 0, inheritable: 0 }];
    // SAFETY: both point to what version 3 of the call expects: a header and two structures.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    step("reduce capabilities", check(result))
}

fn check(result: i64) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
