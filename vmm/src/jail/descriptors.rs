//! Descriptors that whoever started the monitor has leaked into it.

use hull_protocol::vmm::CONTROL_FD;
use nix::errno::Errno;

use super::{JailError, refused};

/// Closes everything behind the control socket. What the monitor works with comes over that, later.
pub fn close_leaked() -> Result<(), JailError> {
    let first = CONTROL_FD.cast_unsigned() + 1;
    // SAFETY: this program has opened no descriptor yet, so none that is closed has an owner here.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(done).map_err(refused("close the descriptors that it does not know")).map(drop)
}
