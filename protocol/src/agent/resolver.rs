//! Questions for the name server that an engine keeps on the loopback of the pod's network namespace, where the guest's own
//! loopback does not lead. docker has one, for networks that a user has made: there containers know one another by name.
//!
//! On a connection of [`Opening::Resolver`](super::Opening::Resolver) the agent sends the questions that programs of the pod ask
//! of [`ADDRESS`] in the guest, and the shim the answers. Both are DNS messages behind their length, as on any connection (RFC 1035
//! §4.2.2); before a question is a byte that says how it was asked. The agent has given each question an id of its own; an
//! answer has that of its question.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Where docker's name server is, on both sides.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port of a name server.
pub const PORT: u16 = 53;
/// The shortest message: its header (RFC 1035 §4.1.1), which begins with the id.
pub const MESSAGE_MIN: usize = 12;
/// The longest datagram that is passed on. Programs that ask for longer ones do not exist in practice.
pub const DATAGRAM_MAX: usize = 4096;
/// The most connections over which programs ask, and at the other end those to the server.
pub const CONNECTIONS_MAX: usize = 16;
/// How long a question over a connection waits for its answer, and how long a connection may be idle before the next.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How a question was asked, and is to be asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// By a datagram.
    Datagram = 0,
    /// Over a connection, where the answer may be longer.
    Stream = 1,
}

/// Whether a datagram can be a message.
pub fn fits(datagram: &[u8]) -> bool {
    (MESSAGE_MIN..=DATAGRAM_MAX).contains(&datagram.len())
}

/// The id of a message.
pub fn id(message: &[u8]) -> u16 {
    message.first_chunk().copied().map(u16::from_be_bytes).unwrap_or_default()
}

/// Gives a message another id.
pub fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
}

/// Sends one message behind its length.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    to.write_all(&framed(&[], message)?).await
}

/// Sends one question.
pub async fn send_question(
    to: &mut (impl AsyncWrite + Unpin),
    transport: Transport,
    message: &[u8],
) -> io::Result<()> {
    to.write_all(&framed(&[transport as u8], message)?).await
}

fn framed(before: &[u8], message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok([before, &length.to_be_bytes(), message].concat())
}

/// Receives one message. `None` at the end of the connection; a length that no message has is an error.
pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match from.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result.map(drop)?,
    }
    let length = usize::from(u16::from_be_bytes(length));
    if length < MESSAGE_MIN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no DNS message is so short"));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Receives one question, as [`receive`] does a message.
pub async fn receive_question(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(Transport, Vec<u8>)>> {
    let mut transport = [0];
    if from.read(&mut transport).await? == 0 {
        return Ok(None);
    }
    let transport = match transport {
        [0] => Transport::Datagram,
        [1] => Transport::Stream,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no question is asked in such a way")),
    };
    Ok(receive(from).await?.map(|message| (transport, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_as_they_were_sent() {
        let (mut one, mut other) = tokio::io::duplex(256 << 10);
        let mut message = vec![7; 40];
        set_id(&mut message, 0x1234);
        send(&mut one, &message).await.unwrap();
        send(&mut one, &[1; 65_535]).await.unwrap();
        send_question(&mut one, Transport::Stream, &message).await.unwrap();
        send_question(&mut one, Transport::Datagram, &[2; DATAGRAM_MAX]).await.unwrap();
        drop(one);
        assert_eq!(receive(&mut other).await.unwrap().map(|message| id(&message)), Some(0x1234));
        assert_eq!(receive(&mut other).await.unwrap().unwrap().len(), 65_535);
        assert_eq!(receive_question(&mut other).await.unwrap(), Some((Transport::Stream, message)));
        let (transport, message) = receive_question(&mut other).await.unwrap().unwrap();
        assert_eq!((transport, message.len()), (Transport::Datagram, DATAGRAM_MAX));
        assert_eq!(receive_question(&mut other).await.unwrap(), None);
        assert_eq!(receive(&mut other).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_message_is_an_error() {
        for length in [0_u16, 11] {
            let mut bytes = &length.to_be_bytes()[..];
            assert_eq!(receive(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::InvalidData, "{length}");
        }
        assert!(send(&mut Vec::new(), &[0; 65_536]).await.is_err());
        // And one that ends early, and one that is asked in no known way.
        assert!(receive(&mut &[0, 20, 1, 2][..]).await.is_err());
        assert!(receive_question(&mut &[2, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]).await.is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_a_question_as_it_was_sent_or_an_error(
            transport in 0_u8..3,
            length in 0_u16..40,
            content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..48),
        ) {
            let bytes = [&[transport], &length.to_be_bytes()[..], &content].concat();
            let received = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
                .block_on(receive_question(&mut &bytes[..]));
            let whole = transport < 2 && (MESSAGE_MIN..=content.len()).contains(&length.into());
            assert_eq!(received.is_ok(), whole);
            if let Ok(question) = received {
                let (transport, message) = question.unwrap();
                assert!(bytes.starts_with(&framed(&[transport as u8], &message).unwrap()));
            }
        }
    }
}
