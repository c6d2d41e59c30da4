//! Persistent memory (virtio 1.3 §5.19): a file of the host as a range of the guest's physical memory.
//!
//! The guest reads it, and writes it where that is allowed, without a request: its pages are the host's page cache,
//! shared with everybody who maps the same file. The queue has one request only, to make writes durable.
//!
//! A read-only file is mapped read-only and registered as `KVM_MEM_READONLY`: a write of the guest leaves the guest
//! and goes nowhere.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use hull_protocol::vmm::{DiskAccess, DiskExtent, PmemConfig};

use super::block::engine::{self, Action, Engine, Step, Submitted};
use super::block::extents::{ExtentError, Extents};
use super::block::in_flight::{Flight, InFlight};
use super::chain::Chain;
use super::device::{Activated, DeviceError, Quiet, VirtioDevice, copy_config};
use super::queue::{Handled, RunningQueue};

pub mod mapping;
#[cfg(test)]
mod tests;

use mapping::FileMapping;

/// Virtio device id (§5.19.1).
const DEVICE_TYPE: u32 = 27;
const QUEUE_SIZE: u16 = 64;
/// The only request (§5.19.6).
const TYPE_FLUSH: u32 = 0;

/// A file as memory.
#[derive(Debug)]
pub struct Pmem {
    name: String,
    /// `virtio_pmem_config` (§5.19.4): start and size.
    config: [u8; 16],
    access: DiskAccess,
    syncs: InFlight,
    running: Option<Running>,
    host_errors: u64,
}

#[derive(Debug)]
struct Running {
    requests: RunningQueue,
    pause: Pause,
}

/// Why requests are left in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    No,
    /// As many as may be are in flight.
    Full,
}

/// Where a file is in the guest's memory.
#[derive(Clone, Debug)]
pub struct FileRegion {
    /// Guest physical address.
    pub start: u64,
    /// The file.
    pub mapping: Arc<FileMapping>,
}

/// Why a file cannot be memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// Not a name for a label.
    #[error("the name {0:?} is not 1 to 20 letters, digits, dots, dashes or underscores")]
    Name(String),
    /// Its descriptor or length is wrong.
    #[error("the file of {name} cannot be used")]
    File {
        /// The device.
        name: String,
        /// Why.
        source: ExtentError,
    },
    /// A guest that writes needs a file for all that it sees.
    #[error("the file of {name} has {length} bytes, which is not a multiple of 2 MiB, and is to be written")]
    Length {
        /// The device.
        name: String,
        /// The file's.
        length: u64,
    },
    /// The host refused to map it.
    #[error("cannot map the file of {name}")]
    Map {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl Pmem {
    /// A file at a guest physical address, a multiple of [`mapping::ALIGNMENT`]. The region is to be given to the VM.
    pub fn new(config: &PmemConfig, file: OwnedFd, start: u64) -> Result<(Self, FileRegion), PmemError> {
        let name = config.name.clone();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if name.is_empty() || name.len() > 20 || !name.bytes().all(plain) {
            return Err(PmemError::Name(name));
        }
        let mut extents = Extents::new();
        extents
            .push(file, DiskExtent { offset: 0, length: config.length }, config.access)
            .map_err(|source| PmemError::File { name: name.clone(), source })?;
        if config.access == DiskAccess::ReadWrite && !config.length.is_multiple_of(mapping::ALIGNMENT) {
            return Err(PmemError::Length { name, length: config.length });
        }
        let file = extents.files().next().ok_or(io::ErrorKind::InvalidInput.into());
        let mapping = file
            .and_then(|file| FileMapping::new(file, config.length, config.access))
            .map_err(|source| PmemError::Map { name: name.clone(), source })?;
        let mut space = [0; 16];
        space[..8].copy_from_slice(&start.to_le_bytes());
        space[8..].copy_from_slice(&mapping.length().to_le_bytes());
        let device = Self {
            name: format!("pmem-{name}"),
            config: space,
            access: config.access,
            syncs: InFlight::new(syncing(config.access, &Arc::new(extents))),
            running: None,
            host_errors: 0,
        };
        Ok((device, FileRegion { start, mapping: Arc::new(mapping) }))
    }

    fn advance(&mut self) -> Result<(), DeviceError> {
        self.syncs.engine().acknowledge();
        let (submitted, ended) = self.collect(|syncs, ended| syncs.advance(ended))?;
        let Some(Running { requests, pause }) = &self.running else { return Ok(()) };
        if (*pause == Pause::Full && ended > 0) || submitted == Submitted::NotYet {
            requests.notify_self();
        }
        Ok(())
    }

    /// Gives back what `work` says has ended. Answers how many requests that were.
    fn collect<T>(
        &mut self,
        work: impl FnOnce(&mut InFlight, &mut dyn FnMut(Flight, io::Result<()>)) -> io::Result<T>,
    ) -> Result<(T, u32), DeviceError> {
        let Self { name, syncs, running, host_errors, .. } = self;
        let queue = running.as_mut().map(|running| &mut running.requests);
        syncs.give_back(queue, work, |_, result| {
            if let Err(error) = &result {
                *host_errors += 1;
                log::warn!("{name}: the host failed a flush: {error}");
            }
            (answer(result.is_ok()), 4)
        })
    }
}

/// What is never written needs no ring.
fn syncing(access: DiskAccess, extents: &Arc<Extents>) -> Box<dyn Engine> {
    match access {
        DiskAccess::ReadOnly => engine::blocking(extents),
        DiskAccess::ReadWrite => engine::best(extents),
    }
}

/// `virtio_pmem_resp.ret` (§5.19.6): zero for success.
fn answer(is_durable: bool) -> [u8; 4] {
    (if is_durable { 0_i32 } else { -1 }).to_le_bytes()
}

/// A request, or how it is answered at once.
fn take(chain: &Chain<'_, '_>, access: DiskAccess, syncs: &mut InFlight) -> Handled {
    let mut kind = [0; 4];
    let room = chain.writable.split_at(4).0;
    if chain.readable.copy_to(&mut kind) < 4 || room.len() < 4 {
        // Nobody asked, or nobody listens.
        return Handled::Done(0);
    }
    let at_once = |is_durable| {
        room.copy_from(&answer(is_durable));
        Handled::Done(4)
    };
    match (u32::from_le_bytes(kind), access) {
        (TYPE_FLUSH, DiskAccess::ReadOnly) => at_once(true),
        (TYPE_FLUSH, DiskAccess::ReadWrite) => {
            let Some(status) = chain.pin(room) else { return at_once(false) };
            let sync = vec![Step { file: 0, action: Action::Sync }];
            match syncs.start(Flight::new(chain.head(), status, Default::default(), sync)) {
                None => Handled::Deferred,
                Some(_) => at_once(false),
            }
        }
        _ => at_once(false),
    }
}

impl VirtioDevice for Pmem {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activated: Activated) {
        let requests = activated.queues.into_iter().next().flatten();
        self.running = requests.map(|requests| Running { requests, pause: Pause::No });
    }

    fn reset(&mut self) {
        self.syncs.discard();
        self.running = None;
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        let Self { syncs, running, access, .. } = self;
        let Some(Running { requests, pause }) = running else { return Err(DeviceError::MissingQueue(queue)) };
        *pause = Pause::No;
        requests
            .process(|chain| {
                if syncs.is_full() {
                    *pause = Pause::Full;
                    return Handled::Stop;
                }
                take(&chain, *access, syncs)
            })
            .map_err(|source| DeviceError::Queue { queue, source })?;
        self.advance()
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        self.syncs.engine().event().into_iter().collect()
    }

    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        self.advance()
    }

    fn quiesce(&mut self) -> Result<Quiet, DeviceError> {
        self.collect(|syncs, ended| syncs.drain(ended))?;
        if let Some(Running { requests, pause: Pause::Full, .. }) = &self.running {
            // Nothing will end any more that would bring what is in the ring to mind.
            requests.notify_self();
        }
        Ok(Quiet::Yes)
    }

    fn host_errors(&self) -> u64 {
        self.host_errors
    }
}
