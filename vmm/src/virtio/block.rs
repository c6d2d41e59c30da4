//! The block device (virtio 1.3 §5.2): extents of files as one raw disk.
//!
//! The content is never looked at: there is no format but raw, so nothing the guest writes can change what the disk
//! is. A request goes from the ring to [`request`], which checks it, through the [`Throttle`], to [`in_flight`], which
//! has it carried out by an [`engine`], and back to the ring. What names ranges only is done at once by [`erase`].

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use hull_protocol::vmm::{DiskAccess, DiskConfig, DiskDiscard};

use super::chain::Chain;
use super::device::{Activated, DeviceError, Quiet, VirtioDevice, copy_config};
use super::queue::{Handled, RunningQueue};
use super::segments::Segments;
use crate::rate_limiter::{Clock, Throttle};

mod disk;
pub(super) mod engine;
mod erase;
pub(super) mod extents;
pub(super) mod in_flight;
mod request;
#[cfg(test)]
mod tests;

use disk::Disk;
use engine::{Engine, Step, Submitted};
pub use extents::ExtentError;
use extents::Extents;
use in_flight::{Flight, InFlight};
use request::{DISCARD_SECTORS_MAX, ERASE_SEGMENTS_MAX, Moved, Order, Status, WRITE_ZEROES_SECTORS_MAX};

/// Bytes of a sector, the unit of the protocol (§5.2.4).
const SECTOR: u64 = 512;
/// Bytes of a serial number (§5.2.6).
const SERIAL_LENGTH: usize = 20;
/// Virtio device id (§5.2.1).
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;

const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_RO: u64 = 1 << 5;
const FEATURE_BLK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_TOPOLOGY: u64 = 1 << 10;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Failures of the host that are worth a warning each; those after them are only counted.
const FAILURES_LOGGED: u64 = 4;

/// A disk.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Disk,
    discard: DiskDiscard,
    config: [u8; CONFIG_LENGTH],
    throttle: Option<Throttle>,
    in_flight: InFlight,
    running: Option<Running>,
    totals: Totals,
}

#[derive(Debug)]
struct Running {
    requests: RunningQueue,
    features: u64,
    pause: Pause,
}

/// Why requests are left in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// They are not.
    No,
    /// As many as may be are in flight; it goes on when one has ended.
    Full,
    /// The throttle holds the next one up; it goes on at its alarm.
    Throttled,
}

/// Counted since the start.
#[derive(Debug, Default)]
struct Totals {
    moved: Moved,
    host_errors: u64,
}

/// The sources of [`VirtioDevice::poll_fds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Engine,
    Throttle,
}

/// Why a disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Not as many descriptors as extents.
    #[error("a disk of {extents} extents came with {fds} file descriptors")]
    DescriptorCount {
        /// Extents in the configuration.
        extents: usize,
        /// Descriptors received.
        fds: usize,
    },
    /// A disk needs an extent.
    #[error("a disk without extents")]
    Empty,
    /// Not 1 to 20 bytes of printable ASCII.
    #[error("the disk serial {0:?} is not 1 to 20 printable ASCII characters")]
    Serial(String),
    /// The host has no timer for the rate limits.
    #[error("cannot make a timer for the limits of disk {serial}")]
    Timer {
        /// The disk.
        serial: String,
        /// Why.
        source: io::Error,
    },
    /// An extent is unusable.
    #[error("extent {index} of disk {serial} cannot be used")]
    Extent {
        /// The disk.
        serial: String,
        /// Its position in the configuration, from 0.
        index: usize,
        /// Why.
        source: ExtentError,
    },
}

impl Block {
    /// A disk made of the configuration's extents; descriptor `i` belongs to extent `i`.
    pub fn new(config: &DiskConfig, fds: Vec<OwnedFd>) -> Result<Self, BlockError> {
        Self::with(config, fds, engine::best, Box::new(Instant::now))
    }

    /// A disk that is served by plain system calls: one that comes when the filters have closed, behind which no ring can
    /// be made.
    pub fn without_ring(config: &DiskConfig, fds: Vec<OwnedFd>) -> Result<Self, BlockError> {
        Self::with(config, fds, engine::blocking, Box::new(Instant::now))
    }

    /// A disk with a certain engine and a certain clock.
    fn with(
        config: &DiskConfig,
        fds: Vec<OwnedFd>,
        engine: impl FnOnce(&Arc<Extents>) -> Box<dyn Engine>,
        clock: Clock,
    ) -> Result<Self, BlockError> {
        if config.extents.len() != fds.len() {
            return Err(BlockError::DescriptorCount { extents: config.extents.len(), fds: fds.len() });
        }
        if fds.is_empty() {
            return Err(BlockError::Empty);
        }
        let serial = parse_serial(&config.serial)?;
        let mut extents = Extents::new();
        for (index, (fd, extent)) in fds.into_iter().zip(&config.extents).enumerate() {
            extents.push(fd, *extent, config.access).map_err(|source| BlockError::Extent {
                serial: config.serial.clone(),
                index,
                source,
            })?;
        }
        let disk = Disk::new(extents, config.access, serial);
        let throttle = Throttle::new(&config.limits, clock)
            .map_err(|source| BlockError::Timer { serial: config.serial.clone(), source })?;
        Ok(Self {
            name: format!("blk-{}", config.serial),
            config: config_space(&disk),
            discard: config.discard,
            throttle,
            in_flight: InFlight::new(engine(disk.extents())),
            disk,
            running: None,
            totals: Totals::default(),
        })
    }

    /// Takes what is in the ring, and gives back what has ended.
    fn serve(&mut self) -> Result<(), DeviceError> {
        self.take()?;
        self.advance()
    }

    /// Takes requests from the ring until it is empty or there is a reason to pause.
    fn take(&mut self) -> Result<(), DeviceError> {
        let Self { name, disk, throttle, in_flight, running, totals, .. } = self;
        let Some(Running { requests, features, pause }) = running else { return Ok(()) };
        *pause = Pause::No;
        let mut failure = None;
        let result = requests.process(|chain| {
            if in_flight.is_full() {
                *pause = Pause::Full;
                return Handled::Stop;
            }
            let Some((data, status)) = request::answer(&chain) else { return Handled::Done(0) };
            let order = request::parse(&chain, data, disk, *features);
            if let Some(throttle) = throttle {
                match throttle.admits(payload(&order)) {
                    Ok(true) => {}
                    Ok(false) => {
                        *pause = Pause::Throttled;
                        return Handled::Stop;
                    }
                    Err(error) => {
                        failure = Some(error);
                        return Handled::Stop;
                    }
                }
            }
            let (moved, steps) = match order {
                Ok(Order::Transfer { moved, steps }) => (moved, steps),
                Ok(Order::Flush(steps)) => (Moved::default(), steps),
                Ok(Order::Erase(ranges)) => {
                    let result = ranges.iter().try_for_each(|range| {
                        range.how.carry_out(disk.extents(), range.position, range.length)
                    });
                    let code = totals.account(name, Moved::default(), &result);
                    return answer(status, code, 0);
                }
                Ok(Order::Identify) => {
                    let copied = data.copy_from(disk.serial());
                    totals.moved.to_guest += copied as u64;
                    return answer(status, Status::Ok, copied);
                }
                Err(refusal) => return answer(status, refusal.status(), 0),
            };
            start(in_flight, &chain, status, moved, steps)
        });
        if let Some(error) = failure {
            return Err(error.into());
        }
        result.map_err(|source| DeviceError::Queue { queue: 0, source })
    }

    /// Lets the engine work, and gives back the requests that have ended. What was left in the ring for want of room
    /// comes next.
    fn advance(&mut self) -> Result<(), DeviceError> {
        self.in_flight.engine().acknowledge();
        let (submitted, ended) = self.collect(|in_flight, ended| in_flight.advance(ended))?;
        let Some(Running { requests, pause, .. }) = &self.running else { return Ok(()) };
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
        let Self { name, in_flight, running, totals, .. } = self;
        let queue = running.as_mut().map(|running| &mut running.requests);
        in_flight.give_back(queue, work, |flight, result| {
            let code = totals.account(name, flight.moved, &result);
            let data = if code == Status::Ok { flight.moved.to_guest } else { 0 };
            ([code as u8], used(data))
        })
    }

    fn sources(&self) -> Vec<(RawFd, Source)> {
        let engine = self.in_flight.engine().event().map(|fd| (fd, Source::Engine));
        let throttle = self.throttle.as_ref().map(|throttle| (throttle.fd(), Source::Throttle));
        engine.into_iter().chain(throttle).collect()
    }
}

/// What the limit of bandwidth counts.
fn payload(order: &Result<Order, request::Refusal>) -> u64 {
    match order {
        Ok(Order::Transfer { moved, .. }) => moved.to_guest + moved.from_guest,
        Ok(Order::Flush(_) | Order::Erase(_) | Order::Identify) | Err(_) => 0,
    }
}

fn start(
    in_flight: &mut InFlight,
    chain: &Chain<'_, '_>,
    status: Segments<'_, '_>,
    moved: Moved,
    steps: Vec<Step>,
) -> Handled {
    let Some(pinned) = chain.pin(status) else { return answer(status, Status::Failed, 0) };
    match in_flight.start(Flight::new(chain.head(), pinned, moved, steps)) {
        None => Handled::Deferred,
        // Nothing to move.
        Some(_) => answer(status, Status::Ok, 0),
    }
}

/// Writes the status of a request that has ended at once, with so many bytes of data.
fn answer(status: Segments<'_, '_>, code: Status, written: usize) -> Handled {
    status.copy_from(&[code as u8]);
    Handled::Done(used(written as u64))
}

/// Bytes written to a chain, the status included. A chain is at most 2^32 - 1 bytes long.
fn used(data: u64) -> u32 {
    u32::try_from(data + 1).unwrap_or(u32::MAX)
}

impl Totals {
    /// Counts how a request has ended; answers what the driver is told.
    fn account(&mut self, name: &str, moved: Moved, result: &io::Result<()>) -> Status {
        let Err(error) = result else {
            self.moved.to_guest += moved.to_guest;
            self.moved.from_guest += moved.from_guest;
            return Status::Ok;
        };
        let status = request::status_of(error);
        if status == Status::Failed {
            self.host_errors += 1;
            if self.host_errors <= FAILURES_LOGGED {
                log::warn!("{name}: the host failed a request: {error}");
            }
        }
        status
    }
}

fn parse_serial(serial: &str) -> Result<[u8; SERIAL_LENGTH], BlockError> {
    let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if serial.is_empty() || serial.len() > SERIAL_LENGTH || !printable {
        return Err(BlockError::Serial(serial.into()));
    }
    let mut bytes = [0; SERIAL_LENGTH];
    bytes[..serial.len()].copy_from_slice(serial.as_bytes());
    Ok(bytes)
}

/// Bytes of `virtio_blk_config` up to the end of the write-zeroes fields.
const CONFIG_LENGTH: usize = 60;

/// `virtio_blk_config` (§5.2.4).
fn config_space(disk: &Disk) -> [u8; CONFIG_LENGTH] {
    let mut config = [0; CONFIG_LENGTH];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &(disk.extents().length() / SECTOR).to_le_bytes());
    // seg_max: the header and the status take one descriptor each.
    put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
    // blk_size, and the hint that 4096 bytes suit the host: physical_block_exp and min_io_size.
    put(20, &512_u32.to_le_bytes());
    put(24, &[3]);
    put(26, &8_u16.to_le_bytes());
    // max_discard_sectors, max_discard_seg, discard_sector_alignment.
    put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
    put(40, &ERASE_SEGMENTS_MAX.to_le_bytes());
    put(44, &8_u32.to_le_bytes());
    // max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap.
    put(48, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
    put(52, &ERASE_SEGMENTS_MAX.to_le_bytes());
    put(56, &[1]);
    config
}

impl VirtioDevice for Block {
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
        let access = match (self.disk.access(), self.discard) {
            (DiskAccess::ReadOnly, _) => FEATURE_RO,
            (DiskAccess::ReadWrite, DiskDiscard::On) => {
                FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES
            }
            (DiskAccess::ReadWrite, DiskDiscard::Off) => FEATURE_FLUSH,
        };
        FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_TOPOLOGY | access
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activated: Activated) {
        let features = activated.features;
        let requests = activated.queues.into_iter().next().flatten();
        self.running = requests.map(|requests| Running { requests, features, pause: Pause::No });
    }

    fn reset(&mut self) {
        // The driver gets its memory back when this returns: nobody may be writing to it any more.
        self.in_flight.discard();
        self.running = None;
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        if self.running.is_none() {
            return Err(DeviceError::MissingQueue(queue));
        }
        self.serve()
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        self.sources().into_iter().map(|(fd, _)| fd).collect()
    }

    fn fd_ready(&mut self, index: usize) -> Result<(), DeviceError> {
        match self.sources().get(index) {
            Some((_, Source::Engine)) => self.advance(),
            Some((_, Source::Throttle)) => {
                if let Some(throttle) = &self.throttle {
                    throttle.acknowledge()?;
                }
                self.serve()
            }
            None => Ok(()),
        }
    }

    fn quiesce(&mut self) -> Result<Quiet, DeviceError> {
        self.collect(|in_flight, ended| in_flight.drain(ended))?;
        if let Some(Running { requests, pause: Pause::Full, .. }) = &self.running {
            // Nothing will end any more that would bring what is in the ring to mind.
            requests.notify_self();
        }
        Ok(Quiet::Yes)
    }

    fn bytes_moved(&self) -> (u64, u64) {
        (self.totals.moved.to_guest, self.totals.moved.from_guest)
    }

    fn host_errors(&self) -> u64 {
        self.totals.host_errors
    }
}
