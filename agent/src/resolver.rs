//! The name server of the pod's network, as programs in the guest see it: the agent listens where they ask, and passes questions and
//! answers on. It does not read them, but for the ids by which an answer finds who has asked.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use hull_protocol::agent::resolver::{self, ADDRESS, MESSAGE_MAX, PORT, id, set_id};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UdpSocket;

use crate::stdio::Connection;

/// The most questions that wait for an answer; the oldest gives way to another.
const WAITING_MAX: usize = 256;

/// Listens where programs ask. That somebody listens there already is an error.
pub async fn listen() -> io::Result<UdpSocket> {
    UdpSocket::bind((ADDRESS, PORT)).await
}

/// Passes questions and answers on until the connection ends.
pub async fn serve(connection: Box<dyn Connection>, early: Vec<u8>, socket: UdpSocket) -> io::Result<()> {
    let (from, to) = tokio::io::split(connection);
    let from = tokio::io::AsyncReadExt::chain(&early[..], from);
    let waiting = Mutex::new(Waiting::default());
    tokio::select! {
        result = ask(&socket, to, &waiting) => result,
        result = answer(&socket, from, &waiting) => result,
    }
}

async fn ask(
    socket: &UdpSocket,
    mut to: impl AsyncWrite + Unpin,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    // One byte more, so that a longer one is seen to be.
    let mut buffer = vec![0; MESSAGE_MAX + 1];
    loop {
        let (length, asker) = socket.recv_from(&mut buffer).await?;
        let question = &mut buffer[..length];
        if resolver::fits(question) {
            let own = lock(waiting).add(asker, id(question));
            set_id(question, own);
            resolver::send(&mut to, question).await?;
        }
    }
}

async fn answer(
    socket: &UdpSocket,
    mut from: impl AsyncRead + Unpin,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    while let Some(mut answer) = resolver::receive(&mut from).await? {
        let Some((asker, original)) = lock(waiting).take(id(&answer)) else { continue };
        set_id(&mut answer, original);
        if let Err(error) = socket.send_to(&answer, asker).await {
            log::debug!("nobody takes the answer of the name server: {error}");
        }
    }
    Ok(())
}

fn lock(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for an answer, by the id that the question was given.
#[derive(Debug, Default)]
struct Waiting {
    askers: BTreeMap<u16, (SocketAddr, u16)>,
    order: VecDeque<u16>,
    last: u16,
}

impl Waiting {
    /// Notes who has asked, and with which id of its own. Returns the one that it is to have.
    fn add(&mut self, asker: SocketAddr, original: u16) -> u16 {
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

    fn take(&mut self, id: u16) -> Option<(SocketAddr, u16)> {
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
        let asker = SocketAddr::from((ADDRESS, 7));
        let first = waiting.add(asker, 1);
        let second = waiting.add(asker, 2);
        for number in 2..=WAITING_MAX {
            waiting.add(asker, u16::try_from(number).unwrap());
        }
        assert_eq!((waiting.askers.len(), waiting.order.len()), (WAITING_MAX, WAITING_MAX));
        assert_eq!(waiting.take(first), None);
        assert_eq!(waiting.take(second), Some((asker, 2)));
        assert_eq!(waiting.take(second), None);
    }

    #[test]
    fn an_answer_goes_to_who_asked_with_its_own_id() {
        let work = async {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let at = socket.local_addr().unwrap();
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let serving = tokio::spawn(serve(Box::new(theirs), Vec::new(), socket));
            let (mut from, mut to) = tokio::io::split(ours);
            let askers = [
                UdpSocket::bind("127.0.0.1:0").await.unwrap(),
                UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            ];
            let mut questions = Vec::new();
            for (asker, number) in askers.iter().zip(1u8..) {
                asker.send_to(&[number; 3], at).await.unwrap();
                asker.send_to(&[7, 7, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, number], at).await.unwrap();
                questions.push(resolver::receive(&mut from).await.unwrap().unwrap());
            }
            assert_ne!(id(&questions[0]), id(&questions[1]), "the same id of two askers");
            // An answer to no question, and those in the other order.
            resolver::send(&mut to, &[9; 12]).await.unwrap();
            for question in questions.iter().rev() {
                resolver::send(&mut to, question).await.unwrap();
            }
            for (asker, number) in askers.iter().zip(1u8..) {
                let mut buffer = [0; 64];
                let received = tokio::time::timeout(Duration::from_secs(20), asker.recv(&mut buffer)).await;
                let length = received.unwrap().unwrap();
                assert_eq!(buffer[..length], [7, 7, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, number]);
            }
            drop((from, to));
            serving.await.unwrap().unwrap();
        };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }
}
