//! Messages with file descriptors over a `SOCK_SEQPACKET` unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FDS_MAX, MESSAGE_MAX};

/// One end of a conversation in typed messages. Blocking unless the descriptor was made non-blocking.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// A message and the descriptors that came with it, close-on-exec.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// The descriptors in the order they were sent.
    pub fds: Vec<OwnedFd>,
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed; `WouldBlock` where it is non-blocking.
    #[error("the control socket failed")]
    Io(#[from] io::Error),
    /// The packet is not the JSON of a message we know.
    #[error("the message is not understood")]
    Malformed(#[from] serde_json::Error),
    /// Longer than [`MESSAGE_MAX`], or more descriptors than [`FDS_MAX`].
    #[error("the message is too large")]
    TooLarge,
}

impl ChannelError {
    /// Whether a non-blocking channel just has nothing to say, or no room.
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Channel {
    /// Two connected ends, close-on-exec, blocking.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self { socket: a }, Self { socket: b }))
    }

    /// Sends one message with descriptors, which stay the caller's.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_MAX || fds.len() > FDS_MAX {
            return Err(ChannelError::TooLarge);
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        retry(|| {
            sendmsg::<()>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
        })?;
        Ok(())
    }

    /// Receives one message; `None` when the other end has closed.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<Received<T>>, ChannelError> {
        let mut bytes = vec![0; MESSAGE_MAX + 1];
        let mut space = cmsg_space!([RawFd; FDS_MAX]);
        let mut fds = Vec::new();
        let (length, truncated) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            retry(|| {
                recvmsg::<()>(
                    self.socket.as_raw_fd(),
                    &mut parts,
                    Some(&mut space),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                )
                .map(|message| {
                    // Take the descriptors before anything can fail, so that none leaks.
                    if let Ok(control) = message.cmsgs() {
                        for part in control {
                            if let ControlMessageOwned::ScmRights(raw) = part {
                                // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                            }
                        }
                    }
                    let cut = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
                    (message.bytes, message.flags.intersects(cut))
                })
            })?
        };
        if truncated || length > MESSAGE_MAX {
            return Err(ChannelError::TooLarge);
        }
        // A packet of no bytes is never sent: zero is the end.
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..length])?;
        Ok(Some(Received { message, fds }))
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

impl From<OwnedFd> for Channel {
    /// Takes over a connected `SOCK_SEQPACKET` unix socket.
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;
    use crate::vmm::{Message, Request};

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (a, b) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        a.send(&Request::Boot, &[writer.as_fd()]).unwrap();
        drop(writer);
        let received = b.receive::<Request>().unwrap().unwrap();
        assert_eq!(received.message, Request::Boot);
        let [fd] = <[OwnedFd; 1]>::try_from(received.fds).unwrap();
        File::from(fd).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_closed_end_is_the_end() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&Message::Done, &[]).unwrap();
        drop(a);
        assert!(b.receive::<Message>().unwrap().is_some());
        assert!(b.receive::<Message>().unwrap().is_none());
        assert!(matches!(b.send(&Request::Boot, &[]), Err(ChannelError::Io(_))));
    }

    #[test]
    fn what_is_not_a_message_is_refused_and_its_descriptors_are_closed() {
        let (a, b) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        a.send(&"nonsense", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(b.receive::<Request>(), Err(ChannelError::Malformed(_))));
        // Our copy of the write end was the last one: the pipe is at its end.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn too_much_is_refused() {
        let (a, b) = Channel::pair().unwrap();
        assert!(matches!(a.send(&"x".repeat(MESSAGE_MAX), &[]), Err(ChannelError::TooLarge)));
        let fd = b.as_fd();
        assert!(matches!(a.send(&Request::Boot, &vec![fd; FDS_MAX + 1]), Err(ChannelError::TooLarge)));
        a.send(&Request::Boot, &vec![fd; FDS_MAX]).unwrap();
        assert_eq!(b.receive::<Request>().unwrap().unwrap().fds.len(), FDS_MAX);
    }
}
