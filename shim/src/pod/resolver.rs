//! Questions that programs of the guest have for the name server of the pod's network, passed on as they are. The guest can say
//! whatever it likes to that server, and to nobody else, as programs of any container can.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::resolver::{self, CONNECTIONS_MAX, DATAGRAM_MAX, DEADLINE, Transport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::io::{StdioError, Streams};
use crate::network::{Namespace, NetworkError, name_server, name_server_stream};

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
    /// Starts it in a namespace that has a name server.
    pub async fn start(namespace: &Arc<Namespace>, streams: &Streams) -> Result<Self, ResolverError> {
        let socket = UdpSocket::from_std(name_server(namespace).await?).map_err(ResolverError::Socket)?;
        let guest = streams.resolver().await?;
        let namespace = Arc::clone(namespace);
        log::info!("names are asked of the network's own server");
        Ok(Self(tokio::spawn(async move {
            if let Err(error) = pass_on(guest, &socket, &namespace).await {
                log::info!("the network's name server is asked no more: {error}");
            }
        })))
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

async fn pass_on(mut guest: UnixStream, server: &UdpSocket, namespace: &Arc<Namespace>) -> io::Result<()> {
    let (from, to) = guest.split();
    let (answered, long) = mpsc::channel(1);
    tokio::select! {
        result = questions(from, server, namespace, &answered) => result,
        result = answers(server, long, to) => result,
    }
}

async fn questions(
    mut guest: impl AsyncRead + Unpin,
    server: &UdpSocket,
    namespace: &Arc<Namespace>,
    answered: &mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut asking = JoinSet::new();
    while let Some((transport, question)) = resolver::receive_question(&mut guest).await? {
        match transport {
            // One that is lost is asked again: programs expect that of datagrams.
            Transport::Datagram => {
                if let Err(error) = server.send(&question).await {
                    log::debug!("the network's name server is not reached: {error}");
                }
            }
            Transport::Stream => {
                while asking.try_join_next().is_some() {}
                // The agent has no more of them; a guest that has is not answered.
                if asking.len() < CONNECTIONS_MAX {
                    asking.spawn(pass_on_long(Arc::clone(namespace), question, answered.clone()));
                }
            }
        }
    }
    Ok(())
}

/// Passes one question on over a connection, and its answer, if there is one in time.
async fn pass_on_long(namespace: Arc<Namespace>, question: Vec<u8>, answered: mpsc::Sender<Vec<u8>>) {
    match timeout(DEADLINE, ask(&namespace, &question)).await {
        Ok(Ok(answer)) => drop(answered.send(answer).await),
        Ok(Err(error)) => log::debug!("the network's name server does not answer: {error}"),
        Err(_elapsed) => log::debug!("the network's name server is silent"),
    }
}

/// Asks one question over a connection of its own.
async fn ask(namespace: &Arc<Namespace>, question: &[u8]) -> Result<Vec<u8>, ResolverError> {
    let server = name_server_stream(namespace).await?;
    let talk = async || {
        let mut server = TcpStream::from_std(server)?;
        resolver::send(&mut server, question).await?;
        resolver::receive(&mut server).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    talk().await.map_err(ResolverError::Socket)
}

async fn answers(
    server: &UdpSocket,
    mut long: mpsc::Receiver<Vec<u8>>,
    mut guest: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        tokio::select! {
            Some(answer) = long.recv() => resolver::send(&mut guest, &answer).await?,
            received = server.recv(&mut buffer) => match received {
                Ok(length) if resolver::fits(&buffer[..length]) => {
                    resolver::send(&mut guest, &buffer[..length]).await?;
                }
                Ok(_) => {}
                Err(error) => {
                    log::debug!("the network's name server does not answer: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use hull_protocol::agent::resolver::{ADDRESS, PORT};

    use super::*;

    /// Answers each question over a connection by its bytes so many times, and one in a datagram by itself.
    async fn server(namespace: &Arc<Namespace>, times: usize) {
        let bind = || {
            let bound = TcpListener::bind((ADDRESS, PORT)).and_then(|streams| {
                std::net::UdpSocket::bind((ADDRESS, PORT)).map(|datagrams| (streams, datagrams))
            });
            bound.map_err(|source| NetworkError::Namespace { what: String::new(), source })
        };
        let (streams, datagrams) = namespace.run(move |_| bind()).await.unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, asker)) = datagrams.recv_from(&mut buffer) {
                datagrams.send_to(&buffer[..length], asker).unwrap();
            }
        });
        std::thread::spawn(move || {
            for stream in streams.incoming() {
                let mut stream = stream.unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                let answer = question.repeat(times);
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        });
    }

    #[tokio::test]
    async fn a_question_is_asked_as_it_came() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let namespace = Arc::new(Namespace::fresh().await.unwrap());
        server(&namespace, 1000).await;
        let socket = UdpSocket::from_std(name_server(&namespace).await.unwrap()).unwrap();
        let (guest, mut agent) = UnixStream::pair().unwrap();
        let passing = tokio::spawn(async move { pass_on(guest, &socket, &namespace).await });
        for round in 0..3 {
            let question = vec![round; 20];
            for (transport, length) in [(Transport::Stream, 20_000), (Transport::Datagram, 20)] {
                resolver::send_question(&mut agent, transport, &question).await.unwrap();
                let answer = resolver::receive(&mut agent).await.unwrap().unwrap();
                assert_eq!(answer, vec![round; length]);
            }
        }
        drop(agent);
        passing.await.unwrap().unwrap();
    }
}
