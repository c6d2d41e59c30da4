//! The guest's side: a small vsock driver with sockets, credit and rules of its own. It looks at its rings only when
//! it was interrupted, so that a lost interrupt is a test that hangs, and hanging tests fail.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hull_protocol::vmm::{Channel, VsockConfig};
use nix::poll::PollTimeout;

use super::super::packet::{
    HEADER_LENGTH, HOST_CID, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::super::{RX, TX, Vsock};
use crate::virtio::testing::*;

pub const CID: u32 = 3;
pub const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
const MEMORY: usize = 8 << 20;
const TX_SLOT: usize = 16 * 1024 + HEADER_LENGTH;
const TX_SLOTS: usize = 64;
const DEADLINE: Duration = Duration::from_secs(60);

/// Guest port and host port.
pub type Ports = (u32, u32);

#[derive(Debug)]
pub struct Socket {
    pub established: bool,
    /// What has arrived, unless it is echoed.
    pub received: Vec<u8>,
    /// Bytes that wait for credit.
    pub outbox: VecDeque<u8>,
    /// What the host has shut down.
    pub host_shutdown: u32,
    pub was_reset: bool,
    /// Whether the application reads: then room comes back at once.
    pub reading: bool,
    /// Whether the application sends back what it reads.
    pub echoing: bool,
    /// To shut down once the outbox is empty.
    pub close_after: Option<u32>,
    pub buffer: u32,
    pub sent: u32,
    taken: u32,
    announced: u32,
    arrived: u32,
    host_buffer: u32,
    host_taken: u32,
}

impl Socket {
    fn new() -> Self {
        Self {
            established: false,
            received: Vec::new(),
            outbox: VecDeque::new(),
            host_shutdown: 0,
            was_reset: false,
            reading: true,
            echoing: false,
            close_after: None,
            buffer: 256 * 1024,
            sent: 0,
            taken: 0,
            announced: 0,
            arrived: 0,
            host_buffer: 0,
            host_taken: 0,
        }
    }

    pub fn room(&self) -> u32 {
        self.host_buffer
            .checked_sub(self.sent.wrapping_sub(self.host_taken))
            .expect("the host takes its room back")
    }
}

pub struct Guest {
    pub driver: Driver,
    pub sockets: HashMap<Ports, Socket>,
    /// Ports that accept.
    pub listening: HashSet<u32>,
    /// Whether sockets that the guest accepts echo.
    pub echo: bool,
    /// Rx buffers in the ring at a time, and their size.
    pub rx_buffers: usize,
    pub rx_size: usize,
    pub packets: Vec<Header>,
    pub connections: usize,
    rx: HashMap<u16, u64>,
    rx_free: Vec<u64>,
    tx_free: Vec<u64>,
    tx: HashMap<u16, u64>,
    control: VecDeque<(Header, Vec<u8>)>,
}

/// The host's side of one device.
pub struct Host {
    pub path: PathBuf,
    pub channels: Vec<Channel>,
    _folder: tempfile::TempDir,
}

impl Host {
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        patient(stream)
    }
}

/// A stream that fails rather than waits for ever.
pub fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

pub fn device(ports: &[u32]) -> (Box<Vsock>, Host) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let (channels, ours): (Vec<_>, Vec<_>) = ports.iter().map(|_| Channel::pair().unwrap()).unzip();
    let config = VsockConfig { guest_cid: CID, guest_to_host_ports: ports.to_vec() };
    let device = Vsock::new(&config, listener.into(), ours.into_iter().map(OwnedFd::from).collect()).unwrap();
    (Box::new(device), Host { path, channels, _folder: folder })
}

impl Guest {
    pub fn new(ports: &[u32]) -> (Self, Host) {
        let (device, host) = device(ports);
        let mut guest = Self {
            driver: Driver::new(device, MEMORY),
            sockets: HashMap::new(),
            listening: HashSet::new(),
            echo: false,
            rx_buffers: 64,
            rx_size: 4096,
            packets: Vec::new(),
            connections: 0,
            rx: HashMap::new(),
            rx_free: Vec::new(),
            tx_free: Vec::new(),
            tx: HashMap::new(),
            control: VecDeque::new(),
        };
        guest.start();
        (guest, host)
    }

    pub fn start(&mut self) {
        self.driver.start(u64::MAX);
        assert_eq!(self.driver.get(STATUS), RUNNING);
        self.sockets.clear();
        self.rx.clear();
        self.tx.clear();
        self.control.clear();
        self.rx_free = (0..64).map(|_| self.driver.allocate(4096)).collect();
        self.tx_free = (0..TX_SLOTS).map(|_| self.driver.allocate(TX_SLOT)).collect();
        self.post();
    }

    pub fn header(&self, (guest_port, host_port): Ports, operation: Operation) -> Header {
        let mut header = Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            op: operation.code(),
            ..Header::default()
        };
        if let Some(socket) = self.sockets.get(&(guest_port, host_port)) {
            header.buf_alloc = socket.buffer;
            header.fwd_cnt = socket.taken;
        }
        header
    }

    /// Queues a packet whatever the rules say.
    pub fn send_raw(&mut self, header: Header, payload: &[u8]) {
        self.control.push_back((header, payload.to_vec()));
    }

    /// Packets that the device has not taken.
    pub fn unsent(&self) -> usize {
        self.control.len() + self.tx.len()
    }

    pub fn send_control(&mut self, ports: Ports, operation: Operation) {
        let header = self.header(ports, operation);
        self.send_raw(header, &[]);
    }

    /// Connects to a host port.
    pub fn connect(&mut self, ports: Ports) {
        self.sockets.insert(ports, Socket::new());
        self.send_control(ports, Operation::Request);
    }

    pub fn shutdown(&mut self, ports: Ports, flags: u32) {
        let header = Header { flags, ..self.header(ports, Operation::Shutdown) };
        self.send_raw(header, &[]);
    }

    pub fn socket(&mut self, ports: Ports) -> &mut Socket {
        self.sockets.get_mut(&ports).unwrap()
    }

    /// The one socket there is.
    pub fn only(&self) -> Ports {
        assert_eq!(self.sockets.len(), 1);
        *self.sockets.keys().next().unwrap()
    }

    /// One step of everything. Answers whether anything happened.
    pub fn step(&mut self, timeout: PollTimeout) -> bool {
        self.post();
        self.pump();
        let mut busy = self.driver.turn(timeout);
        if self.driver.interrupted() {
            busy = true;
            for (head, _) in self.driver.used(TX) {
                self.tx_free.push(self.tx.remove(&head).unwrap());
            }
            for (head, length) in self.driver.used(RX) {
                let address = self.rx.remove(&head).unwrap();
                let length = usize::try_from(length).unwrap();
                assert!((HEADER_LENGTH..=self.rx_size).contains(&length), "{length}");
                let bytes = self.driver.peek(address, length);
                self.rx_free.push(address);
                self.receive(&bytes);
            }
        }
        busy
    }

    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            self.step(PollTimeout::from(5_u8));
        }
    }

    /// Until nothing moves any more without the host.
    pub fn settle(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while self.step(PollTimeout::ZERO) {
            assert!(Instant::now() < deadline, "it never comes to rest");
        }
    }

    /// Makes rx buffers available.
    fn post(&mut self) {
        let mut posted = false;
        while self.rx.len() < self.rx_buffers {
            let Some(address) = self.rx_free.pop() else { break };
            let size = u32::try_from(self.rx_size).unwrap();
            // Header and payload in buffers of their own, as some drivers do.
            let head = self.driver.add(RX, &[writable(address, 44), writable(address + 44, size - 44)]);
            self.rx.insert(head, address);
            posted = true;
        }
        if posted {
            self.driver.notify(RX);
        }
    }

    fn pump(&mut self) {
        let mut posted = false;
        while let Some((header, payload)) = self.next_packet() {
            let address = self.tx_free.pop().unwrap();
            self.driver.poke(address, &header.to_bytes());
            self.driver.poke(address + HEADER_LENGTH as u64, &payload);
            let mut chain = vec![readable(address, 44)];
            if !payload.is_empty() {
                chain.push(readable(address + 44, u32::try_from(payload.len()).unwrap()));
            }
            let head = self.driver.add(TX, &chain);
            self.tx.insert(head, address);
            posted = true;
        }
        if posted {
            self.driver.notify(TX);
        }
    }

    fn next_packet(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.tx_free.is_empty() {
            return None;
        }
        if let Some(packet) = self.control.pop_front() {
            return Some(packet);
        }
        let (ports, socket) = self.sockets.iter_mut().find(|(_, socket)| {
            let live = socket.established && !socket.was_reset;
            let due = socket.outbox.is_empty() && socket.close_after.is_some();
            live && (!socket.outbox.is_empty() && socket.room() > 0 || due)
        })?;
        let ports = *ports;
        let room = usize::try_from(socket.room()).unwrap();
        let count = socket.outbox.len().min(room).min(TX_SLOT - HEADER_LENGTH);
        let payload: Vec<u8> = socket.outbox.drain(..count).collect();
        let length = u32::try_from(count).unwrap();
        socket.sent = socket.sent.wrapping_add(length);
        if count == 0 {
            let flags = socket.close_after.take().unwrap();
            return Some((Header { flags, ..self.header(ports, Operation::Shutdown) }, payload));
        }
        Some((Header { len: length, ..self.header(ports, Operation::Data) }, payload))
    }

    fn receive(&mut self, bytes: &[u8]) {
        let header = Header::parse(bytes[..HEADER_LENGTH].try_into().unwrap());
        let payload = &bytes[HEADER_LENGTH..];
        self.packets.push(header);
        assert_eq!(header.dst_cid, u64::from(CID));
        assert_eq!(usize::try_from(header.len).unwrap(), payload.len());
        let ports = (header.dst_port, header.src_port);
        let operation = Operation::from_code(header.op).unwrap();
        if operation == Operation::Request {
            self.connections += 1;
            if self.listening.contains(&header.dst_port) {
                let echoing = self.echo;
                let socket = Socket { established: true, echoing, ..Socket::new() };
                assert!(self.sockets.insert(ports, socket).is_none_or(|old| old.was_reset));
                self.send_control(ports, Operation::Response);
            } else {
                self.send_control(ports, Operation::Reset);
            }
        }
        let Some(socket) = self.sockets.get_mut(&ports) else { return };
        if operation != Operation::Reset {
            socket.host_buffer = header.buf_alloc;
            socket.host_taken = header.fwd_cnt;
        }
        match operation {
            Operation::Request => {}
            Operation::Response => socket.established = true,
            Operation::Reset => socket.was_reset = true,
            Operation::Shutdown => {
                socket.host_shutdown |= header.flags;
                if socket.echoing && header.flags & SHUTDOWN_SEND != 0 {
                    socket.close_after = Some(BOTH);
                }
            }
            Operation::Data => {
                socket.arrived = socket.arrived.wrapping_add(header.len);
                assert!(
                    socket.arrived.wrapping_sub(socket.taken) <= socket.buffer,
                    "more than there is room for"
                );
                if socket.echoing {
                    socket.outbox.extend(payload);
                } else {
                    socket.received.extend_from_slice(payload);
                }
            }
            Operation::CreditUpdate => {}
            Operation::CreditRequest => self.send_control(ports, Operation::CreditUpdate),
        }
        self.take(ports);
    }

    /// The application reads; the host hears of it when half of the room is used up.
    pub fn take(&mut self, ports: Ports) {
        let Some(socket) = self.sockets.get_mut(&ports) else { return };
        if socket.reading && !socket.was_reset {
            socket.taken = socket.arrived;
            if socket.taken.wrapping_sub(socket.announced) >= socket.buffer / 2 {
                socket.announced = socket.taken;
                self.send_control(ports, Operation::CreditUpdate);
            }
        }
    }
}
