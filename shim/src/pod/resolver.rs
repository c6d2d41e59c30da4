//! Questions that programs of the guest have for the name server of the pod's network, passed on as they are. The guest can say
//! whatever it likes to that server, and to nobody else, as programs of any container can.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::resolver::{self, MESSAGE_MAX};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UdpSocket, UnixStream};
use tokio::task::JoinHandle;

use crate::io::{StdioError, Streams};
use crate::network::{Namespace, NetworkError, name_server};

/// How long is waited after the server could not be reached.
const PAUSE: Duration = Duration::from_millis(200);

/// Why questions are not passed on.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The namespace cannot be looked at.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The agent takes no questions.
    #[error(transparent)]
    Stream(#[from] StdioError),
    /// The socket cannot be used.
    #[error("the socket to it: {0}")]
    Socket(io::Error),
}

/// The task that passes them on; it ends with this.
pub struct Resolver(JoinHandle<()>);

impl Resolver {
    /// Starts it if the namespace has a name server.
    pub async fn start(namespace: &Arc<Namespace>, streams: &Streams) -> Result<Option<Self>, ResolverError> {
        let Some(socket) = name_server(namespace).await? else { return Ok(None) };
        let socket = UdpSocket::from_std(socket).map_err(ResolverError::Socket)?;
        let guest = streams.resolver().await?;
        log::info!("names are asked of the network's own server");
        Ok(Some(Self(tokio::spawn(async move {
            if let Err(error) = pass_on(guest, &socket).await {
                log::info!("the network's name server is asked no more: {error}");
            }
        }))))
    }

    /// Whether it goes on.
    pub fn is_serving(&self) -> bool {
        !self.0.is_finished()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn pass_on(mut guest: UnixStream, server: &UdpSocket) -> io::Result<()> {
    let (from, to) = guest.split();
    tokio::select! {
        result = questions(from, server) => result,
        result = answers(server, to) => result,
    }
}

async fn questions(mut guest: impl AsyncRead + Unpin, server: &UdpSocket) -> io::Result<()> {
    while let Some(question) = resolver::receive(&mut guest).await? {
        // One that is lost is asked again: programs expect that of datagrams.
        if let Err(error) = server.send(&question).await {
            log::debug!("the network's name server is not reached: {error}");
        }
    }
    Ok(())
}

async fn answers(server: &UdpSocket, mut guest: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX + 1];
    loop {
        match server.recv(&mut buffer).await {
            Ok(length) if resolver::fits(&buffer[..length]) => {
                resolver::send(&mut guest, &buffer[..length]).await?;
            }
            Ok(_) => {}
            Err(error) => {
                log::debug!("the network's name server does not answer: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
