//! The block device (virtio 1.3 §5.2): extents of files as one raw disk.
//!
//! The content is never looked at: there is no format but raw, so nothing the guest writes can change what the disk
//! is. Data moves by `preadv(2)` and `pwritev(2)` between the files and guest memory, on the thread that calls.

use std::os::fd::OwnedFd;

use hull_protocol::vmm::{DiskAccess, DiskConfig};

use super::device::{Activated, DeviceError, VirtioDevice};
use super::queue::{Handled, RunningQueue};

mod disk;
mod extents;
mod request;
#[cfg(test)]
mod tests;

use disk::Disk;
pub use extents::ExtentError;
use extents::Extents;
use request::{ERASE_SECTORS_MAX, Moved};

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

/// A disk.
#[derive(Debug)]
pub struct Block {
    name: String,
    disk: Disk,
    config: [u8; CONFIG_LENGTH],
    running: Option<Running>,
    moved: Moved,
}

#[derive(Debug)]
struct Running {
    requests: RunningQueue,
    features: u64,
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
        Ok(Self {
            name: format!("blk-{}", config.serial),
            config: config_space(&disk),
            disk,
            running: None,
            moved: Moved::default(),
        })
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
    put(36, &ERASE_SECTORS_MAX.to_le_bytes());
    put(40, &1_u32.to_le_bytes());
    put(44, &8_u32.to_le_bytes());
    // max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap.
    put(48, &ERASE_SECTORS_MAX.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
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
        let access = match self.disk.access() {
            DiskAccess::ReadOnly => FEATURE_RO,
            DiskAccess::ReadWrite if self.disk.extents().is_single() => {
                FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_WRITE_ZEROES
            }
            DiskAccess::ReadWrite => FEATURE_FLUSH,
        };
        FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_TOPOLOGY | access
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn activate(&mut self, activated: Activated) {
        let features = activated.features;
        let requests = activated.queues.into_iter().next().flatten();
        self.running = requests.map(|requests| Running { requests, features });
    }

    fn reset(&mut self) {
        self.running = None;
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        let Some(running) = &mut self.running else { return Err(DeviceError::MissingQueue(queue)) };
        let features = running.features;
        running
            .requests
            .process(|chain| {
                let (moved, written) = request::execute(chain, &self.disk, features);
                self.moved.to_guest += moved.to_guest;
                self.moved.from_guest += moved.from_guest;
                Handled::Done(written)
            })
            .map_err(|source| DeviceError::Queue { queue, source })
    }

    fn bytes_moved(&self) -> (u64, u64) {
        (self.moved.to_guest, self.moved.from_guest)
    }
}
