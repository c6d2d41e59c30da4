//! Connections of the host's that carry bytes: each says in one line what it is for, is answered, and is handed to the process
//! whose stream it is, joined to a port that some process listens on, or asked the questions for the pod's name server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use hull_protocol::agent::{Opening, STREAM_LINE_MAX, StreamHeader, StreamHeaderError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::container::{ProcessName, Registry, Request};
use crate::error::Error;
use crate::resolver::{self, Sockets};
use crate::stdio::{Attachment, Connection};

/// How long a connection may take to name its stream.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the first line is longer than {STREAM_LINE_MAX} bytes or not text")]
    Line,
    #[error("the connection ended before its first line did")]
    Ended,
    #[error(transparent)]
    Header(#[from] StreamHeaderError),
    #[error("{0}")]
    Refused(#[from] Error),
    #[error("cannot connect to port {port}: {source}")]
    Port { port: NonZeroU16, source: io::Error },
    #[error("cannot listen where a name server is asked: {0}")]
    Resolver(io::Error),
}

/// What a connection was for, found.
enum Found {
    Stream(oneshot::Sender<Attachment>),
    Port(TcpStream),
    Resolver(Sockets),
}

/// Serves one connection: a stream's up to the point where the process has it, a port's to its end.
pub async fn serve(containers: Registry, mut connection: Box<dyn Connection>) {
    let found = timeout(HEADER_DEADLINE, find(&containers, &mut connection)).await;
    let (found, early) = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            log::info!("a stream connection was turned away: {error}");
            // The client sees the end of the connection if it cannot see the reason.
            let _ = connection.write_all(refusal(&error).as_bytes()).await;
            let _ = connection.shutdown().await;
            return;
        }
        Err(_) => return log::info!("a stream connection did not say what it is for"),
    };
    if connection.write_all(b"OK\n").await.is_err() {
        return;
    }
    match found {
        // A process that was deleted meanwhile closes the connection by dropping it.
        Found::Stream(slot) => drop(slot.send(Attachment { connection, early })),
        Found::Port(port) => {
            if let Err(error) = join(connection, &early, port).await {
                log::debug!("a connection to a port ends: {error}");
            }
        }
        Found::Resolver(sockets) => {
            if let Err(error) = resolver::serve(connection, early, sockets).await {
                log::info!("the pod's name server is asked no more: {error}");
            }
        }
    }
}

/// Carries bytes both ways, each until its end.
async fn join(mut connection: Box<dyn Connection>, early: &[u8], mut port: TcpStream) -> io::Result<()> {
    port.write_all(early).await?;
    tokio::io::copy_bidirectional(&mut connection, &mut port).await.map(drop)
}

/// Connects to whoever listens on the pod's loopback, or on all addresses.
async fn connect(port: NonZeroU16) -> io::Result<TcpStream> {
    let on = |address: IpAddr| TcpStream::connect((address, port.get()));
    match on(Ipv4Addr::LOCALHOST.into()).await {
        Ok(stream) => Ok(stream),
        // The first error tells more: a guest may have no IPv6 at all.
        Err(first) => on(Ipv6Addr::LOCALHOST.into()).await.map_err(|_| first),
    }
}

/// One line of at most the agreed length, whatever is in the error.
fn refusal(error: &StreamError) -> String {
    let mut text: String =
        format!("ERR {error}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = text.len().min(STREAM_LINE_MAX - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push('\n');
    text
}

async fn find(
    containers: &Registry,
    connection: &mut Box<dyn Connection>,
) -> Result<(Found, Vec<u8>), StreamError> {
    let (line, early) = read_line(connection).await?;
    let found = match line.parse()? {
        Opening::Stream(header) => Found::Stream(reserve(containers, &header).await?),
        Opening::Port(port) => {
            Found::Port(connect(port).await.map_err(|source| StreamError::Port { port, source })?)
        }
        Opening::Resolver => Found::Resolver(Sockets::listen().await.map_err(StreamError::Resolver)?),
    };
    Ok((found, early))
}

async fn reserve(
    containers: &Registry,
    header: &StreamHeader,
) -> Result<oneshot::Sender<Attachment>, StreamError> {
    let id = header.container();
    let name = header.exec().map_or(ProcessName::Init, |exec| ProcessName::Exec(exec.to_owned()));
    let kind = header.kind();
    Ok(containers.find(id)?.ask(id, |reply| Request::Attach { name, kind, reply }).await?)
}

/// The first line without its newline, and what came after it.
async fn read_line(connection: &mut (impl Connection + ?Sized)) -> Result<(String, Vec<u8>), StreamError> {
    let mut buffer = [0u8; STREAM_LINE_MAX];
    let mut filled = 0;
    loop {
        let count = connection.read(&mut buffer[filled..]).await.map_err(|_| StreamError::Ended)?;
        if count == 0 {
            return Err(if filled == buffer.len() { StreamError::Line } else { StreamError::Ended });
        }
        let searched = filled;
        filled += count;
        if let Some(newline) = buffer[searched..filled].iter().position(|byte| *byte == b'\n') {
            let end = searched + newline;
            let line = std::str::from_utf8(&buffer[..end]).map_err(|_| StreamError::Line)?;
            return Ok((line.to_owned(), buffer[end + 1..filled].to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    async fn feed(chunks: Vec<Vec<u8>>) -> Result<(String, Vec<u8>), StreamError> {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let writer = async move {
            for chunk in chunks {
                if far.write_all(&chunk).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let (result, ()) = tokio::join!(read_line(&mut near), writer);
        result
    }

    #[test]
    fn an_endless_line_is_refused() {
        assert!(matches!(run(feed(vec![vec![b'a'; 4096]])), Err(StreamError::Line)));
        assert!(matches!(run(feed(vec![b"abc".to_vec()])), Err(StreamError::Ended)));
        assert!(matches!(run(feed(vec![b"\xff\n".to_vec()])), Err(StreamError::Line)));
    }

    #[test]
    fn a_refusal_is_one_short_line() {
        let error = StreamError::Header(StreamHeaderError::Kind("ä\n".repeat(600)));
        let line = refusal(&error);
        assert!(line.len() <= STREAM_LINE_MAX && line.ends_with('\n') && line.matches('\n').count() == 1);
    }

    proptest! {
        #[test]
        fn a_line_is_found_however_it_is_cut(
            line in "[a-z -]{0,100}",
            rest in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(0usize..400, 0..5),
        ) {
            let mut bytes = line.clone().into_bytes();
            bytes.push(b'\n');
            bytes.extend(&rest);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut start = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                chunks.push(bytes[start..cut].to_vec());
                start = cut;
            }
            chunks.retain(|chunk| !chunk.is_empty());
            let (found, early) = run(feed(chunks)).unwrap();
            prop_assert_eq!(found, line);
            // What was read with the line is handed on; the rest stays in the connection.
            prop_assert!(rest.starts_with(&early));
        }
    }
}
