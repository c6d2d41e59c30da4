use std::fs::File;
use std::os::unix::fs::FileExt;

use hull_protocol::vmm::{DiskDiscard, DiskExtent, RateLimits};

use super::*;
use crate::virtio::testing::*;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const MEMORY: usize = 0x10_0000;

fn config(access: DiskAccess, extents: &[(u64, u64)]) -> DiskConfig {
    let extents = extents.iter().map(|(offset, length)| DiskExtent { offset: *offset, length: *length });
    DiskConfig {
        serial: "test".into(),
        access,
        extents: extents.collect(),
        discard: DiskDiscard::On,
        limits: RateLimits::default(),
    }
}

fn fds(files: &[&File]) -> Vec<OwnedFd> {
    files.iter().map(|file| file.try_clone().unwrap().into()).collect()
}

/// Which engine serves the disk.
#[derive(Clone, Copy, Debug)]
enum Backend {
    Blocking,
    Uring,
}

impl Backend {
    fn engine(self, extents: &Arc<Extents>) -> Box<dyn Engine> {
        match self {
            Self::Blocking => engine::blocking(extents),
            Self::Uring => engine::uring(extents).unwrap(),
        }
    }

    /// Whether this host has it: containers and old kernels often have no `io_uring`.
    fn exists(self) -> bool {
        match self {
            Self::Blocking => true,
            Self::Uring => match engine::uring(&Arc::new(Extents::new())) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                    eprintln!("not tested, for this host refuses io_uring");
                    false
                }
                _ => true,
            },
        }
    }

    fn block(self, config: &DiskConfig, fds: Vec<OwnedFd>) -> Block {
        Block::with(config, fds, |extents| self.engine(extents), Box::new(Instant::now)).unwrap()
    }

    /// One file as a disk.
    fn disk(self, access: DiskAccess, file: &File) -> Driver {
        let length = file.metadata().unwrap().len();
        Driver::running(Box::new(self.block(&config(access, &[(0, length)]), fds(&[file]))), MEMORY)
    }
}

/// Makes each function one test for each engine.
macro_rules! for_each_engine {
    ($($name:ident)*) => {
        mod blocking {
            $(#[test] fn $name() { super::$name(super::Backend::Blocking); })*
        }
        mod uring {
            $(#[test] fn $name() {
                if super::Backend::Uring.exists() {
                    super::$name(super::Backend::Uring);
                }
            })*
        }
    };
}

mod erasing;
mod flights;
mod limits;
mod requests;
mod setup;

fn sectors(count: usize) -> Vec<u8> {
    (0..count * 512).map(|at| u8::try_from((at / 512 * 7 + at) % 251).unwrap()).collect()
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes(), &[0; 4], sector.to_le_bytes().as_slice()].concat()
}

struct Answer {
    status: u8,
    data: Vec<u8>,
    used: u32,
}

/// One request: header and `data` to read, `room` bytes and the status to write.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[u8], room: usize) -> Answer {
    let header = driver.put(&header(kind, sector));
    let from = driver.put(data);
    let to = driver.allocate(room + 1);
    driver.poke(to + room as u64, &[0xee]);
    let (data_length, room_length) = (u32::try_from(data.len()).unwrap(), u32::try_from(room).unwrap());
    let mut chain = vec![readable(header, 16)];
    if data_length > 0 {
        chain.push(readable(from, data_length));
    }
    if room > 0 {
        chain.push(writable(to, room_length));
    }
    chain.push(writable(to + room as u64, 1));
    let head = driver.add(0, &chain);
    driver.notify(0);
    let used = driver.wait_used(0, 1);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].0, head);
    let mut data = driver.peek(to, room + 1);
    Answer { status: data.pop().unwrap(), data, used: used[0].1 }
}
