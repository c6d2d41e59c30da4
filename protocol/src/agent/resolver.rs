//! Questions for the name server that an engine keeps on the loopback of the pod's network namespace, where the guest's own
//! loopback does not lead. docker has one, for networks that a user has made: there containers know one another by name.
//!
//! On a connection of [`Opening::Resolver`](super::Opening::Resolver) the agent sends the questions that programs of the pod ask
//! of [`ADDRESS`] in the guest, and the shim the answers. Both are DNS messages behind their length (RFC 1035 §4.2.2). The agent has given
//! each question an id of its own; an answer has that of its question.

use std::io;
use std::net::Ipv4Addr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where docker's name server is, on both sides.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port of a name server.
pub const PORT: u16 = 53;
/// The shortest message: its header (RFC 1035 §4.1.1), which begins with the id.
pub const MESSAGE_MIN: usize = 12;
/// The longest message that is passed on. A datagram for programs that ask for more does not exist in practice.
pub const MESSAGE_MAX: usize = 4096;

/// Whether a datagram can be a message.
pub fn fits(message: &[u8]) -> bool {
    (MESSAGE_MIN..=MESSAGE_MAX).contains(&message.len())
}

/// The id of a message that [fits](fits).
pub fn id(message: &[u8]) -> u16 {
    message.first_chunk().copied().map(u16::from_be_bytes).unwrap_or_default()
}

/// Gives a message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// Sends one message that [fits](fits).
pub async fn send(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend(length.to_be_bytes());
    framed.extend(message);
    to.write_all(&framed).await
}

/// Receives one message. `None` at the end of the connection; a length that no message has is an error.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match from.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result.map(drop)?,
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    if !fits(&message) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no DNS message has such a length"));
    }
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_as_they_were_sent() {
        let (mut one, mut other) = tokio::io::duplex(64 << 10);
        let mut message = vec![7; 40];
        set_id(&mut message, 0x1234);
        send(&mut one, &message).await.unwrap();
        send(&mut one, &[1; MESSAGE_MAX]).await.unwrap();
        drop(one);
        assert_eq!(receive(&mut other).await.unwrap().map(|message| id(&message)), Some(0x1234));
        assert_eq!(receive(&mut other).await.unwrap().unwrap().len(), MESSAGE_MAX);
        assert_eq!(receive(&mut other).await.unwrap(), None);
    }

    #[tokio::test]
    async fn lengths_that_no_message_has_are_errors() {
        for length in [0_u16, 11, 4097, 65535] {
            let mut bytes = &length.to_be_bytes()[..];
            assert_eq!(receive(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{length}");
        }
        // And one that ends early.
        assert!(receive(&mut &[0, 20, 1, 2][..]).await.is_err());
    }
}
