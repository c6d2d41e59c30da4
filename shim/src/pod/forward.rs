//! The pod's ports on the loopback of its network namespace. Who enters the namespace, as containerd does for `kubectl
//! port-forward`, and connects to a port of 127.0.0.1 or ::1, is joined to the program in the guest that listens on that port
//! there, on all addresses or on the guest's loopback.

use std::io;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::io::Streams;
use crate::network::{Loopback, Namespace, NetworkError};

/// The most connections of a pod at once; further ones wait.
const CONNECTIONS_MAX: usize = 256;
/// How long is waited after a connection could not be accepted, which is for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(200);

/// The task that accepts, and all that it has accepted.
pub struct Forwarder(JoinHandle<()>);

impl Forwarder {
    /// Starts to accept connections in the namespace.
    pub async fn start(namespace: &Arc<Namespace>, streams: Streams) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace { what: "accept connections".to_owned(), source };
        let mut families = Vec::new();
        for Loopback { listener, steering } in Loopback::listen(namespace).await? {
            families.push((TcpListener::from_std(listener).map_err(failed)?, steering));
        }
        Ok(Self(tokio::spawn(serve(families, streams))))
    }

    /// Ends every connection, and listens no longer.
    pub async fn end(self) {
        self.0.abort();
        // Aborted, or ended before.
        let _ = self.0.await;
    }
}

async fn serve(families: Vec<(TcpListener, OwnedFd)>, streams: Streams) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this task, which ends all of them.
    let mut accepting = JoinSet::new();
    for (listener, steering) in families {
        accepting.spawn(accept(listener, steering, streams.clone(), Arc::clone(&free)));
    }
    while accepting.join_next().await.is_some() {}
}

async fn accept(listener: TcpListener, _steering: OwnedFd, streams: Streams, free: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    // Nobody closes the semaphore.
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        let connection = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((connection, _)) => break connection,
                    Err(error) => {
                        log::warn!("a connection to the pod's loopback is not accepted: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        };
        let streams = streams.clone();
        connections.spawn(async move {
            if let Err(error) = join(connection, &streams).await {
                log::debug!("a connection to a port of the pod ends: {error}");
            }
            drop(permit);
        });
    }
}

/// Carries bytes both ways, each until its end. Where nobody listens in the guest, the connection is reset.
async fn join(mut connection: TcpStream, streams: &Streams) -> io::Result<()> {
    let port = connection.local_addr()?.port();
    let port = NonZeroU16::new(port).ok_or(io::ErrorKind::AddrNotAvailable)?;
    match streams.port(port).await {
        Ok(mut guest) => tokio::io::copy_bidirectional(&mut connection, &mut guest).await.map(drop),
        Err(error) => {
            connection.set_zero_linger()?;
            Err(io::Error::other(error))
        }
    }
}
