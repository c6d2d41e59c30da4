//! One rtnetlink socket: requests that are acknowledged, and lists. It stays in the network namespace in which it was opened,
//! whoever uses it and from where.
//!
//! The kernel does what is asked while it takes the request, so that the answer is there when `send` returns: nothing here
//! waits for anybody but the kernel, and not for long.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::message::{self, Message, u32_at};

/// The longest datagram of the kernel, in bytes: it fills what it is offered up to 32 KiB.
const DATAGRAM_MAX: usize = 32 << 10;
/// The most entries of a list.
const ENTRIES_MAX: usize = 1 << 16;
/// A list that changed while it was read is read again, but not for ever.
const ATTEMPTS: u32 = 8;
/// The kernel answers at once; this is for a kernel that does not.
const PATIENCE_SECS: i64 = 30;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const ERROR_TEXT: u16 = 1;

/// The kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", errno.desc(), text.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct Error {
    /// Why.
    pub errno: Errno,
    /// In the kernel's own words, where it has some.
    pub text: Option<String>,
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = io::Error::from(error.errno).kind();
        Self::new(kind, error.to_string())
    }
}

/// A socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// A socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECS))?;
        explain(&fd)?;
        Ok(Self { fd, sequence: Cell::new(1) })
    }

    /// Asks for something, and waits until it is done.
    pub(crate) fn request(&self, message: Message) -> Result<(), Error> {
        let sequence = self.send(message)?;
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let length = self.receive(&mut datagram)?;
            for reply in message::replies(&datagram[..length]).filter(|reply| reply.sequence == sequence) {
                if i32::from(reply.kind) == libc::NLMSG_ERROR {
                    return outcome(&reply);
                }
            }
        }
    }

    /// Asks for a list; `parse` makes an entry of a message's body, or passes it over.
    pub(crate) fn list<T>(
        &self,
        message: &Message,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(entries) = self.list_once(message.clone(), &parse)? {
                return Ok(entries);
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// `None` where the list changed meanwhile.
    fn list_once<T>(
        &self,
        message: Message,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let sequence = self.send(message)?;
        let mut datagram = vec![0; DATAGRAM_MAX];
        let mut entries = Vec::new();
        let mut whole = true;
        loop {
            let length = self.receive(&mut datagram)?;
            for reply in message::replies(&datagram[..length]).filter(|reply| reply.sequence == sequence) {
                whole &= i32::from(reply.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(reply.kind) {
                    libc::NLMSG_DONE => return Ok(whole.then_some(entries)),
                    libc::NLMSG_ERROR => outcome(&reply)?,
                    _ if entries.len() >= ENTRIES_MAX => return Err(Errno::EMSGSIZE.into()),
                    _ => entries.extend(parse(reply.body)),
                }
            }
        }
    }

    fn send(&self, message: Message) -> Result<u32, Error> {
        let sequence = self.sequence.get();
        self.sequence.set(sequence.wrapping_add(1).max(1));
        let bytes = message.finish(sequence);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(sequence)
    }

    fn receive(&self, datagram: &mut [u8]) -> Result<usize, Error> {
        loop {
            match recv(self.fd.as_raw_fd(), datagram, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT.into()),
                other => return Ok(other?),
            }
        }
    }
}

/// A non-blocking socket that becomes readable when a link, an address, a route or a neighbour of its namespace changes.
#[derive(Debug)]
pub struct Watcher(OwnedFd);

impl Watcher {
    /// A watcher of the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV6_ROUTE,
        ];
        let groups = groups.iter().fold(0, |all, group| all | 1 << (group - 1));
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(fd))
    }

    /// Forgets what it was told: that something has changed is all there is to know.
    pub fn drain(&self) -> Result<(), Error> {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            match recv(self.0.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                // ENOBUFS: more has changed than was kept.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// Has the kernel say why it refuses (`NETLINK_EXT_ACK`), and not repeat what it was asked (`NETLINK_CAP_ACK`).
fn explain(fd: &OwnedFd) -> Result<(), Errno> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
        // SAFETY: the option's value is one int, which outlives the call.
        let result = unsafe {
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), length)
        };
        Errno::result(result)?;
    }
    Ok(())
}

/// What an `NLMSG_ERROR` says: zero is success. The kernel's words follow the header of our request.
fn outcome(reply: &message::Reply<'_>) -> Result<(), Error> {
    const CODE: usize = 4;
    let code = u32_at(reply.body, 0).map_or(libc::EIO, u32::cast_signed);
    if code == 0 {
        return Ok(());
    }
    let words = reply.body.get(CODE + message::HEADER..).unwrap_or_default();
    let text =
        message::attributes(words).find(|(kind, _)| *kind == ERROR_TEXT).map(|(_, text)| message::text(text));
    Err(Error { errno: Errno::from_raw(code.saturating_neg()), text })
}
