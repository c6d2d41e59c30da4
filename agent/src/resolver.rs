//! The name server of the pod's network, as programs in the guest see it: the agent listens where they ask, and passes questions and
//! answers on. It does not read them, but for the ids by which an answer finds who has asked.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hull_protocol::agent::resolver::{
    self, ADDRESS, CONNECTIONS_MAX, DATAGRAM_MAX, DEADLINE, PORT, Transport, id, set_id,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::stdio::Connection;

/// The most questions that wait for an answer; the oldest gives way to another.
const WAITING_MAX: usize = 256;

/// How long no connection is taken after one could not be.
const PAUSE: Duration = Duration::from_millis(200);

/// Where programs ask.
pub struct Sockets {
    datagrams: UdpSocket,
    streams: TcpListener,
}

impl Sockets {
    /// Listens there. That somebody listens already is an error.
    pub async fn listen() -> io::Result<Self> {
        Self::at((ADDRESS, PORT).into()).await
    }

    async fn at(address: SocketAddr) -> io::Result<Self> {
        let datagrams = UdpSocket::bind(address).await?;
        let streams = TcpListener::bind(datagrams.local_addr()?).await?;
        Ok(Self { datagrams, streams })
    }
}

/// A question with the id that it was given.
type Question = (Transport, Vec<u8>);

/// Passes questions and answers on until the connection ends.
pub async fn serve(connection: Box<dyn Connection>, early: Vec<u8>, sockets: Sockets) -> io::Result<()> {
    let (from, to) = tokio::io::split(connection);
    let from = tokio::io::AsyncReadExt::chain(&early[..], from);
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    let (asked, questions) = mpsc::channel(1);
    tokio::select! {
        result = datagrams(&sockets.datagrams, &asked, &waiting) => result,
        result = streams(&sockets.streams, &asked, &waiting) => result,
        result = ask(questions, to) => result,
        result = answer(&sockets.datagrams, from, &waiting) => result,
    }
}

/// Takes questions that come in datagrams.
async fn datagrams(
    socket: &UdpSocket,
    asked: &mpsc::Sender<Question>,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    // One byte more, so that a longer one is seen to be.
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        let (length, asker) = socket.recv_from(&mut buffer).await?;
        let question = &mut buffer[..length];
        if resolver::fits(question) {
            let own = lock(waiting).add(Asker::Datagram(asker), id(question));
            set_id(question, own);
            asked.send((Transport::Datagram, question.to_vec())).await.map_err(io::Error::other)?;
        }
    }
}

/// Takes connections over which questions come, so many at a time.
async fn streams(
    listener: &TcpListener,
    asked: &mpsc::Sender<Question>,
    waiting: &Arc<Mutex<Waiting>>,
) -> io::Result<()> {
    let mut served = JoinSet::new();
    loop {
        while served.try_join_next().is_some() {}
        if served.len() >= CONNECTIONS_MAX {
            served.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let (asked, waiting) = (asked.clone(), Arc::clone(waiting));
                served.spawn(async move {
                    if let Err(error) = stream_of_questions(stream, &asked, &waiting).await {
                        log::debug!("a connection to the name server ends: {error}");
                    }
                });
            }
            Err(error) => {
                // Of the guest's descriptors there are none, perhaps; datagrams need no further one.
                log::debug!("a connection to the name server is not taken: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One question after the other, each answered before the next is read.
async fn stream_of_questions(
    mut stream: TcpStream,
    asked: &mpsc::Sender<Question>,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    while let Some(mut question) = timeout(DEADLINE, resolver::receive(&mut stream)).await?? {
        let (answer, answered) = oneshot::channel();
        let own = lock(waiting).add(Asker::Stream(answer), id(&question));
        set_id(&mut question, own);
        asked.send((Transport::Stream, question)).await.map_err(io::Error::other)?;
        let answer = timeout(DEADLINE, answered).await?.map_err(io::Error::other)?;
        timeout(DEADLINE, resolver::send(&mut stream, &answer)).await??;
    }
    Ok(())
}

async fn ask(mut questions: mpsc::Receiver<Question>, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some((transport, question)) = questions.recv().await {
        resolver::send_question(&mut to, transport, &question).await?;
    }
    Ok(())
}

async fn answer(
    socket: &UdpSocket,
    mut from: impl AsyncRead + Unpin,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    while let Some(mut answer) = resolver::receive(&mut from).await? {
        let Some((asker, original)) = lock(waiting).take(id(&answer)) else { continue };
        set_id(&mut answer, original);
        match asker {
            Asker::Datagram(asker) => {
                if let Err(error) = socket.send_to(&answer, asker).await {
                    log::debug!("nobody takes the answer of the name server: {error}");
                }
            }
            // Who has waited too long is gone.
            Asker::Stream(asker) => drop(asker.send(answer)),
        }
    }
    Ok(())
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who has asked a question.
#[derive(Debug)]
enum Asker {
    /// Whoever has the socket at the address.
    Datagram(SocketAddr),
    /// A connection.
    Stream(oneshot::Sender<Vec<u8>>),
}

/// Who waits for an answer, by the id that the question was given.
#[derive(Debug, Default)]
struct Waiting {
    askers: BTreeMap<u16, (Asker, u16)>,
    order: VecDeque<u16>,
    last: u16,
}

impl Waiting {
    /// Notes who has asked, and with which id of its own. Returns the one that it is to have.
    fn add(&mut self, asker: Asker, original: u16) -> u16 {
        if self.order.len() >= WAITING_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.askers.remove(&oldest);
        }
        // There are more numbers than may wait.
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.askers.contains_key(&self.last) {
                break;
            }
        }
        self.askers.insert(self.last, (asker, original));
        self.order.push_back(self.last);
        self.last
    }

    fn take(&mut self, id: u16) -> Option<(Asker, u16)> {
        let found = self.askers.remove(&id)?;
        self.order.retain(|other| *other != id);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_gives_way() {
        let mut waiting = Waiting::default();
        let asker = || Asker::Datagram(SocketAddr::from((ADDRESS, 7)));
        let first = waiting.add(asker(), 1);
        let second = waiting.add(asker(), 2);
        for number in 2..=WAITING_MAX {
            waiting.add(asker(), u16::try_from(number).unwrap());
        }
        assert_eq!((waiting.askers.len(), waiting.order.len()), (WAITING_MAX, WAITING_MAX));
        assert!(waiting.take(first).is_none());
        assert!(matches!(waiting.take(second), Some((Asker::Datagram(_), 2))));
        assert!(waiting.take(second).is_none());
    }

    fn run(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }

    /// What is served at an address of its own, and the host's end of it.
    async fn served() -> (tokio::io::DuplexStream, SocketAddr, tokio::task::JoinHandle<io::Result<()>>) {
        let sockets = Sockets::at("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let at = sockets.datagrams.local_addr().unwrap();
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        (ours, at, tokio::spawn(serve(Box::new(theirs), Vec::new(), sockets)))
    }

    /// A message of this id and this content.
    fn message(id: [u8; 2], content: u8, length: usize) -> Vec<u8> {
        let mut message = vec![content; length];
        message[..2].copy_from_slice(&id);
        message
    }

    #[test]
    fn an_answer_goes_to_who_asked_with_its_own_id() {
        run(async {
            let (ours, at, serving) = served().await;
            let (mut from, mut to) = tokio::io::split(ours);
            let askers = [
                UdpSocket::bind("127.0.0.1:0").await.unwrap(),
                UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            ];
            let mut questions = Vec::new();
            for (asker, number) in askers.iter().zip(1u8..) {
                asker.send_to(&[number; 3], at).await.unwrap();
                asker.send_to(&message([7, 7], number, 13), at).await.unwrap();
                let (transport, question) = resolver::receive_question(&mut from).await.unwrap().unwrap();
                assert_eq!(transport, Transport::Datagram);
                questions.push(question);
            }
            assert_ne!(id(&questions[0]), id(&questions[1]), "the same id of two askers");
            // An answer to no question, and those in the other order.
            resolver::send(&mut to, &[9; 12]).await.unwrap();
            for question in questions.iter().rev() {
                resolver::send(&mut to, question).await.unwrap();
            }
            for (asker, number) in askers.iter().zip(1u8..) {
                let mut buffer = [0; 64];
                let received = timeout(Duration::from_secs(20), asker.recv(&mut buffer)).await;
                assert_eq!(buffer[..received.unwrap().unwrap()], message([7, 7], number, 13));
            }
            drop((from, to));
            serving.await.unwrap().unwrap();
        });
    }

    #[test]
    fn a_connection_has_long_answers_and_one_after_the_other() {
        run(async {
            let (mut ours, at, _serving) = served().await;
            let mut asker = TcpStream::connect(at).await.unwrap();
            let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            for number in 1..=3_u8 {
                let question = message([7, 7], number, 20);
                other.send_to(&question, at).await.unwrap();
                let (transport, datagram) = resolver::receive_question(&mut ours).await.unwrap().unwrap();
                assert_eq!(transport, Transport::Datagram);
                resolver::send(&mut asker, &question).await.unwrap();
                let (transport, asked) = resolver::receive_question(&mut ours).await.unwrap().unwrap();
                assert_eq!((transport, &asked[2..]), (Transport::Stream, &question[2..]));
                assert_ne!(id(&asked), id(&datagram), "the same id of two askers");
                let long = message([asked[0], asked[1]], number, 60_000);
                resolver::send(&mut ours, &long).await.unwrap();
                let answer = resolver::receive(&mut asker).await.unwrap().unwrap();
                assert_eq!(answer, message([7, 7], number, 60_000));
            }
        });
    }

    #[test]
    fn a_connection_that_says_what_is_no_question_is_closed() {
        run(async {
            let (_ours, at, _serving) = served().await;
            let mut asker = TcpStream::connect(at).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut asker, &[0, 3, 1, 2, 3]).await.unwrap();
            let closed = timeout(Duration::from_secs(5), resolver::receive(&mut asker)).await.unwrap();
            assert!(!matches!(closed, Ok(Some(_))), "{closed:?}");
        });
    }

    #[test]
    fn no_more_than_so_many_are_served_at_once() {
        run(async {
            let (mut ours, at, _serving) = served().await;
            let mut askers = Vec::new();
            for number in 0..=CONNECTIONS_MAX {
                let mut asker = TcpStream::connect(at).await.unwrap();
                let question = message([7, 7], u8::try_from(number).unwrap(), 20);
                resolver::send(&mut asker, &question).await.unwrap();
                askers.push(asker);
            }
            for _ in 0..CONNECTIONS_MAX {
                resolver::receive_question(&mut ours).await.unwrap().unwrap();
            }
            let further = timeout(Duration::from_millis(200), resolver::receive_question(&mut ours)).await;
            assert!(further.is_err(), "{further:?}");
        });
    }
}
