//! A guest whose driver is the fuzzer: it brings a device up as a driver should, or nearly, and then does whatever the
//! input says with registers, rings, descriptors and memory.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use arbitrary::{Result, Unstructured};
use hull_vmm::virtio::guarded::Memory;
use hull_vmm::virtio::{MmioTransport, VirtioDevice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};

/// Where guest memory begins: two neighbouring regions, a hole, and a page.
pub const BASE: u64 = 0x10_0000;
const REGION: usize = 0x1_0000;
/// The end of the two neighbours.
pub const END: u64 = BASE + 2 * REGION as u64;
/// A page of guest memory with nothing around it.
pub const ISLAND: u64 = 0x100_0000;
const PAGE: usize = 0x1000;

/// Descriptors of each ring.
const SIZE: u16 = 16;
/// Memory of one queue's rings.
const QUEUE_AREA: u64 = AREA as u64;
const AREA: usize = 0x400;
const AVAILABLE: u64 = 0x100;
const USED: u64 = 0x200;
/// Actions of one input at most, and turns of the event loop after each.
const ACTIONS: usize = 64;
const TURNS: usize = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

const STATUS: u64 = 0x70;
const RUNNING: u32 = 15;

/// What is particular to a device.
pub trait Peer {
    /// What a driver would put into the first buffer of a request, more or less.
    fn message(&mut self, u: &mut Unstructured<'_>, queue: usize) -> Result<Vec<u8>>;

    /// The device's other side does something.
    fn act(&mut self, _u: &mut Unstructured<'_>) -> Result<()> {
        Ok(())
    }

    /// Before each input: forgets what was before.
    fn begin(&mut self) {}
}

/// A device with its guest.
pub struct Guest<P> {
    transport: MmioTransport,
    memory: Memory,
    peer: P,
    queues: Vec<Ring>,
    next_buffer: u64,
}

struct Ring {
    base: u64,
    next_descriptor: u16,
    available: u16,
}

impl<P: Peer> Guest<P> {
    /// A guest in front of a device that is in reset.
    pub fn new(device: Box<dyn VirtioDevice>, peer: P) -> Self {
        let memory = Memory::new(&[(BASE, REGION), (BASE + REGION as u64, REGION), (ISLAND, PAGE)]);
        let transport = MmioTransport::new(memory.guest.clone(), device).unwrap();
        let bases = (0..).map(|index| BASE + QUEUE_AREA * index).take(transport.queue_events().len());
        let queues = bases.map(|base| Ring { base, next_descriptor: 0, available: 0 }).collect();
        Self { transport, memory, peer, queues, next_buffer: 0 }
    }

    /// Does what the input says; afterwards a driver that follows the rules finds a device that works.
    pub fn run(&mut self, input: &[u8]) {
        self.forget();
        let mut u = Unstructured::new(input);
        // An input that ends in the middle of something has said all that it had to say.
        let _ended: Result<()> = self.follow(&mut u);
        self.recover();
    }

    /// Nothing but accesses to registers, and to memory that queues may be in.
    pub fn run_registers(&mut self, input: &[u8]) {
        self.forget();
        let mut u = Unstructured::new(input);
        let _ended: Result<()> = self.access(&mut u);
        self.recover();
    }

    fn access(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..4 * ACTIONS {
            if u.is_empty() {
                break;
            }
            match u.int_in_range(0..=15)? {
                0 => self.start(u.arbitrary()?),
                1 => self.poke(u)?,
                2 => self.read(u)?,
                3 => self.settle(),
                _ => self.write(u)?,
            }
        }
        Ok(())
    }

    fn follow(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let wanted = if u.ratio(3, 4)? { u64::MAX } else { u.arbitrary()? };
        self.start(wanted);
        for _ in 0..ACTIONS {
            if u.is_empty() {
                break;
            }
            match u.int_in_range(0..=15)? {
                0..=6 => self.request(u)?,
                7 => self.raw_chain(u)?,
                8 => self.write(u)?,
                9 => self.read(u)?,
                10 => self.poke(u)?,
                11..=12 => self.peer.act(u)?,
                13 => {
                    let _quiet = self.transport.quiesce();
                }
                14 => self.jump(u)?,
                _ => {
                    let wanted = if u.ratio(1, 2)? { u64::MAX } else { u.arbitrary()? };
                    self.start(wanted);
                }
            }
            if u.ratio(3, 4)? {
                self.settle();
            }
        }
        self.settle();
        Ok(())
    }

    fn forget(&mut self) {
        self.set(STATUS, 0);
        self.peer.begin();
        self.settle();
        for (start, length) in [(BASE, 2 * REGION), (ISLAND, PAGE)] {
            self.memory.guest.write_slice(&[0; 2 * REGION][..length], GuestAddress(start)).unwrap();
        }
    }

    fn recover(&mut self) {
        self.start(u64::MAX);
        assert_eq!(self.get(STATUS), RUNNING, "a reset does not bring the device back");
    }

    /// The initialisation of virtio 1.3 §3.1.1.
    fn start(&mut self, wanted: u64) {
        self.set(STATUS, 0);
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        for (half, shift) in [(0, 0), (1, 32)] {
            self.set(0x14, half);
            let offered = self.get(0x10);
            self.set(0x24, half);
            // VERSION_1 is no choice.
            let wanted = u32::try_from(wanted >> shift & u64::from(u32::MAX)).unwrap() | half;
            self.set(0x20, offered & wanted);
        }
        self.set(STATUS, 11);
        self.next_buffer = BASE + QUEUE_AREA * self.queues.len() as u64;
        for index in 0..self.queues.len() {
            let base = self.queues[index].base;
            self.queues[index] = Ring { base, next_descriptor: 0, available: 0 };
            let area = [0; AREA];
            self.memory.guest.write_slice(&area, GuestAddress(base)).unwrap();
            self.set(0x30, u32::try_from(index).unwrap());
            self.set(0x38, u32::from(SIZE));
            for (register, offset) in [(0x80, 0), (0x90, AVAILABLE), (0xa0, USED)] {
                self.set(register, u32::try_from(base + offset).unwrap());
                self.set(register + 4, 0);
            }
            self.set(0x44, 1);
        }
        self.set(STATUS, RUNNING);
    }

    fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn register(u: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match u.int_in_range(0..=7)? {
            0 => u.arbitrary::<u16>()?.into(),
            1 => 0x100 + u64::from(u.arbitrary::<u8>()?),
            2 => u.arbitrary()?,
            3 => STATUS,
            _ => u64::from(u.int_in_range(0..=0x40_u8)?) * 4,
        })
    }

    fn write(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let register = Self::register(u)?;
        let plain = u.ratio(7, 8)?;
        let value: u64 = match u.int_in_range(0..=3)? {
            0 => u.arbitrary()?,
            1 => BASE + u64::from(u.arbitrary::<u16>()?),
            2 => 1 << u.int_in_range(0..=63)?,
            _ => u.arbitrary::<u8>()?.into(),
        };
        let size = if plain { 4 } else { u.int_in_range(0..=8)? };
        self.transport.write(register, &value.to_le_bytes()[..size]);
        Ok(())
    }

    fn read(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let register = Self::register(u)?;
        let size = u.int_in_range(0..=16)?;
        self.transport.read(register, &mut [0xa5; 16][..size]);
        Ok(())
    }

    /// A few bytes anywhere in memory.
    fn poke(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let address = if u.ratio(3, 4)? {
            BASE + u64::from(u.int_in_range(0..=0x13ff_u16)?)
        } else {
            BASE + u64::from(u.arbitrary::<u16>()?)
        };
        let bytes = u.arbitrary::<u64>()?.to_le_bytes();
        let length = u.int_in_range(1..=8)?;
        self.memory.guest.write_slice(&bytes[..length], GuestAddress(address)).unwrap();
        Ok(())
    }

    /// An available index that nobody has reached.
    fn jump(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let queue = u.choose_index(self.queues.len())?;
        let index: u16 = u.arbitrary()?;
        self.queues[queue].available = index;
        let at = GuestAddress(self.queues[queue].base + AVAILABLE + 2);
        self.memory.guest.write_obj(index, at).unwrap();
        self.kick(queue);
        Ok(())
    }

    fn kick(&mut self, queue: usize) {
        self.set(0x50, u32::try_from(queue).unwrap());
    }

    /// Room for so many bytes, which begins again at the start when there is no more.
    fn allocate(&mut self, length: usize) -> u64 {
        let length = length as u64;
        if self.next_buffer + length > END {
            self.next_buffer = BASE + QUEUE_AREA * self.queues.len() as u64;
        }
        let address = self.next_buffer;
        self.next_buffer += length;
        address
    }

    /// A place for a buffer: nearly always one that exists.
    fn place(&mut self, u: &mut Unstructured<'_>, length: usize) -> Result<u64> {
        let length64 = length as u64;
        Ok(match u.int_in_range(0..=31)? {
            // Around the seam, or a few bytes over an end.
            0 => (BASE + REGION as u64).saturating_sub(length64 / 2),
            1 => (END + u64::from(u.int_in_range(0..=16_u8)?)).saturating_sub(length64),
            2 => ISLAND + u64::from(u.int_in_range(0..=0xfff_u16)?),
            3 => u.arbitrary()?,
            // In the rings.
            4 => BASE + u64::from(u.int_in_range(0..=0x3ff_u16)?),
            _ => self.allocate(length),
        })
    }

    /// One chain, as a driver makes it: something to read, then more to read, then room.
    fn request(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let queue = u.choose_index(self.queues.len())?;
        let mut chain = Vec::new();
        if u.ratio(15, 16)? {
            let message = self.peer.message(u, queue)?;
            // In one piece, or in two.
            let cut = if u.ratio(1, 8)? { u.choose_index(message.len() + 1)? } else { message.len() };
            for part in [&message[..cut], &message[cut..]].into_iter().filter(|part| !part.is_empty()) {
                let address = self.place(u, part.len())?;
                // What lies in no memory stays unwritten.
                let _outside = self.memory.guest.write_slice(part, GuestAddress(address));
                chain.push((address, u32::try_from(part.len()).unwrap(), 0));
            }
        }
        for _ in 0..u.int_in_range(0..=3)? {
            let length = Self::length(u)?;
            let address = self.place(u, length as usize)?;
            chain.push((address, length, if u.ratio(7, 8)? { WRITE } else { 0 }));
        }
        // Nearly always in the order that the rules want.
        if u.ratio(15, 16)? {
            chain.sort_by_key(|(.., flags)| *flags);
        }
        // The byte that so many devices answer with.
        if u.ratio(1, 2)? {
            chain.push((self.allocate(1), 1, WRITE));
        }
        self.publish(u, queue, &chain)
    }

    fn length(u: &mut Unstructured<'_>) -> Result<u32> {
        Ok(match u.int_in_range(0..=7)? {
            0 => u.arbitrary()?,
            1 => u.arbitrary::<u16>()?.into(),
            2 => u32::from(u.int_in_range(0..=64_u8)?),
            3 => 0x1000,
            4 => 512,
            _ => u32::from(u.int_in_range(0..=0x800_u16)?),
        })
    }

    fn publish(&mut self, u: &mut Unstructured<'_>, queue: usize, chain: &[(u64, u32, u16)]) -> Result<()> {
        let indirect = u.ratio(1, 4)? && !chain.is_empty();
        let table = if indirect { self.allocate(16 * chain.len()) } else { self.queues[queue].base };
        let first = if indirect { 0 } else { self.queues[queue].next_descriptor };
        let wrap = if indirect { u16::MAX } else { SIZE - 1 };
        let index = |position: usize| (first + u16::try_from(position).unwrap()) & wrap;
        for (position, (address, length, flags)) in chain.iter().enumerate() {
            let more = if position + 1 < chain.len() { NEXT } else { 0 };
            self.descriptor(table, index(position), (*address, *length, flags | more, index(position + 1)));
        }
        let head = if indirect {
            let head = self.queues[queue].next_descriptor;
            let length = u32::try_from(16 * chain.len()).unwrap();
            self.descriptor(self.queues[queue].base, head, (table, length, INDIRECT, 0));
            self.queues[queue].next_descriptor = (head + 1) % SIZE;
            head
        } else {
            self.queues[queue].next_descriptor = index(chain.len());
            first
        };
        self.make_available(queue, head);
        if u.ratio(7, 8)? {
            self.kick(queue);
        }
        Ok(())
    }

    /// Descriptors as they come: loops, tables in tables, anything.
    fn raw_chain(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let queue = u.choose_index(self.queues.len())?;
        let table = self.queues[queue].base;
        for _ in 0..u.int_in_range(1..=4)? {
            let index = u.int_in_range(0..=SIZE - 1)?;
            let length = Self::length(u)?;
            let address = self.place(u, length as usize)?;
            let flags = if u.ratio(7, 8)? { u.int_in_range(0..=7)? } else { u.arbitrary()? };
            let next = if u.ratio(7, 8)? { u.int_in_range(0..=SIZE)? } else { u.arbitrary()? };
            self.descriptor(table, index, (address, length, flags, next));
        }
        let head = if u.ratio(7, 8)? { u.int_in_range(0..=SIZE)? } else { u.arbitrary()? };
        self.make_available(queue, head);
        self.kick(queue);
        Ok(())
    }

    fn descriptor(&mut self, table: u64, index: u16, descriptor: (u64, u32, u16, u16)) {
        let (address, length, flags, next) = descriptor;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.guest.write_slice(&bytes, at).unwrap();
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.queues[queue];
        let slot = ring.base + AVAILABLE + 4 + 2 * u64::from(ring.available % SIZE);
        ring.available = ring.available.wrapping_add(1);
        self.memory.guest.write_obj(head, GuestAddress(slot)).unwrap();
        self.memory.guest.write_obj(ring.available, GuestAddress(ring.base + AVAILABLE + 2)).unwrap();
    }

    /// The event loop, until nothing is left to do or a guest that never stops has had its share.
    fn settle(&mut self) {
        for _ in 0..TURNS {
            if !self.turn() {
                return;
            }
        }
    }

    fn turn(&mut self) -> bool {
        let queues = self.transport.queue_events().len();
        let raw: Vec<RawFd> = {
            let events = self.transport.queue_events().iter().map(AsRawFd::as_raw_fd);
            events.chain(self.transport.poll_fds()).collect()
        };
        // SAFETY: the transport keeps its descriptors open for its life.
        let borrowed = raw.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) });
        let mut fds: Vec<PollFd<'_>> = borrowed.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut fds, PollTimeout::ZERO).unwrap() == 0 {
            return false;
        }
        let ready: Vec<usize> = fds
            .iter()
            .enumerate()
            .filter(|(_, fd)| fd.any().unwrap_or(true))
            .map(|(index, _)| index)
            .collect();
        for index in ready {
            if index < queues {
                self.transport.queue_events()[index].read().unwrap();
                self.transport.queue_event(index);
            } else {
                self.transport.fd_ready(index - queues);
            }
        }
        true
    }
}
