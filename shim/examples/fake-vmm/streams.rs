//! The hybrid vsock listener and the agent's stream port behind it, in one.

use hull_protocol::agent::{StreamHeader, StreamKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::agent::FakeAgent;

/// Serves streams for ever.
pub async fn accept(listener: UnixListener, agent: FakeAgent) {
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(serve(connection, agent.clone()));
    }
}

async fn read_line(connection: &mut UnixStream) -> Option<String> {
    let mut line = Vec::new();
    loop {
        match connection.read_u8().await.ok()? {
            b'\n' => return String::from_utf8(line).ok(),
            byte => line.push(byte),
        }
    }
}

async fn serve(mut connection: UnixStream, agent: FakeAgent) -> Option<()> {
    assert_eq!(read_line(&mut connection).await?, "CONNECT 1025");
    connection.write_all(b"OK 1073741824\n").await.ok()?;
    let header: StreamHeader = read_line(&mut connection).await?.parse().unwrap();
    let key = (header.container().to_owned(), header.exec().unwrap_or_default().to_owned());
    let Some(pipes) = agent.take(&key, header.kind()) else {
        connection.write_all(b"ERR no such stream\n").await.ok()?;
        return None;
    };
    connection.write_all(b"OK\n").await.ok()?;
    if let Some(mut stdin) = pipes.stdin {
        // A process that does not read its input is not the stream's business.
        let _ = tokio::io::copy(&mut connection, &mut stdin).await;
        return Some(());
    }
    let mut output = match header.kind() {
        StreamKind::Stderr => pipes.stderr?,
        StreamKind::Stdin | StreamKind::Stdout => pipes.stdout?,
    };
    let bytes = tokio::io::copy(&mut output, &mut connection).await.unwrap_or_default();
    connection.shutdown().await.ok();
    agent.drained(&key, header.kind(), bytes);
    Some(())
}
