//! Capabilities, given up: permitted, effective, inheritable, ambient, and the bounding set where that is allowed. The
//! monitor keeps none, the file broker a few of the lowest 32.

use nix::errno::Errno;

use super::{JailError, refused};

/// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
const VERSION: u32 = 0x2008_0522;
/// `CAP_SETPCAP`.
const SETPCAP: u32 = 8;
/// More than any kernel has (two words of bits).
const NUMBERS: u32 = 64;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn get() -> nix::Result<[Sets; 2]> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the structures are those of this version of the call, which writes two sets.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    Errno::result(done).map(|_| sets)
}

fn set(sets: &[Sets; 2]) -> nix::Result<()> {
    let mut header = Header { version: VERSION, pid: 0 };
    // SAFETY: the structures are those of this version of the call, which reads two sets.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Empties all sets of the process except for its bounds, and but for what is `kept`.
pub fn reduce_to(kept: &[u32]) -> Result<(), JailError> {
    // SAFETY: this prctl takes numbers.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Errno::result(cleared).map_err(refused("clear its ambient capabilities"))?;
    let kept = kept.iter().fold(0, |set, capability| set | 1 << capability);
    let low = Sets { effective: kept, permitted: kept, inheritable: 0 };
    set(&[low, Sets::default()]).map_err(refused("give up its capabilities"))
}

/// Empties all sets of the process except for its bounds.
pub fn drop_all() -> Result<(), JailError> {
    reduce_to(&[])
}

/// Whether the process may give up the capabilities that a program it executes could gain.
pub fn may_drop_bounding() -> Result<bool, JailError> {
    Ok(get().map_err(refused("look at its capabilities"))?[0].effective & 1 << SETPCAP != 0)
}

/// Empties the bounding set but for what is `kept`.
pub fn bound_to(kept: &[u32]) -> Result<(), JailError> {
    for capability in bounding().filter(|capability| !kept.contains(capability)) {
        // SAFETY: this prctl takes numbers.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        Errno::result(done).map_err(refused("bound its capabilities"))?;
    }
    Ok(())
}

/// Whether no program can gain a capability here.
pub fn bounding_is_empty() -> Result<bool, JailError> {
    Ok(bounding().next().is_none())
}

/// Whether the process has none.
pub fn are_gone() -> Result<bool, JailError> {
    Ok(get().map_err(refused("look at its capabilities"))? == [Sets::default(); 2])
}

/// The capabilities within bounds. The kernel refuses numbers that it does not know.
fn bounding() -> impl Iterator<Item = u32> {
    // SAFETY: this prctl takes numbers.
    (0..NUMBERS).filter(|capability| unsafe { libc::prctl(libc::PR_CAPBSET_READ, *capability, 0, 0, 0) } == 1)
}
