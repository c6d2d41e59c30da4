//! A tap for a test. Needs root. The monitor's benchmark uses this file, too.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};

/// A tap in a network namespace of its own, which lives as long as the descriptor.
pub fn tap() -> OwnedFd {
    std::thread::spawn(tap_of_this_thread).join().unwrap()
}

/// The same, in a namespace that the calling thread goes to for good.
pub fn tap_of_this_thread() -> OwnedFd {
    unshare(CloneFlags::CLONE_NEWNET).expect("taps need root");
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    // SAFETY: the request reads and writes one `ifreq`, which lives through the call.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }, 0);
    OwnedFd::from(tap)
}
