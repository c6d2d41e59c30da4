//! Devices whose other side is nothing or a file: what their drivers send.

use std::fs::File;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::OwnedFd;

use arbitrary::{Result, Unstructured};
use hull_protocol::vmm::{
    DiskAccess, DiskConfig, DiskDiscard, DiskExtent, NetworkBackend, NetworkConfig, NetworkLimits,
    PmemConfig, RateLimits, TokenBucket,
};
use hull_vmm::virtio::VirtioDevice;
use hull_vmm::virtio::balloon::{Balloon, BalloonControl};
use hull_vmm::virtio::block::Block;
use hull_vmm::virtio::entropy::Entropy;
use hull_vmm::virtio::mem::{Mem, MemControl, REGION_ALIGNMENT};
use hull_vmm::virtio::net::Net;
use hull_vmm::virtio::pmem::Pmem;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use std::os::fd::AsRawFd;

use crate::Body;
use crate::guest::{BASE, END, Guest, Peer};

const DISK_BYTES: u64 = 64 << 10;
const SECTOR: u64 = 512;

/// A file in memory of this length.
pub fn file(length: u64) -> File {
    let file = File::from(memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(length).unwrap();
    file
}

/// A driver that reads what the input says.
struct Plain(fn(&mut Unstructured<'_>, usize) -> Result<Vec<u8>>);

impl Peer for Plain {
    fn message(&mut self, u: &mut Unstructured<'_>, queue: usize) -> Result<Vec<u8>> {
        (self.0)(u, queue)
    }
}

fn body<P: Peer + 'static>(device: impl VirtioDevice + 'static, peer: P) -> Body {
    let mut guest = Guest::new(Box::new(device), peer);
    Box::new(move |input| guest.run(input))
}

fn disk(limits: RateLimits) -> (DiskConfig, Vec<OwnedFd>) {
    // The second file is longer than what is seen of it.
    let half = DISK_BYTES / 2;
    let extents = vec![DiskExtent { offset: 0, length: half }, DiskExtent { offset: 512, length: half }];
    let config = DiskConfig {
        serial: "fuzz".into(),
        access: DiskAccess::ReadWrite,
        extents,
        discard: DiskDiscard::On,
        limits,
    };
    (config, vec![file(half).into(), file(DISK_BYTES).into()])
}

fn block_request(u: &mut Unstructured<'_>, _queue: usize) -> Result<Vec<u8>> {
    let kind: u32 = match u.int_in_range(0..=7)? {
        0 => u.arbitrary()?,
        choice => [0, 1, 1, 4, 8, 11, 13][choice - 1],
    };
    let sector: u64 = match u.int_in_range(0..=3)? {
        0 => u.arbitrary()?,
        1 => (DISK_BYTES / SECTOR).wrapping_sub(u.int_in_range(0..=4)?),
        _ => u.int_in_range(0..=DISK_BYTES / SECTOR)?,
    };
    let mut message = [kind.to_le_bytes(), [0; 4]].concat();
    message.extend(sector.to_le_bytes());
    if matches!(kind, 11 | 13) {
        for _ in 0..u.int_in_range(0..=3)? {
            let start = if u.ratio(7, 8)? { u.int_in_range(0..=0x90)? } else { u.arbitrary::<u64>()? };
            let count = if u.ratio(7, 8)? { u.int_in_range(0..=0x90)? } else { u.arbitrary::<u32>()? };
            message.extend(start.to_le_bytes());
            message.extend(count.to_le_bytes());
            message.extend(u.int_in_range(0..=3_u32)?.to_le_bytes());
        }
    }
    Ok(message)
}

/// A disk that is served by plain system calls, and by a limit that no input reaches.
pub fn blk() -> Body {
    let bucket = TokenBucket {
        size: NonZeroU64::new(1 << 40).unwrap(),
        refill_ms: NonZeroU32::new(1).unwrap(),
        one_time_burst: 0,
    };
    let (config, fds) = disk(RateLimits { bandwidth: Some(bucket), operations: None });
    body(Block::without_ring(&config, fds).unwrap(), Plain(block_request))
}

/// A disk that is served by io_uring, where there is one.
pub fn blk_ring() -> Body {
    let (config, fds) = disk(RateLimits::default());
    body(Block::new(&config, fds).unwrap(), Plain(block_request))
}

/// The entropy device.
pub fn rng() -> Body {
    body(Entropy::new(), Plain(|u, _| Ok(vec![0; u.int_in_range(0..=64)?])))
}

/// A file as memory.
pub fn pmem() -> Body {
    let config = PmemConfig { name: "fuzz".into(), length: 2 << 20, access: DiskAccess::ReadWrite };
    let (device, region) = Pmem::new(&config, file(2 << 20).into(), 1 << 32).unwrap();
    let mut guest = Guest::new(
        Box::new(device),
        Plain(|u, _| {
            let kind: u32 = if u.ratio(7, 8)? { 0 } else { u.arbitrary()? };
            let length = if u.ratio(7, 8)? { 4 } else { u.int_in_range(0..=4)? };
            Ok(kind.to_le_bytes()[..length].to_vec())
        }),
    );
    Box::new(move |input| {
        // The mapping lives as long as the guest.
        let _mapped = &region;
        guest.run(input);
    })
}

struct Plugging(MemControl);

const MEM_START: u64 = 1 << 32;

impl Peer for Plugging {
    fn message(&mut self, u: &mut Unstructured<'_>, _queue: usize) -> Result<Vec<u8>> {
        let kind: u16 = if u.ratio(15, 16)? { u.int_in_range(0..=3)? } else { u.arbitrary()? };
        let address: u64 = match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 => BASE,
            _ => MEM_START + (u64::from(u.int_in_range(0..=130_u8)?) << 21),
        };
        let blocks: u16 = if u.ratio(3, 4)? { u.int_in_range(0..=8)? } else { u.arbitrary()? };
        let mut message = kind.to_le_bytes().to_vec();
        message.extend([0; 6]);
        message.extend(address.to_le_bytes());
        message.extend(blocks.to_le_bytes());
        message.extend([0; 6]);
        Ok(message)
    }

    fn act(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.0.request(u.int_in_range(0..=256)?);
        Ok(())
    }

    fn begin(&mut self) {
        self.0.request(0);
    }
}

/// Memory to plug.
pub fn mem() -> Body {
    let (device, control) = Mem::new(&(MEM_START..MEM_START + 2 * REGION_ALIGNMENT)).unwrap();
    body(device, Plugging(control))
}

struct Inflating(BalloonControl);

impl Peer for Inflating {
    fn message(&mut self, u: &mut Unstructured<'_>, queue: usize) -> Result<Vec<u8>> {
        let mut message = Vec::new();
        if queue == 2 {
            for _ in 0..u.int_in_range(0..=12)? {
                let tag: u16 = if u.ratio(7, 8)? { u.int_in_range(0..=16)? } else { u.arbitrary()? };
                message.extend(tag.to_le_bytes());
                message.extend(u.arbitrary::<u64>()?.to_le_bytes());
            }
            message.truncate(message.len().saturating_sub(u.int_in_range(0..=1)?));
            return Ok(message);
        }
        let page = |address: u64| u32::try_from(address >> 12).unwrap();
        for _ in 0..u.int_in_range(0..=24)? {
            // Not the pages of the rings, or every input would end here.
            let number =
                if u.ratio(7, 8)? { u.int_in_range(page(BASE) + 2..=page(END) + 1)? } else { u.arbitrary()? };
            message.extend(number.to_le_bytes());
        }
        Ok(message)
    }

    fn act(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.0.set_target(u.arbitrary()?);
        // Whatever the guest has said, it can be asked for.
        let _stats = self.0.stats();
        Ok(())
    }

    fn begin(&mut self) {
        self.0.set_target(0);
    }
}

/// The balloon.
pub fn balloon() -> Body {
    let (device, control) = Balloon::new().unwrap();
    body(device, Inflating(control))
}

/// The other end of a tap.
struct Wire(OwnedFd);

/// A header of a frame: nothing special, segments of TCP, or anything.
fn frame_header(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut header = match u.int_in_range(0..=3)? {
        0 => [0; 12],
        1 => [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0],
        2 => [1, 5, 42, 0, 0xa8, 5, 34, 0, 6, 0, 0, 0],
        _ => u.arbitrary()?,
    };
    if u.ratio(1, 4)? {
        header[u.choose_index(12)?] = u.arbitrary()?;
    }
    let length = if u.ratio(15, 16)? { 12 } else { u.int_in_range(0..=12)? };
    Ok(header[..length].to_vec())
}

impl Wire {
    fn drain(&self) {
        let mut frame = [0; 64];
        while recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {}
    }
}

impl Peer for Wire {
    fn message(&mut self, u: &mut Unstructured<'_>, _queue: usize) -> Result<Vec<u8>> {
        let mut frame = frame_header(u)?;
        let length = if u.ratio(7, 8)? { u.int_in_range(0..=128)? } else { u.int_in_range(0..=0x1_0100)? };
        frame.resize(frame.len() + length, 0x45);
        Ok(frame)
    }

    fn act(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if u.ratio(1, 4)? {
            self.drain();
            return Ok(());
        }
        let mut frame = frame_header(u)?;
        let length: usize =
            if u.ratio(3, 4)? { u.int_in_range(0..=256)? } else { u.int_in_range(0..=0x1_0100)? };
        frame.resize(frame.len() + length, 0x46);
        // A wire that is full, or a frame that is empty, is no frame.
        let _full = send(self.0.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT);
        Ok(())
    }

    fn begin(&mut self) {
        self.drain();
    }
}

fn network() -> (Net, Wire) {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let config = NetworkConfig {
        name: "fuzz".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: NetworkLimits::default(),
        backend: NetworkBackend::default(),
    };
    (Net::stand_in(&config, ours), Wire(theirs))
}

/// A network interface.
pub fn net() -> Body {
    let (device, wire) = network();
    body(device, wire)
}

/// Registers of a device that the first byte chooses: accesses of every size, in every order.
pub fn registers() -> Body {
    let nothing = || Plain(|_, _| Ok(Vec::new()));
    let (config, fds) = disk(RateLimits::default());
    let (balloon, balloon_control) = Balloon::new().unwrap();
    let (mem, mem_control) = Mem::new(&(MEM_START..MEM_START + 2 * REGION_ALIGNMENT)).unwrap();
    let (network, wire) = network();
    let (vsock, host) = crate::vsock::socket();
    let devices: [Box<dyn VirtioDevice>; 6] = [
        Box::new(Entropy::new()),
        Box::new(Block::without_ring(&config, fds).unwrap()),
        Box::new(balloon),
        Box::new(mem),
        Box::new(network),
        Box::new(vsock),
    ];
    let mut guests: Vec<Guest<Plain>> =
        devices.into_iter().map(|device| Guest::new(device, nothing())).collect();
    Box::new(move |input| {
        // What the devices talk to lives as long as they do.
        let _others = (&balloon_control, &mem_control, &wire, &host);
        let Some((choice, input)) = input.split_first() else { return };
        let count = guests.len();
        guests[usize::from(*choice) % count].run_registers(input);
    })
}
