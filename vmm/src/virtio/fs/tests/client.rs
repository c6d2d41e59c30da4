//! A FUSE client in memory: it sends what a guest's kernel sends, to a device with a real broker over a folder.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use hull_protocol::fs::{BrokerChannel, Control, ControlReply, ExportAccess, VERSION};
use hull_protocol::vmm::{Channel, FsCache};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::*;
use crate::broker::server::{Server, ServerError};
use crate::broker::{Broker, jail};
use crate::virtio::testing::*;

pub const REQUESTS: usize = 1;
pub const ROOT: u64 = 1;

/// A broker on a thread of its own, as the shim talks to it.
pub struct Shim {
    control: Option<Channel>,
    thread: Option<JoinHandle<Result<(), ServerError>>>,
}

impl Shim {
    pub fn start() -> Self {
        let (control, theirs) = Channel::pair().unwrap();
        let broker = Broker::new(jail::proc_without_jail());
        let thread = std::thread::spawn(move || Server::new(broker, theirs).run());
        let shim = Self { control: Some(control), thread: Some(thread) };
        shim.say(&Control::Hello { version: VERSION }, &[]).unwrap();
        shim
    }

    pub fn say(&self, control: &Control, fds: &[&OwnedFd]) -> Result<(), String> {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let channel = self.control.as_ref().unwrap();
        channel.send(control, &fds).unwrap();
        match channel.receive::<ControlReply>().unwrap().unwrap().message {
            ControlReply::Done => Ok(()),
            ControlReply::Failed(message) => Err(message),
        }
    }

    pub fn export(&self, name: &str, path: &Path, access: ExportAccess) {
        let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        self.say(&Control::AddExport { name: name.into(), access }, &[&fd]).unwrap();
    }

    pub fn serve(&self) -> OwnedFd {
        let (monitor, broker) = BrokerChannel::pair().unwrap();
        self.say(&Control::Serve, &[&broker.into()]).unwrap();
        monitor.into()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        self.control = None;
        let result = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

/// Numbers and bytes of a message.
#[derive(Clone, Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn text(mut self, text: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(text.as_ref());
        self.0.push(0);
        self
    }
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub fn body() -> Body {
    Body::default()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `fuse_attr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub mtime: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
}

pub fn attr(bytes: &[u8]) -> Attr {
    Attr {
        ino: u64_at(bytes, 0),
        size: u64_at(bytes, 8),
        blocks: u64_at(bytes, 16),
        mtime: u64_at(bytes, 32),
        mode: u32_at(bytes, 60),
        nlink: u32_at(bytes, 64),
        uid: u32_at(bytes, 68),
        gid: u32_at(bytes, 72),
    }
}

/// The client, its device, and the folder on the host.
pub struct Client {
    pub driver: Driver,
    pub shim: Shim,
    pub folder: TempDir,
    pub caller: (u32, u32),
    unique: u64,
    _thread: FileThread,
}

pub type Result<T, E = i32> = std::result::Result<T, E>;

impl Client {
    /// Exports "rw" and "ro" of one folder; INIT is done.
    pub fn new() -> Self {
        let mut client = Self::before_init();
        client.init();
        client
    }

    pub fn before_init() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shim = Shim::start();
        shim.export("rw", folder.path(), ExportAccess::ReadWrite);
        shim.export("ro", folder.path(), ExportAccess::ReadOnly);
        let config = FsConfig { tag: "volumes".into(), cache: FsCache::Auto };
        let thread = FileThread::start().unwrap();
        let device = Fs::new(&config, shim.serve(), &thread).unwrap();
        let driver = Driver::running(Box::new(device), 0x40_0000);
        Self { driver, shim, folder, caller: (0, 0), unique: 0, _thread: thread }
    }

    pub fn init(&mut self) -> Vec<u8> {
        let request = body().u32(7).u32(41).u32(0x2_0000).u32(u32::MAX).u32(u32::MAX).bytes(&[0; 44]);
        self.call(26, 0, request, 64).unwrap()
    }

    pub fn host(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A request with its header, as bytes.
    pub fn message(&mut self, opcode: u32, node: u64, body: &Body) -> Vec<u8> {
        self.unique += 1;
        let length = u32::try_from(40 + body.0.len()).unwrap();
        let (uid, gid) = self.caller;
        let header = Body::default().u32(length).u32(opcode).u64(self.unique).u64(node);
        header.u32(uid).u32(gid).u32(77).u32(0).bytes(&body.0).0
    }

    /// Sends bytes with room for an answer, in one queue; the answer as it came.
    pub fn send_raw(&mut self, queue: usize, parts: &[&[u8]], room: usize) -> Vec<u8> {
        self.driver.free_buffers();
        let mut buffers = Vec::new();
        for part in parts {
            let address = self.driver.put(part);
            buffers.push(readable(address, u32::try_from(part.len()).unwrap()));
        }
        let address = self.driver.allocate(room);
        if room > 0 {
            self.driver.poke(address, &vec![0xee; room]);
            buffers.push(writable(address, u32::try_from(room).unwrap()));
        }
        let head = self.driver.add_indirect(queue, &buffers);
        self.driver.notify(queue);
        let used = self.driver.wait_interrupt(queue);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        let written = usize::try_from(used[0].1).unwrap();
        assert!(written <= room, "{written} bytes in a room of {room}");
        let answer = self.driver.peek(address, room);
        assert!(answer[written..].iter().all(|byte| *byte == 0xee), "more was written than was said");
        answer[..written].to_vec()
    }

    /// A request and its checked answer, of at most `room` bytes behind the header.
    #[allow(clippy::needless_pass_by_value, reason = "a request is written where it is sent")]
    pub fn call(&mut self, opcode: u32, node: u64, request: Body, room: usize) -> Result<Vec<u8>> {
        let message = self.message(opcode, node, &request);
        let answer = self.send_raw(REQUESTS, &[&message], 16 + room);
        self.parse(&answer)
    }

    pub fn parse(&self, answer: &[u8]) -> Result<Vec<u8>> {
        assert!(answer.len() >= 16, "no answer: {answer:?}");
        assert_eq!(usize::try_from(u32_at(answer, 0)).unwrap(), answer.len());
        assert_eq!(u64_at(answer, 8), self.unique);
        match u32_at(answer, 4).cast_signed() {
            0 => Ok(answer[16..].to_vec()),
            errno => {
                assert_eq!(answer.len(), 16);
                assert!((-4095..0).contains(&errno), "{errno}");
                Err(-errno)
            }
        }
    }

    pub fn lookup(&mut self, parent: u64, name: impl AsRef<[u8]>) -> Result<(u64, Attr)> {
        self.entry(1, parent, body().text(name))
    }

    /// Any request that is answered with an entry.
    pub fn entry(&mut self, opcode: u32, node: u64, request: Body) -> Result<(u64, Attr)> {
        let entry = self.call(opcode, node, request, 128)?;
        assert_eq!(entry.len(), 128);
        Ok((u64_at(&entry, 0), attr(&entry[40..])))
    }

    pub fn rw(&mut self) -> u64 {
        self.lookup(ROOT, "rw").unwrap().0
    }

    pub fn ro(&mut self) -> u64 {
        self.lookup(ROOT, "ro").unwrap().0
    }

    pub fn getattr(&mut self, node: u64) -> Result<Attr> {
        self.call(3, node, body().u32(0).u32(0).u64(0), 104).map(|reply| attr(&reply[16..]))
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(u64, u64, Attr)> {
        let request = body().u32(flags.cast_unsigned()).u32(mode).u32(0).u32(0).text(name);
        let reply = self.call(35, parent, request, 144)?;
        Ok((u64_at(&reply, 0), u64_at(&reply, 128), attr(&reply[40..])))
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64> {
        self.call(14, node, body().u32(flags.cast_unsigned()).u32(0), 16).map(|reply| u64_at(&reply, 0))
    }

    pub fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<(u64, Attr)> {
        self.entry(9, parent, body().u32(mode).u32(0).text(name))
    }

    pub fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let request = body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        self.call(15, 99, request, usize::try_from(size).unwrap())
    }

    pub fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<u32> {
        self.write_with(handle, offset, data, 0, 0)
    }

    pub fn write_with(&mut self, handle: u64, at: u64, data: &[u8], flags: i32, cache: u32) -> Result<u32> {
        let size = u32::try_from(data.len()).unwrap();
        let request = body().u64(handle).u64(at).u32(size).u32(cache).u64(0);
        let request = request.u32(flags.cast_unsigned()).u32(0).bytes(data);
        self.call(16, 99, request, 8).map(|reply| u32_at(&reply, 0))
    }

    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<()> {
        self.call(10, parent, body().text(name), 0).map(drop)
    }

    pub fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<()> {
        self.call(45, from.0, body().u64(to.0).u32(flags).u32(0).text(from.1).text(to.1), 0).map(drop)
    }

    pub fn release(&mut self, handle: u64) -> Result<()> {
        self.call(18, 99, body().u64(handle).u32(0).u32(0).u64(0), 0).map(drop)
    }

    pub fn forget(&mut self, node: u64, count: u64) {
        let message = self.message(2, node, &body().u64(count));
        assert!(self.send_raw(0, &[&message], 0).is_empty());
    }

    pub fn setattr(&mut self, node: u64, change: SetAttr) -> Result<Attr> {
        let SetAttr { valid, handle, size, mode, uid, gid, mtime } = change;
        let request = body().u32(valid).u32(0).u64(handle).u64(size).u64(0).u64(0).u64(mtime).u64(0);
        let request = request.u32(0).u32(5).u32(0).u32(mode).u32(0).u32(uid).u32(gid).u32(0);
        self.call(4, node, request, 104).map(|reply| attr(&reply[16..]))
    }
}

/// `fuse_setattr_in`.
#[derive(Clone, Copy, Default)]
pub struct SetAttr {
    pub valid: u32,
    pub handle: u64,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
}
