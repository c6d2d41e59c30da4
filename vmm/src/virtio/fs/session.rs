//! One request of the guest from its first byte to its answer.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hull_protocol::fs::{BrokerChannel, ChannelError, Detail, HandleId, Reply, Request, VERSION};
use hull_protocol::vmm::FsCache;

use super::fuse::{
    Fields, IN_HEADER, InHeader, MAJOR, MINOR_MIN, OUT_HEADER, Opcode, TRANSFER_MAX, WRITE_CACHE, WRITE_IN,
};
use super::reply::{Body, Opened, header};
use super::request::{Init, Parsed, parse};
use crate::broker::handles::HANDLES_MAX;
use crate::virtio::segments::Segments;

/// The longest message besides a write: an extended attribute with its name.
const MESSAGE_MAX: usize = 72 * 1024;

/// What was moved by one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of the chain that were written, the answer.
    pub written: u32,
    /// Bytes of file data for the guest.
    pub to_guest: u64,
    /// Bytes of file data of the guest.
    pub from_guest: u64,
}

/// The broker, and the files it has opened for us.
#[derive(Debug)]
pub struct Session {
    broker: BrokerChannel,
    files: HashMap<HandleId, OwnedFd>,
    cache: FsCache,
}

/// An answer, or an `errno`.
type Answer = Result<Body, i32>;

impl Session {
    /// A session that has not begun.
    pub fn new(broker: BrokerChannel, cache: FsCache) -> Self {
        Self { broker, files: HashMap::new(), cache }
    }

    /// Carries out a request and writes its answer, if it has one.
    pub fn execute(&mut self, readable: Segments<'_, '_>, writable: Segments<'_, '_>) -> Outcome {
        let mut bytes = [0; IN_HEADER];
        if readable.copy_to(&mut bytes) < IN_HEADER {
            // Nobody knows which request an answer would be for.
            return Outcome::default();
        }
        let header = InHeader::parse(&bytes);
        let body = readable.after(IN_HEADER);
        let opcode = Opcode::from_code(header.opcode);
        if usize::try_from(header.len) != Ok(readable.len()) {
            return answer(writable, header.unique, Err(libc::EINVAL));
        }
        if let Some(Opcode::Read | Opcode::Write) = opcode
            && let Err(errno) = self.close_revoked()
        {
            return answer(writable, header.unique, Err(errno));
        }
        match opcode {
            None => answer(writable, header.unique, Err(libc::ENOSYS)),
            Some(Opcode::Read) => self.read(&header, body, writable),
            Some(Opcode::Write) => self.write(&header, body, writable),
            Some(opcode) => match self.message(&header, opcode, body) {
                Some(reply) => answer(writable, header.unique, reply),
                None => Outcome::default(),
            },
        }
    }

    /// A request without file data; `None` is no answer.
    fn message(&mut self, header: &InHeader, opcode: Opcode, body: Segments<'_, '_>) -> Option<Answer> {
        if body.len() > MESSAGE_MAX {
            return Some(Err(libc::E2BIG));
        }
        // Copied once: what the guest changes afterwards is not seen.
        let mut message = vec![0; body.len()];
        let copied = body.copy_to(&mut message);
        let parsed = match parse(header, opcode, &message[..copied]) {
            Ok(parsed) => parsed,
            Err(errno) => return Some(Err(errno)),
        };
        Some(match parsed {
            Parsed::Interrupt => return None,
            Parsed::Forget(nodes) => {
                for (node, count) in nodes {
                    // A broker that is gone holds nothing.
                    if self.broker.send(&Request::Forget { node, count }, None).is_err() {
                        break;
                    }
                }
                return None;
            }
            Parsed::Init(init) => self.init(&init),
            Parsed::Destroy => self.begin(),
            Parsed::Ask(request) => {
                self.ask(&request).map(|(reply, _)| self.encode(&reply, Opened::Directory))
            }
            Parsed::List(request, detail) => self
                .ask(&request)
                .map(|(reply, _)| Body::new(self.cache).reply(&reply, Opened::Directory, detail)),
            Parsed::Open(request) => self.open(&request),
            Parsed::Release(handle) => {
                self.files.remove(&handle);
                self.ask(&Request::Release { handle }).map(|(reply, _)| self.encode(&reply, Opened::File))
            }
        })
    }

    fn encode(&self, reply: &Reply, opened: Opened) -> Body {
        Body::new(self.cache).reply(reply, opened, Detail::Names)
    }

    fn init(&mut self, init: &Init) -> Answer {
        if init.major != MAJOR || init.minor < MINOR_MIN {
            return Err(libc::EPROTO);
        }
        self.begin().map(|body| body.init(init))
    }

    /// Nothing is held and nothing open.
    fn begin(&mut self) -> Answer {
        self.files.clear();
        self.ask(&Request::Init { version: VERSION })?;
        Ok(Body::new(self.cache))
    }

    /// Asks the broker. A broker that is gone, or talks nonsense, is an I/O error of each request.
    fn ask(&mut self, request: &Request) -> Result<(Reply, Option<OwnedFd>), i32> {
        let mut answered = self.broker.send(request, None).and_then(|()| self.broker.receive());
        while let Ok((Reply::Revoked(files), _)) = &answered {
            files.iter().for_each(|file| drop(self.files.remove(file)));
            answered = self.broker.receive();
        }
        match answered {
            Ok((Reply::Error(errno), _)) => Err(errno),
            Ok(answered) => Ok(answered),
            Err(error) => {
                log::warn!("the file broker does not answer: {error}");
                Err(libc::EIO)
            }
        }
    }

    /// Closes what the broker has taken back.
    fn close_revoked(&mut self) -> Result<(), i32> {
        loop {
            match self.broker.receive_at_once() {
                // A broker that is gone takes nothing back.
                Ok(None) | Err(ChannelError::Closed) => return Ok(()),
                Ok(Some((Reply::Revoked(files), _))) => {
                    files.iter().for_each(|file| drop(self.files.remove(file)));
                }
                // An answer that nobody has asked for: who has a right to what is not known.
                Ok(Some(_)) | Err(_) => {
                    self.files.clear();
                    return Err(libc::EIO);
                }
            }
        }
    }

    fn open(&mut self, request: &Request) -> Answer {
        let (reply, fd) = self.ask(request)?;
        let (Reply::Opened(handle) | Reply::Created(_, handle)) = reply else { return Err(libc::EIO) };
        match fd {
            Some(fd) if self.files.len() < HANDLES_MAX => {
                self.files.insert(handle, fd);
                Ok(self.encode(&reply, Opened::File))
            }
            // No room, or this process may open no more.
            Some(_) | None => {
                self.ask(&Request::Release { handle })?;
                if let Reply::Created(entry, _) = reply {
                    let forget = Request::Forget { node: entry.node, count: 1 };
                    self.broker.send(&forget, None).map_err(|_| libc::EIO)?;
                }
                Err(libc::ENFILE)
            }
        }
    }

    fn file(&self, handle: u64) -> Result<BorrowedFd<'_>, i32> {
        self.files.get(&HandleId(handle)).map(AsFd::as_fd).ok_or(libc::EBADF)
    }

    /// From the file straight into guest memory, behind the place for the header.
    fn read(&self, header: &InHeader, body: Segments<'_, '_>, writable: Segments<'_, '_>) -> Outcome {
        match self.read_data(body, writable.after(OUT_HEADER)) {
            Ok(count) if writable.len() >= OUT_HEADER => {
                writable.copy_from(&super::reply::header(OUT_HEADER + count, 0, header.unique));
                let written = u32::try_from(OUT_HEADER + count).unwrap_or(0);
                Outcome { written, to_guest: count as u64, from_guest: 0 }
            }
            Ok(_) => Outcome::default(),
            Err(errno) => answer(writable, header.unique, Err(errno)),
        }
    }

    fn read_data(&self, body: Segments<'_, '_>, room: Segments<'_, '_>) -> Result<usize, i32> {
        let (handle, offset, size) = transfer(body)?;
        if size > room.len() {
            return Err(libc::EINVAL);
        }
        let file = self.file(handle)?;
        complete(room.split_at(size).0, |rest, done| rest.read_at(file, offset + done))
    }

    /// From guest memory straight into the file.
    fn write(&self, header: &InHeader, body: Segments<'_, '_>, writable: Segments<'_, '_>) -> Outcome {
        let count = self.write_data(body);
        let reply = count.map(|count| Body::new(self.cache).written(count));
        let outcome = answer(writable, header.unique, reply);
        Outcome { from_guest: count.unwrap_or(0) as u64, ..outcome }
    }

    fn write_data(&self, body: Segments<'_, '_>) -> Result<usize, i32> {
        let (handle, offset, size) = transfer(body)?;
        let mut fields = [0; WRITE_IN];
        body.copy_to(&mut fields);
        let mut fields = Fields(&fields[20..]);
        let write_flags = fields.u32().unwrap_or(0);
        let open_flags = fields.skip(8).and_then(|()| fields.u32()).unwrap_or(0);
        let data = body.after(WRITE_IN);
        if size != data.len() {
            return Err(libc::EINVAL);
        }
        let file = self.file(handle)?;
        let appends = open_flags & libc::O_APPEND.cast_unsigned() != 0 && write_flags & WRITE_CACHE == 0;
        complete(
            data,
            |rest, done| {
                if appends { rest.append_to(file) } else { rest.write_at(file, offset + done) }
            },
        )
    }
}

/// The front of `fuse_read_in` and `fuse_write_in`: handle, offset, size. The end must be a file offset.
fn transfer(body: Segments<'_, '_>) -> Result<(u64, i64, usize), i32> {
    let mut bytes = [0; WRITE_IN];
    if body.copy_to(&mut bytes) < WRITE_IN {
        return Err(libc::EINVAL);
    }
    let mut fields = Fields(&bytes);
    let (handle, offset) = (fields.u64().unwrap_or(0), fields.u64().unwrap_or(0));
    let size = usize::try_from(fields.u32().unwrap_or(0)).unwrap_or(usize::MAX);
    let offset = i64::try_from(offset).map_err(|_| libc::EINVAL)?;
    let end = i64::try_from(size).ok().and_then(|size| offset.checked_add(size));
    if size > TRANSFER_MAX || end.is_none() {
        return Err(libc::EINVAL);
    }
    Ok((handle, offset, size))
}

/// Repeats a short transfer until all is moved, or the file ends, or fails: what was moved before counts.
fn complete<'a, 'm>(
    data: Segments<'a, 'm>,
    mut step: impl FnMut(Segments<'a, 'm>, i64) -> io::Result<usize>,
) -> Result<usize, i32> {
    let mut done = 0;
    while done < data.len() {
        match step(data.after(done), i64::try_from(done).unwrap_or(i64::MAX)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }
    Ok(done)
}

/// Writes an answer. One that the guest has left too little room for becomes an error; without room for that, nothing.
fn answer(writable: Segments<'_, '_>, unique: u64, answer: Answer) -> Outcome {
    let bytes = match answer {
        Ok(body) => body.finish(unique),
        Err(errno) => header(OUT_HEADER, errno, unique).to_vec(),
    };
    let bytes =
        if bytes.len() > writable.len() { header(OUT_HEADER, libc::EIO, unique).to_vec() } else { bytes };
    if bytes.len() > writable.len() {
        return Outcome::default();
    }
    let written = u32::try_from(writable.copy_from(&bytes)).unwrap_or(0);
    Outcome { written, ..Outcome::default() }
}
