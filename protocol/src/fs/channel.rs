//! Binary messages, each with at most one descriptor, over a `SOCK_SEQPACKET` unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MESSAGE_MAX;

/// One end of the conversation between monitor and broker, with the buffer that it receives into.
#[derive(Debug)]
pub struct BrokerChannel {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("the file broker's socket failed")]
    Io(#[from] io::Error),
    /// The other end has closed.
    #[error("the other end of the file broker's socket has closed")]
    Closed,
    /// The packet is not a message we know, or has bytes behind it.
    #[error("the message is not understood")]
    Malformed,
    /// Longer than [`MESSAGE_MAX`].
    #[error("the message is too large")]
    TooLarge,
}

impl BrokerChannel {
    /// Two connected ends, close-on-exec, blocking.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((a.into(), b.into()))
    }

    /// Sends one message, with a descriptor that stays the caller's.
    pub fn send<T: Serialize>(&self, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        self.send_packet(&encode(message)?, fd, MsgFlags::empty())
    }

    /// Sends one message as [`send`](Self::send), or fails where the other end has left no room for it.
    pub fn send_at_once<T: Serialize>(
        &self,
        message: &T,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ChannelError> {
        self.send_packet(&encode(message)?, fd, MsgFlags::MSG_DONTWAIT)
    }

    /// Sends a packet as it is.
    pub fn send_bytes(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        self.send_packet(bytes, fd, MsgFlags::empty())
    }

    fn send_packet(
        &self,
        bytes: &[u8],
        fd: Option<BorrowedFd<'_>>,
        flags: MsgFlags,
    ) -> Result<(), ChannelError> {
        let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        let sent = retry(|| sendmsg::<()>(self.socket.as_raw_fd(), &parts, rights, flags, None));
        match sent {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Err(ChannelError::Closed)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Receives one message, and the descriptor that came with it, close-on-exec: none where more than one came, or
    /// where this process may open no more.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, Option<OwnedFd>), ChannelError> {
        self.receive_packet(MsgFlags::empty())
    }

    /// Receives one message as [`receive`](Self::receive), if one is there.
    pub fn receive_at_once<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<(T, Option<OwnedFd>)>, ChannelError> {
        match self.receive_packet(MsgFlags::MSG_DONTWAIT) {
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            other => other.map(Some),
        }
    }

    fn receive_packet<T: DeserializeOwned>(
        &mut self,
        flags: MsgFlags,
    ) -> Result<(T, Option<OwnedFd>), ChannelError> {
        self.buffer.resize(MESSAGE_MAX + 1, 0);
        let mut space = cmsg_space!(RawFd);
        let mut fds = Vec::new();
        let (socket, buffer) = (self.socket.as_raw_fd(), &mut self.buffer);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = retry(|| {
            recvmsg::<()>(socket, &mut parts, Some(&mut space), flags).map(|message| {
                // Take the descriptors before anything can fail, so that none leaks.
                if let Ok(control) = message.cmsgs() {
                    for part in control {
                        if let ControlMessageOwned::ScmRights(raw) = part {
                            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                    }
                }
                (message.bytes, message.flags)
            })
        });
        let (length, flags) = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ChannelError::Closed),
            Err(error) => return Err(error.into()),
        };
        // A packet of no bytes is never sent: zero is the end.
        if length == 0 {
            return Err(ChannelError::Closed);
        }
        if flags.contains(MsgFlags::MSG_TRUNC) || length > MESSAGE_MAX {
            return Err(ChannelError::TooLarge);
        }
        if flags.contains(MsgFlags::MSG_CTRUNC) || fds.len() > 1 {
            fds.clear();
        }
        match postcard::take_from_bytes(&self.buffer[..length]) {
            Ok((message, [])) => Ok((message, fds.pop())),
            Ok(_) | Err(_) => Err(ChannelError::Malformed),
        }
    }
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ChannelError> {
    let bytes = postcard::to_allocvec(message).map_err(|_| ChannelError::Malformed)?;
    if bytes.len() > MESSAGE_MAX { Err(ChannelError::TooLarge) } else { Ok(bytes) }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

impl From<OwnedFd> for BrokerChannel {
    /// Takes over a connected `SOCK_SEQPACKET` unix socket.
    fn from(socket: OwnedFd) -> Self {
        Self { socket, buffer: Vec::new() }
    }
}

impl From<BrokerChannel> for OwnedFd {
    fn from(channel: BrokerChannel) -> Self {
        channel.socket
    }
}

impl AsFd for BrokerChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
