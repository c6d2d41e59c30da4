//! The first line of a connection from the host: `CONNECT <port>\n` (the hybrid protocol of unix-socket vsock).

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// The longest line, newline included: `CONNECT 4294967295\n` and some blanks.
const LINE_MAX: usize = 32;

/// A connection that has not said yet where it wants to go.
#[derive(Debug)]
pub struct Handshake {
    socket: UnixStream,
}

/// What a look at the socket has shown.
#[derive(Debug)]
pub enum Progress {
    /// The line is not complete.
    Waiting(Handshake),
    /// The connection is for this guest port. The line is consumed, and nothing after it.
    Port(u32, UnixStream),
    /// It ended, or it said something else.
    Refused,
}

impl Handshake {
    /// A connection just accepted.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Looks again.
    pub fn advance(self) -> Progress {
        let mut line = [0; LINE_MAX];
        let fd = self.socket.as_raw_fd();
        let seen = match retry(|| recv(fd, &mut line, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)) {
            Ok(0) => return Progress::Refused,
            Ok(count) => &line[..count],
            Err(Errno::EAGAIN) => return Progress::Waiting(self),
            Err(_) => return Progress::Refused,
        };
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return if seen.len() < LINE_MAX { Progress::Waiting(self) } else { Progress::Refused };
        };
        let Some(port) = parse(&seen[..end]) else { return Progress::Refused };
        match retry(|| recv(fd, &mut line[..=end], MsgFlags::MSG_DONTWAIT)) {
            Ok(count) if count == end + 1 => Progress::Port(port, self.socket),
            _ => Progress::Refused,
        }
    }
}

/// The port in a line, its newline cut off.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    if !verb.eq_ignore_ascii_case("connect") || words.next().is_some() {
        return None;
    }
    // `parse` would take a plus sign.
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())?
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn advance(handshake: Handshake) -> Result<(u32, UnixStream), Option<Handshake>> {
        match handshake.advance() {
            Progress::Port(port, socket) => Ok((port, socket)),
            Progress::Waiting(handshake) => Err(Some(handshake)),
            Progress::Refused => Err(None),
        }
    }

    #[test]
    fn a_line_may_come_in_pieces_and_what_follows_stays() {
        let (mut host, ours) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::new(ours);
        for piece in ["CONN", "ECT 10", "25"] {
            host.write_all(piece.as_bytes()).unwrap();
            handshake = advance(handshake).unwrap_err().expect("still waiting");
        }
        host.write_all(b"\nCONNECT 7\n").unwrap();
        let (port, mut socket) = advance(handshake).unwrap();
        assert_eq!(port, 1025);
        let mut rest = [0; 10];
        socket.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"CONNECT 7\n");
    }

    #[test]
    fn only_the_protocol_is_accepted() {
        assert_eq!(parse(b"CONNECT 0"), Some(0));
        assert_eq!(parse(b"connect 4294967295"), Some(u32::MAX));
        assert_eq!(parse(b"CONNECT 52\r"), Some(52));
        for line in ["", "CONNECT", "CONNECT ", "CONNECT x", "CONNECT 4294967296", "CONNECT -1", "CONNECT +1"]
        {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        for line in ["LISTEN 1", "CONNECT 1 2", "GET / HTTP/1.1", "CONNECT1"] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }

    #[test]
    fn a_line_without_end_and_an_early_end_are_refused() {
        let (mut host, ours) = UnixStream::pair().unwrap();
        host.write_all(&[b'C'; LINE_MAX]).unwrap();
        assert!(advance(Handshake::new(ours)).unwrap_err().is_none());

        let (mut host, ours) = UnixStream::pair().unwrap();
        host.write_all(b"").unwrap();
        drop(host);
        assert!(advance(Handshake::new(ours)).unwrap_err().is_none());
    }
}
