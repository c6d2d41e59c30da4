//! FUSE messages of a guest's kernel that is not one, and a broker that answers with whatever it likes.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use arbitrary::{Result, Unstructured};
use hull_protocol::fs::{
    Attributes, BrokerChannel, Bytes, Entry, FileSystem, HandleId, ListedEntry, NodeId, Reply,
};
use hull_protocol::vmm::FsCache;
use hull_vmm::virtio::fs::session::Session;
use hull_vmm::virtio::guarded::Memory;
use hull_vmm::virtio::queue::{Handled, RunningQueue};
use hull_vmm::virtio::segments::Segments;
use hull_vmm::virtio::{Activated, DeviceError, VirtioDevice};
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use crate::Body;
use crate::devices::file;
use crate::guest::{Guest, Peer};

const IN_HEADER: usize = 40;
const NAMES: [&[u8]; 8] = [b"f\0", b"d\0", b".\0", b"..\0", b"/etc\0", b"a/b\0", b"\0", b"unended"];

/// A body of a message, as long as most need.
fn body(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    for _ in 0..u.int_in_range(0..=11)? {
        let word: u64 = match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => u.arbitrary::<u16>()?.into(),
            _ => u.int_in_range(0..=8)?,
        };
        if u.ratio(1, 2)? {
            body.extend(word.to_le_bytes());
        } else {
            body.extend(&word.to_le_bytes()[..4]);
        }
    }
    for _ in 0..u.int_in_range(0..=2)? {
        if u.ratio(7, 8)? {
            body.extend(NAMES[u.choose_index(NAMES.len())?]);
        } else {
            let length = u.int_in_range(0..=300)?;
            body.resize(body.len() + length, b'n');
        }
    }
    Ok(body)
}

/// A message with its header, whose length is nearly always the truth.
fn message(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let opcode: u32 = if u.ratio(31, 32)? { u.int_in_range(0..=52)? } else { u.arbitrary()? };
    let node: u64 = if u.ratio(7, 8)? { u.int_in_range(0..=6)? } else { u.arbitrary()? };
    let body = body(u)?;
    let length =
        if u.ratio(31, 32)? { u32::try_from(IN_HEADER + body.len()).unwrap() } else { u.arbitrary()? };
    let mut message = length.to_le_bytes().to_vec();
    message.extend(opcode.to_le_bytes());
    message.extend(7_u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    Ok(message)
}

fn entry(u: &mut Unstructured<'_>) -> Result<Entry> {
    let attributes = Attributes { ino: u.arbitrary()?, size: u.arbitrary()?, ..Attributes::default() };
    Ok(Entry { node: NodeId(u.int_in_range(0..=6)?), attributes })
}

fn reply(u: &mut Unstructured<'_>) -> Result<Reply> {
    let handle = HandleId(u.int_in_range(0..=3)?);
    Ok(match u.int_in_range(0..=10)? {
        0 => Reply::Error(if u.ratio(3, 4)? { 2 } else { u.arbitrary()? }),
        1..=2 => Reply::Done,
        3 => Reply::Entry(entry(u)?),
        4 => Reply::Attributes(entry(u)?.attributes),
        5 => Reply::Opened(handle),
        6 => Reply::Created(entry(u)?, handle),
        7 => Reply::Data(Bytes(vec![b'x'; u.int_in_range(0..=5000)?])),
        8 => Reply::Count(u.arbitrary()?),
        9 => {
            let mut listing = Vec::new();
            for _ in 0..u.int_in_range(0..=20)? {
                let name = Bytes(vec![b'n'; u.int_in_range(0..=400)?]);
                let entry = if u.ratio(1, 2)? { Some(entry(u)?) } else { None };
                listing.push(ListedEntry { next: u.arbitrary()?, ino: 1, kind: u.arbitrary()?, name, entry });
            }
            Reply::Listing(listing)
        }
        _ => Reply::FileSystem(FileSystem::default()),
    })
}

/// A session whose broker has said all that it will ever say.
fn session(u: &mut Unstructured<'_>, file: &File) -> Result<Session> {
    // What an earlier input has written is memory.
    file.set_len(0).unwrap();
    file.set_len(0x3000).unwrap();
    let (monitor, broker) = BrokerChannel::pair().unwrap();
    for _ in 0..u.int_in_range(0..=8)? {
        let fd = if u.ratio(1, 2)? { Some(file.as_fd()) } else { None };
        if u.ratio(1, 16)? {
            let length = u.int_in_range(1..=64)?;
            broker.send_bytes(u.bytes(length)?, fd).unwrap();
        } else {
            broker.send(&reply(u)?, fd).unwrap();
        }
    }
    let broker = OwnedFd::from(broker);
    // The monitor may ask, and finds no further answer.
    shutdown(broker.as_raw_fd(), Shutdown::Both).unwrap();
    let cache = [FsCache::None, FsCache::Auto, FsCache::Always][u.choose_index(3)?];
    Ok(Session::new(monitor, cache))
}

const BASE: u64 = 0x1000;
const ROOM: usize = 0x8000;

/// Messages and answers, without a queue between.
pub fn messages() -> Body {
    let memory = Memory::new(&[(BASE, ROOM), (BASE + ROOM as u64, ROOM)]);
    let file = file(0);
    Box::new(move |input| {
        let mut u = Unstructured::new(input);
        let _ended: Result<()> = converse(&mut u, &memory, &file);
    })
}

fn converse(u: &mut Unstructured<'_>, memory: &Memory, file: &File) -> Result<()> {
    let mut session = session(u, file)?;
    for _ in 0..12 {
        if u.is_empty() {
            break;
        }
        let mut message = message(u)?;
        message.truncate(ROOM);
        let cut = u.choose_index(message.len() + 1)?;
        let room: usize = if u.ratio(3, 4)? { u.int_in_range(0..=0x1100)? } else { u.int_in_range(0..=200)? };
        // Each ends where its region ends.
        let start = BASE + (ROOM - message.len()) as u64;
        memory.guest.write_slice(&message, GuestAddress(start)).unwrap();
        let slices = |address: u64, length: usize| memory.guest.get_slices(GuestAddress(address), length);
        let parts = slices(start, cut).chain(slices(start + cut as u64, message.len() - cut));
        let readable: Vec<_> = parts.map(|slice| slice.unwrap()).collect();
        let end = BASE + 2 * ROOM as u64;
        let writable: Vec<_> = slices(end - room as u64, room).map(|slice| slice.unwrap()).collect();
        let outcome = session.execute(Segments::new(&readable), Segments::new(&writable));
        assert!(usize::try_from(outcome.written).unwrap() <= room, "more was written than there is room");
    }
    Ok(())
}

/// The file system device without its thread: requests are carried out where they are notified.
struct Direct {
    session: Arc<Mutex<Option<Session>>>,
    queues: Vec<Option<RunningQueue>>,
}

impl VirtioDevice for Direct {
    fn name(&self) -> &str {
        "fs"
    }

    fn device_type(&self) -> u32 {
        26
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activated: Activated) {
        self.queues = activated.queues;
    }

    fn reset(&mut self) {
        self.queues.clear();
    }

    fn queue_notified(&mut self, queue: usize) -> std::result::Result<(), DeviceError> {
        let mut session = self.session.lock().unwrap();
        let (Some(session), Some(Some(running))) = (session.as_mut(), self.queues.get_mut(queue)) else {
            return Ok(());
        };
        running
            .process(|chain| Handled::Done(session.execute(chain.readable, chain.writable).written))
            .map_err(|source| DeviceError::Queue { queue, source })
    }
}

struct Client {
    session: Arc<Mutex<Option<Session>>>,
    file: File,
}

impl Peer for Client {
    fn message(&mut self, u: &mut Unstructured<'_>, _queue: usize) -> Result<Vec<u8>> {
        message(u)
    }

    fn act(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        *self.session.lock().unwrap() = Some(session(u, &self.file)?);
        Ok(())
    }

    fn begin(&mut self) {
        // Without words of its own, it is a broker that is gone.
        let gone = session(&mut Unstructured::new(&[]), &self.file).unwrap();
        *self.session.lock().unwrap() = Some(gone);
    }
}

/// The device.
pub fn device() -> Body {
    let session = Arc::new(Mutex::new(None));
    let device = Direct { session: Arc::clone(&session), queues: Vec::new() };
    let mut guest = Guest::new(Box::new(device), Client { session, file: file(0) });
    Box::new(move |input| guest.run(input))
}
