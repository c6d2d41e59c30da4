//! Connections to the agent's standard streams and to the pod's ports: the monitor's hybrid vsock handshake, then the agent's
//! own.

use std::io;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_protocol::agent::{
    Opening, STREAM_LINE_MAX, STREAM_PORT, StreamHeader, StreamHeaderError, StreamKind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::StdioError;
use crate::pod::{VmEnded, printable};

/// How long both handshakes may take together; they wait for nobody but the guest's agent.
const DEADLINE: Duration = Duration::from_secs(60);

/// The way to the agent's streams of one VM.
#[derive(Clone)]
pub struct Streams {
    socket: PathBuf,
    namespace: String,
    end: VmEnded,
}

impl Streams {
    /// Streams through the monitor's vsock listener at `socket`, of containers whose ids are of this namespace.
    pub fn new(socket: PathBuf, namespace: String, end: VmEnded) -> Self {
        Self { socket, namespace, end }
    }

    /// The namespace of the containers' ids.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Attaches one stream of a process.
    pub async fn attach(
        &self,
        container: &str,
        exec: Option<&str>,
        kind: StreamKind,
    ) -> Result<UnixStream, StdioError> {
        let stream = match kind {
            StreamKind::Stdin => "standard input",
            StreamKind::Stdout => "standard output",
            StreamKind::Stderr => "standard error",
        };
        let header = StreamHeader::new(container, exec, kind)
            .map_err(|error: StreamHeaderError| StdioError::Refused { stream, message: error.to_string() })?;
        self.open(stream, &Opening::Stream(header)).await
    }

    /// Connects to a TCP port that a program of the pod listens on.
    pub async fn port(&self, port: NonZeroU16) -> Result<UnixStream, StdioError> {
        self.open("a connection to a port", &Opening::Port(port)).await
    }

    /// The questions for the pod's name server.
    pub async fn resolver(&self) -> Result<UnixStream, StdioError> {
        self.open("the questions for a name server", &Opening::Resolver).await
    }

    async fn open(&self, stream: &'static str, opening: &Opening) -> Result<UnixStream, StdioError> {
        tokio::select! {
            result = tokio::time::timeout(DEADLINE, shake_hands(&self.socket, opening)) => match result {
                Ok(Ok(Ok(connection))) => Ok(connection),
                Ok(Ok(Err(message))) => Err(StdioError::Refused { stream, message }),
                Ok(Err(source)) => Err(StdioError::Attach { stream, source }),
                Err(_elapsed) => Err(StdioError::Attach { stream, source: io::ErrorKind::TimedOut.into() }),
            },
            end = self.end.wait() => Err(StdioError::VmEnded(end)),
        }
    }
}

/// `Ok(Err(..))` is a refusal in the other side's words.
async fn shake_hands(socket: &Path, opening: &Opening) -> io::Result<Result<UnixStream, String>> {
    let mut connection = UnixStream::connect(socket).await?;
    connection.write_all(format!("CONNECT {STREAM_PORT}\n").as_bytes()).await?;
    let answer = read_line(&mut connection).await?;
    if answer.strip_prefix("OK ").is_none_or(|port| port.parse::<u32>().is_err()) {
        return Ok(Err(format!("the monitor answered {:?}", printable(&answer))));
    }
    connection.write_all(format!("{opening}\n").as_bytes()).await?;
    let answer = read_line(&mut connection).await?;
    match answer.strip_prefix("ERR ") {
        None if answer == "OK" => Ok(Ok(connection)),
        None => Ok(Err(format!("the agent answered {:?}", printable(&answer)))),
        Some(reason) => Ok(Err(printable(reason))),
    }
}

/// Reads up to and without a newline, byte by byte: what follows the newline is the stream's.
async fn read_line(connection: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match connection.read_u8().await? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            _ if line.len() >= STREAM_LINE_MAX => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer without an end"));
            }
            byte => line.push(byte),
        }
    }
}
