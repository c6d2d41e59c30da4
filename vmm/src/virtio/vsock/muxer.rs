//! All connections of the device: who they are, which of them have something for the guest, and the one epoll
//! descriptor that watches their sockets.
//!
//! Sockets are watched edge-triggered and once for their life; a connection remembers what it has not read. So nothing
//! spins while the guest has no buffers, and nothing is forgotten.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::connection::{Connection, Key, Verdict};
use super::handshake::{Handshake, Progress};
use super::packet::{HEADER_LENGTH, HOST_CID, Header, Operation, TYPE_STREAM};
use super::ports::Ports;
use crate::virtio::segments::Segments;

/// The most connections at a time, unfinished ones included.
pub const CONNECTIONS_MAX: usize = 1024;
/// The most connections from the host that have not said their port: no more than these can be held up by hosts that
/// say nothing.
const HANDSHAKES_MAX: usize = 128;
/// Resets that may wait for the guest before its packets have to.
const RESETS_MAX: usize = 256;
/// Events taken from the kernel at a time. Where there are more, the epoll descriptor stays readable.
const EVENTS: usize = 64;
/// Ports of connections from the host.
const FIRST_HOST_PORT: u32 = 1 << 30;
const LAST_HOST_PORT: u32 = (1 << 31) - 1;
/// The event data of the listening socket; connections count from 1.
const LISTENER: u64 = 0;

type Id = u64;

/// Whether connections from the host are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listening {
    /// There is no driver.
    Off,
    On,
    /// The process has no descriptors left; the next connection that ends frees one.
    Paused,
}

/// The connections of one guest.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    epoll: Epoll,
    listener: UnixListener,
    listening: Listening,
    ports: Ports,
    connections: HashMap<Id, Entry>,
    by_key: HashMap<Key, Id>,
    handshakes: HashMap<Id, Handshake>,
    /// Gone for the guest, with a backlog for the host.
    draining: HashMap<Id, Connection>,
    /// Connections that may have something for the guest, each at most once, in turn.
    ready: VecDeque<Id>,
    resets: VecDeque<Header>,
    next_id: Id,
    next_host_port: u32,
    moved: Moved,
}

#[derive(Debug)]
struct Entry {
    connection: Connection,
    turn: Turn,
}

/// Whether a connection stands in the queue of those with output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Idle,
    Queued,
}

/// Payload bytes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub to_guest: u64,
    pub from_guest: u64,
}

impl Muxer {
    /// `listener` must be non-blocking.
    pub fn new(guest_cid: u32, listener: UnixListener, ports: Ports) -> io::Result<Self> {
        Ok(Self {
            guest_cid: u64::from(guest_cid),
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            listener,
            listening: Listening::Off,
            ports,
            connections: HashMap::new(),
            by_key: HashMap::new(),
            handshakes: HashMap::new(),
            draining: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: LISTENER + 1,
            next_host_port: FIRST_HOST_PORT,
            moved: Moved::default(),
        })
    }

    /// The descriptor to watch, level-triggered.
    pub fn poll_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// Payload bytes moved.
    pub fn moved(&self) -> Moved {
        self.moved
    }

    /// Connections in any state.
    pub fn len(&self) -> usize {
        self.connections.len() + self.handshakes.len() + self.draining.len()
    }

    /// A driver is there: accepts connections from the host.
    pub fn listen(&mut self) -> io::Result<()> {
        if self.listening != Listening::On {
            // Level-triggered: what one round does not accept, the next does.
            self.epoll.add(&self.listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
            self.listening = Listening::On;
        }
        Ok(())
    }

    /// The driver is gone: so are all connections. Those to come wait in the socket's backlog.
    pub fn clear(&mut self) {
        self.stop_listening(Listening::Off);
        self.connections.clear();
        self.by_key.clear();
        self.handshakes.clear();
        self.draining.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Whether a packet from the guest, and the reset it may cause, can be taken.
    pub fn has_room(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Whether there may be something for the guest.
    pub fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Writes the next packet into a buffer of the guest. Connections take turns.
    pub fn produce(&mut self, packet: Segments<'_, '_>) -> Option<u32> {
        if let Some(reset) = self.resets.pop_front() {
            packet.copy_from(&reset.to_bytes());
            return u32::try_from(HEADER_LENGTH).ok();
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(entry) = self.connections.get_mut(&id) else { continue };
            entry.turn = Turn::Idle;
            let produced = entry.connection.produce(packet);
            self.schedule(id);
            if let Some(length) = produced {
                self.moved.to_guest += u64::from(length).saturating_sub(HEADER_LENGTH as u64);
                return Some(length);
            }
        }
        None
    }

    /// Takes a packet from the guest.
    pub fn accept(&mut self, packet: Segments<'_, '_>) {
        let mut bytes = [0; HEADER_LENGTH];
        if packet.copy_to(&mut bytes) < HEADER_LENGTH {
            return;
        }
        let header = Header::parse(&bytes);
        if header.src_cid != self.guest_cid {
            // It pretends to be somebody else: nobody to answer (§5.10.6.4).
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(header);
            return;
        }
        let length = usize::try_from(header.len).unwrap_or(usize::MAX);
        let payload = packet.after(HEADER_LENGTH).split_at(length).0;
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        let id = self.by_key.get(&key).copied();
        let entry = id.and_then(|id| Some((id, self.connections.get_mut(&id)?)));
        let Some((id, entry)) = entry else {
            self.without_connection(key, header);
            return;
        };
        let verdict = if payload.len() < length {
            Verdict::Reset
        } else {
            self.moved.from_guest += payload.len() as u64;
            entry.connection.receive(&header, payload)
        };
        self.apply(id, verdict);
    }

    /// Looks after the sockets.
    pub fn poll(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept_from_host()?,
                id => self.socket_event(id, event.events()),
            }
        }
        Ok(())
    }

    fn socket_event(&mut self, id: Id, events: EpollFlags) {
        if let Some(handshake) = self.handshakes.remove(&id) {
            self.advance(id, handshake);
        } else if let Some(connection) = self.draining.get_mut(&id) {
            connection.on_writable();
            if connection.backlog() == 0 || events.contains(EpollFlags::EPOLLHUP) {
                self.draining.remove(&id);
                self.one_less();
            }
        } else if let Some(entry) = self.connections.get_mut(&id) {
            // Writable first: what the socket can still take is not lost when it also says that it hangs up.
            let mut verdict = Verdict::Keep;
            if events.contains(EpollFlags::EPOLLOUT) {
                verdict = entry.connection.on_writable();
            }
            if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR) {
                entry.connection.on_readable();
            }
            if verdict == Verdict::Keep && events.contains(EpollFlags::EPOLLHUP) {
                verdict = entry.connection.on_hang_up();
            }
            self.apply(id, verdict);
        }
    }

    fn apply(&mut self, id: Id, verdict: Verdict) {
        match verdict {
            Verdict::Keep => self.schedule(id),
            Verdict::Reset => {
                if let Some(connection) = self.forget(id) {
                    self.resets.push_back(connection.reset());
                    self.drain(id, connection);
                }
            }
            Verdict::Gone => {
                if let Some(connection) = self.forget(id) {
                    self.drain(id, connection);
                }
            }
        }
    }

    fn forget(&mut self, id: Id) -> Option<Connection> {
        let entry = self.connections.remove(&id)?;
        self.by_key.remove(&entry.connection.key());
        Some(entry.connection)
    }

    /// What the guest has sent reaches the host, even if the guest has forgotten it.
    fn drain(&mut self, id: Id, mut connection: Connection) {
        if connection.on_gone() {
            self.draining.insert(id, connection);
        } else {
            drop(connection);
            self.one_less();
        }
    }

    fn schedule(&mut self, id: Id) {
        if let Some(entry) = self.connections.get_mut(&id)
            && entry.turn == Turn::Idle
            && entry.connection.has_output()
        {
            entry.turn = Turn::Queued;
            self.ready.push_back(id);
        }
    }

    fn without_connection(&mut self, key: Key, header: Header) {
        match Operation::from_code(header.op) {
            Some(Operation::Request) => self.connect_to_host(key, header),
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: Header) {
        // A reset is not answered, or two sides could go on for ever.
        if header.op != Operation::Reset.code() {
            self.resets.push_back(header.reset());
        }
    }

    fn connect_to_host(&mut self, key: Key, request: Header) {
        let socket = if self.len() < CONNECTIONS_MAX {
            self.ports.connect(key.host_port, key.guest_port)
        } else {
            log::debug!("the guest's connection is refused: there are {CONNECTIONS_MAX} already");
            None
        };
        let id = self.next_id();
        let Some(socket) = socket.filter(|socket| self.watch(id, socket)) else {
            self.refuse(request);
            return;
        };
        let connection = Connection::from_guest(key, self.guest_cid, socket, self.buffer(), &request);
        self.insert(id, connection);
    }

    fn accept_from_host(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((socket, _)) => {
                let id = self.next_id();
                // Beyond the limit the host finds its connection closed, without an answer.
                let room = self.len() < CONNECTIONS_MAX && self.handshakes.len() < HANDSHAKES_MAX;
                if room && self.watch(id, &socket) {
                    self.advance(id, Handshake::new(socket));
                }
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(()),
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                    log::warn!("no connection from the host is accepted for now: {error}");
                    self.stop_listening(Listening::Paused);
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    fn advance(&mut self, id: Id, handshake: Handshake) {
        match handshake.advance() {
            Progress::Waiting(handshake) => {
                self.handshakes.insert(id, handshake);
            }
            Progress::Refused => self.one_less(),
            Progress::Port(guest_port, socket) => {
                let Some(host_port) = self.free_host_port(guest_port) else {
                    self.one_less();
                    return;
                };
                let key = Key { host_port, guest_port };
                self.insert(id, Connection::from_host(key, self.guest_cid, socket, self.buffer()));
            }
        }
    }

    fn insert(&mut self, id: Id, connection: Connection) {
        self.by_key.insert(connection.key(), id);
        self.connections.insert(id, Entry { connection, turn: Turn::Idle });
        self.schedule(id);
    }

    fn watch(&self, id: Id, socket: &UnixStream) -> bool {
        let events =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        match self.epoll.add(socket.as_fd(), EpollEvent::new(events, id)) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("a connection is refused, its socket cannot be watched: {error}");
                false
            }
        }
    }

    /// A connection has ended and its descriptor is closed.
    fn one_less(&mut self) {
        if self.listening == Listening::Paused
            && let Err(error) = self.listen()
        {
            log::warn!("connections from the host are still not accepted: {error}");
        }
    }

    fn stop_listening(&mut self, listening: Listening) {
        if self.listening == Listening::On
            && let Err(error) = self.epoll.delete(&self.listener)
        {
            log::error!("cannot stop watching the listening socket: {error}");
        }
        self.listening = listening;
    }

    fn next_id(&mut self) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// A port that no connection to the guest's port uses. There are more ports than connections.
    fn free_host_port(&mut self, guest_port: u32) -> Option<u32> {
        (0..=CONNECTIONS_MAX).find_map(|_| {
            let host_port = self.next_host_port;
            self.next_host_port = if host_port == LAST_HOST_PORT { FIRST_HOST_PORT } else { host_port + 1 };
            (!self.by_key.contains_key(&Key { host_port, guest_port })).then_some(host_port)
        })
    }

    /// Room for the guest's data in a new connection: less when there are many, so that all together stay below
    /// 96 MiB if no host process reads.
    fn buffer(&self) -> u32 {
        match self.len() {
            0..64 => 256 * 1024,
            64..256 => 128 * 1024,
            _ => 64 * 1024,
        }
    }
}
