//! One stream between the guest and a unix socket on the host.
//!
//! Bytes move straight between the socket and guest memory. What the socket does not take at once waits in a backlog
//! that the connection's credit bounds; what the guest has no room for stays in the socket. The two directions end
//! independently, each with its own small state machine.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendmsg};

use super::credit::Credit;
use super::packet::{
    HEADER_LENGTH, HOST_CID, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::virtio::segments::Segments;

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// From the host: the guest has not seen the request.
    Requesting,
    /// From the host: the guest has not answered.
    Requested,
    /// From the guest: it has not seen our answer.
    Responding,
    /// Both sides may send.
    Open,
}

/// Host to guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToGuest {
    Open,
    /// The host has ended and the guest is to be told.
    Ended,
    /// The guest knows, or does not receive any more.
    Closed,
}

/// Guest to host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToHost {
    Open,
    /// The guest has ended, the backlog has not left yet.
    Flushing,
    /// The host receives no more and the guest is to be told.
    Refused,
    /// Nothing more goes to the host.
    Closed,
}

/// What becomes of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It is over and the guest must hear it.
    Reset,
    /// The guest has ended it.
    Gone,
}

/// A stream.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    guest_cid: u64,
    socket: UnixStream,
    phase: Phase,
    to_guest: ToGuest,
    to_host: ToHost,
    /// The directions that the guest itself has shut down, as flags of the protocol.
    guest_shutdown: u32,
    /// The socket may have bytes, or its end: until a read says otherwise.
    readable: bool,
    credit: Credit,
    credit_reply: CreditReply,
    credit_request: CreditRequest,
    backlog: VecDeque<u8>,
}

/// Whether the guest has asked for our credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CreditReply {
    None,
    Owed,
}

/// Whether we have asked the guest for its credit since it last ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CreditRequest {
    None,
    Sent,
}

impl Connection {
    /// A connection that a process on the host asks for.
    pub fn from_host(key: Key, guest_cid: u64, socket: UnixStream, buffer: u32) -> Self {
        Self::new(key, guest_cid, socket, buffer, Phase::Requesting)
    }

    /// A connection that the guest asked for and the host was offered.
    pub fn from_guest(key: Key, guest_cid: u64, socket: UnixStream, buffer: u32, request: &Header) -> Self {
        let mut connection = Self::new(key, guest_cid, socket, buffer, Phase::Responding);
        connection.credit.learn(request);
        connection
    }

    fn new(key: Key, guest_cid: u64, socket: UnixStream, buffer: u32, phase: Phase) -> Self {
        Self {
            key,
            guest_cid,
            socket,
            phase,
            to_guest: ToGuest::Open,
            to_host: ToHost::Open,
            guest_shutdown: 0,
            readable: true,
            credit: Credit::new(buffer),
            credit_reply: CreditReply::None,
            credit_request: CreditRequest::None,
            backlog: VecDeque::new(),
        }
    }

    /// Its ports.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Bytes that wait for the host.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// The packet that ends the connection for the guest.
    pub fn reset(&self) -> Header {
        Header { fwd_cnt: 0, buf_alloc: 0, ..self.header(Operation::Reset) }
    }

    /// Whether there is something for the guest now.
    pub fn has_output(&self) -> bool {
        match self.phase {
            Phase::Requesting | Phase::Responding => true,
            Phase::Requested => false,
            Phase::Open => {
                let data = self.to_guest == ToGuest::Open && self.readable;
                data && (self.credit.guest_room() > 0 || self.credit_request == CreditRequest::None)
                    || self.shutdown_due() != 0
                    || self.credit_reply == CreditReply::Owed
                    || self.credit.update_is_due()
            }
        }
    }

    /// Writes the next packet for the guest into `packet`, which has room for a header and at least one byte.
    /// Answers the length, or `None` if there is nothing to send after all.
    pub fn produce(&mut self, packet: Segments<'_, '_>) -> Option<u32> {
        let (head, body) = packet.split_at(HEADER_LENGTH);
        let mut header = match self.phase {
            Phase::Requesting => {
                self.phase = Phase::Requested;
                self.header(Operation::Request)
            }
            Phase::Responding => {
                self.phase = Phase::Open;
                self.header(Operation::Response)
            }
            Phase::Requested => return None,
            Phase::Open => match self.data(body) {
                Some(length) => Header { len: length, ..self.header(Operation::Data) },
                None => self.control()?,
            },
        };
        // Every packet carries our credit: nothing more is owed.
        self.credit_reply = CreditReply::None;
        self.credit.announce(&mut header);
        head.copy_from(&header.to_bytes());
        Some(header.len + u32::try_from(HEADER_LENGTH).unwrap_or(0))
    }

    /// Reads from the socket straight into the guest's buffer.
    fn data(&mut self, body: Segments<'_, '_>) -> Option<u32> {
        let room = usize::try_from(self.credit.guest_room()).unwrap_or(usize::MAX);
        if self.to_guest != ToGuest::Open || !self.readable || room == 0 {
            return None;
        }
        match body.split_at(room).0.receive(self.socket.as_fd()) {
            Ok(0) => self.host_ended(),
            Ok(count) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                self.credit.on_sent(count);
                return Some(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                // The host has gone without reading everything.
                self.host_ended();
                self.host_refuses();
            }
        }
        None
    }

    fn control(&mut self) -> Option<Header> {
        let shutdown = self.shutdown_due();
        if shutdown != 0 {
            if self.to_guest == ToGuest::Ended {
                self.to_guest = ToGuest::Closed;
            }
            if self.to_host == ToHost::Refused {
                self.to_host = ToHost::Closed;
            }
            return Some(Header { flags: shutdown, ..self.header(Operation::Shutdown) });
        }
        let starved = self.to_guest == ToGuest::Open && self.readable && self.credit.guest_room() == 0;
        if starved && self.credit_request == CreditRequest::None {
            self.credit_request = CreditRequest::Sent;
            return Some(self.header(Operation::CreditRequest));
        }
        let due = self.credit_reply == CreditReply::Owed || self.credit.update_is_due();
        due.then(|| self.header(Operation::CreditUpdate))
    }

    /// A packet of this connection from the guest, with its payload.
    pub fn receive(&mut self, header: &Header, payload: Segments<'_, '_>) -> Verdict {
        self.credit.learn(header);
        if self.credit.guest_room() > 0 {
            self.credit_request = CreditRequest::None;
        }
        match (Operation::from_code(header.op), self.phase) {
            (Some(Operation::Reset), _) => Verdict::Gone,
            (Some(Operation::Response), Phase::Requested) => self.established(),
            (Some(Operation::Data), Phase::Open) => self.forward(payload),
            (Some(Operation::CreditUpdate), Phase::Open) => Verdict::Keep,
            (Some(Operation::CreditRequest), Phase::Open) => {
                self.credit_reply = CreditReply::Owed;
                Verdict::Keep
            }
            (Some(Operation::Shutdown), Phase::Open) => self.guest_shuts(header.flags),
            _ => Verdict::Reset,
        }
    }

    /// The guest has accepted: the host gets its line.
    fn established(&mut self) -> Verdict {
        self.phase = Phase::Open;
        let line = format!("OK {}\n", self.key.host_port);
        // Nothing was sent on this socket before, so that there is room for the line.
        match send(&self.socket, &[IoSlice::new(line.as_bytes())]) {
            Ok(count) if count == line.len() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    fn forward(&mut self, payload: Segments<'_, '_>) -> Verdict {
        let Ok(length) = u32::try_from(payload.len()) else { return Verdict::Reset };
        if self.credit.on_received(length).is_err() || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return Verdict::Reset;
        }
        let mut rest = payload;
        while self.to_host == ToHost::Open && self.backlog.is_empty() && !rest.is_empty() {
            match rest.send(self.socket.as_fd()) {
                Ok(count) => {
                    self.credit.on_forwarded(u32::try_from(count).unwrap_or(u32::MAX));
                    rest = rest.after(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.host_refuses(),
            }
        }
        let left = rest.len();
        match self.to_host {
            ToHost::Open => {
                let end = self.backlog.len();
                self.backlog.resize(end + left, 0);
                rest.copy_to(&mut self.backlog.make_contiguous()[end..]);
            }
            // Nobody will read it. It counts as taken, or the guest would wait for ever.
            ToHost::Refused | ToHost::Flushing | ToHost::Closed => {
                self.credit.on_forwarded(u32::try_from(left).unwrap_or(u32::MAX));
            }
        }
        Verdict::Keep
    }

    fn guest_shuts(&mut self, flags: u32) -> Verdict {
        self.guest_shutdown |= flags;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && self.to_guest != ToGuest::Closed {
            self.to_guest = ToGuest::Closed;
            self.shut_socket(Shutdown::Read);
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            match self.to_host {
                ToHost::Open => self.to_host = ToHost::Flushing,
                ToHost::Refused => self.to_host = ToHost::Closed,
                ToHost::Flushing | ToHost::Closed => {}
            }
        }
        self.after_flush()
    }

    /// The socket has become readable.
    pub fn on_readable(&mut self) {
        self.readable = true;
    }

    /// The socket has closed in both directions.
    pub fn on_hang_up(&mut self) -> Verdict {
        match self.phase {
            // Nobody waits for the guest's answer any more.
            Phase::Requesting | Phase::Requested => Verdict::Reset,
            Phase::Responding | Phase::Open => {
                self.readable = true;
                self.host_refuses();
                self.after_flush()
            }
        }
    }

    /// The socket has room again.
    pub fn on_writable(&mut self) -> Verdict {
        if self.send_backlog().is_err() {
            self.host_refuses();
        }
        self.after_flush()
    }

    /// The guest has forgotten the connection. Answers whether it must stay to bring the backlog to the host.
    pub fn on_gone(&mut self) -> bool {
        self.to_guest = ToGuest::Closed;
        matches!(self.to_host, ToHost::Open | ToHost::Flushing) && !self.backlog.is_empty()
    }

    /// What follows when the backlog may have become empty.
    fn after_flush(&mut self) -> Verdict {
        if !self.backlog.is_empty() {
            return Verdict::Keep;
        }
        if self.to_host == ToHost::Flushing {
            self.to_host = ToHost::Closed;
            self.shut_socket(Shutdown::Write);
        }
        // The guest has closed: it keeps the connection until it hears that we are done (§5.10.6.5).
        let both = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
        if self.guest_shutdown & both == both { Verdict::Reset } else { Verdict::Keep }
    }

    fn host_ended(&mut self) {
        self.readable = false;
        if self.to_guest == ToGuest::Open {
            self.to_guest = ToGuest::Ended;
        }
    }

    fn host_refuses(&mut self) {
        self.credit.on_forwarded(u32::try_from(self.backlog.len()).unwrap_or(u32::MAX));
        self.backlog = VecDeque::new();
        match self.to_host {
            ToHost::Open => self.to_host = ToHost::Refused,
            ToHost::Flushing => self.to_host = ToHost::Closed,
            ToHost::Refused | ToHost::Closed => {}
        }
    }

    /// The flags of the shutdown packet that the guest is owed.
    fn shutdown_due(&self) -> u32 {
        let send = if self.to_guest == ToGuest::Ended { SHUTDOWN_SEND } else { 0 };
        let receive = if self.to_host == ToHost::Refused { SHUTDOWN_RECEIVE } else { 0 };
        send | receive
    }

    /// Sends what the socket takes.
    fn send_backlog(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            let (front, back) = self.backlog.as_slices();
            match send(&self.socket, &[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.credit.on_forwarded(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // An idle connection holds no memory.
        self.backlog = VecDeque::new();
        Ok(())
    }

    fn shut_socket(&self, how: Shutdown) {
        if let Err(error) = self.socket.shutdown(how)
            && error.kind() != ErrorKind::NotConnected
        {
            log::warn!("cannot shut down a connection's socket: {error}");
        }
    }

    fn header(&self, operation: Operation) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            kind: TYPE_STREAM,
            op: operation.code(),
            ..Header::default()
        }
    }
}

fn send(socket: &UnixStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(socket.as_raw_fd(), parts, &[], flags, None) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}
