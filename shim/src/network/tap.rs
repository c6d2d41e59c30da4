//! A tap beside an interface: a link whose other end is a descriptor, for the monitor to hold.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use hull_netlink::link::{self, Change, LinkLocal, State, Statistics};
use hull_netlink::{Link, Socket};
use nix::errno::Errno;

use super::{NetworkError, kernel};

const DEVICE: &str = "/dev/net/tun";
/// The kernel puts a number in.
const NAME: &[u8] = b"hull%d";

/// Makes a tap for frames with virtio's header, in the namespace of the calling thread, and brings it up with the interface's
/// MTU. It goes when the descriptor is closed. Returns its number in the namespace too.
pub fn make(socket: &Socket, interface: &Link) -> Result<(OwnedFd, u32), NetworkError> {
    let failed =
        |source| NetworkError::Namespace { what: format!("make a tap for {}", interface.name), source };
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .map_err(failed)?;
    let name = claim(&device).map_err(failed)?;
    let links = link::list(socket, Statistics::Without).map_err(kernel(|| "list the links".to_owned()))?;
    let tap =
        links.iter().find(|link| link.name == name).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let change = Change {
        mtu: Some(interface.mtu),
        state: Some(State::Up),
        // The host has nothing to say on it, to nobody.
        link_local: Some(LinkLocal::ByHand),
        ..Change::default()
    };
    link::change(socket, tap.index, &change).map_err(kernel(|| format!("bring {name} up")))?;
    Ok((device.into(), tap.index))
}

/// Lets a tap carry what its interface carries now.
pub fn follow(socket: &Socket, tap: u32, interface: &Link) -> Result<(), NetworkError> {
    let change = Change { mtu: Some(interface.mtu), ..Change::default() };
    link::change(socket, tap, &change)
        .map_err(kernel(|| format!("set the MTU of the tap of {}", interface.name)))
}

/// Makes the tap of an open tun device, and tells its name (`TUNSETIFF`).
fn claim(device: &File) -> io::Result<String> {
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: the request takes an `ifreq`, which lives through the call; the kernel writes the name.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: the kernel ends the name with NUL inside the array.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    Ok(name.to_string_lossy().into_owned())
}

/// A tap that is joined to nothing.
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests only")]
pub fn bare() -> OwnedFd {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE).unwrap();
    claim(&device).unwrap();
    device.into()
}
