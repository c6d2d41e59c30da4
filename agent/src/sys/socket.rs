//! Network interfaces, as far as a container without a network needs them.

use super::{check, owned};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Brings the loopback interface of the calling process's network namespace up.
pub fn loopback_up() -> nix::Result<()> {
    // SAFETY: plain integers.
    let socket = owned(libc::c_long::from(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: all-zero bytes are a valid `ifreq`; the name fits and stays NUL-terminated; the request takes an `ifreq`, and
    // `ifru_flags` is the member it uses.
    unsafe {
        let mut request = std::mem::zeroed::<libc::ifreq>();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        #[allow(clippy::cast_possible_truncation, reason = "IFF_UP is 1 and the kernel's field is a short")]
        let up = libc::IFF_UP as libc::c_short;
        // Of the flags that can be changed, a loopback interface has no other.
        request.ifr_ifru.ifru_flags = up;
        check(libc::c_long::from(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request)))?;
    }
    Ok(())
}

/// A connected pair of message sockets that keep message boundaries.
pub fn message_pair() -> nix::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [libc::c_int; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors; on success both are new and ours.
    unsafe {
        check(libc::c_long::from(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr())))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Room for one descriptor as ancillary data, aligned as its header must be.
#[repr(C, align(8))]
struct Ancillary([u8; 24]);

/// Sends one message, with a copy of descriptor `attached` if there is one. A closed peer is an error, not a signal.
pub fn send(socket: BorrowedFd<'_>, data: &[u8], attached: Option<BorrowedFd<'_>>) -> nix::Result<()> {
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut ancillary = Ancillary([0; 24]);
    // SAFETY: all-zero bytes are a valid `msghdr`; the header, its parts and buffers outlive the call; CMSG_SPACE of one
    // descriptor is 24 bytes, so the ancillary header and the descriptor lie inside `ancillary`.
    unsafe {
        let mut message = std::mem::zeroed::<libc::msghdr>();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Some(attached) = attached {
            message.msg_control = (&raw mut ancillary).cast();
            message.msg_controllen = size_of::<Ancillary>();
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(attached.as_raw_fd());
        }
        check(libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) as libc::c_long)?;
    }
    Ok(())
}

/// Receives one message into `buffer`; returns its length (0: the peer is closed) and the descriptor that came with it.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: libc::c_int,
) -> nix::Result<(usize, Option<OwnedFd>)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut ancillary = Ancillary([0; 24]);
    // SAFETY: as in `send`; a descriptor that the kernel put into the ancillary data is new and ours.
    unsafe {
        let mut message = std::mem::zeroed::<libc::msghdr>();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut ancillary).cast();
        message.msg_controllen = size_of::<Ancillary>();
        let flags = flags | libc::MSG_CMSG_CLOEXEC;
        let count = check(libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) as libc::c_long)?;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let mut attached = None;
        if !header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS
            && (*header).cmsg_len == libc::CMSG_LEN(4) as usize
        {
            let fd = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
            attached = Some(OwnedFd::from_raw_fd(fd));
        }
        Ok((usize::try_from(count).unwrap_or(0), attached))
    }
}
