//! A guest driver in memory: it speaks virtio to a device behind its registers, in guest memory that ends in pages
//! that may not be touched.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::device::VirtioDevice;
pub use super::guarded::Memory;
use super::mmio::{MmioTransport, QUEUE_NOTIFY};
use super::queue::{FEATURE_EVENT_IDX, FEATURE_INDIRECT};

pub mod echo;

pub const MAGIC: u64 = 0x00;
pub const DEVICE_FEATURES: u64 = 0x10;
pub const DEVICE_FEATURES_SEL: u64 = 0x14;
pub const DRIVER_FEATURES: u64 = 0x20;
pub const DRIVER_FEATURES_SEL: u64 = 0x24;
pub const QUEUE_SEL: u64 = 0x30;
pub const QUEUE_NUM_MAX: u64 = 0x34;
pub const QUEUE_NUM: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const INTERRUPT_STATUS: u64 = 0x60;
pub const INTERRUPT_ACK: u64 = 0x64;
pub const STATUS: u64 = 0x70;
pub const QUEUE_DESC: u64 = 0x80;
pub const QUEUE_DRIVER: u64 = 0x90;
pub const QUEUE_DEVICE: u64 = 0xa0;

pub const VERSION_1: u64 = 1 << 32;
pub const RUNNING: u32 = 15;
pub const NEEDS_RESET: u32 = 64;

/// Where guest memory begins in these tests.
pub const BASE: u64 = 0x10_0000;
const QUEUE_AREA: u64 = 0x3000;
/// Longest wait for something that must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// A buffer in a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
}

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub fn readable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, flags: 0 }
}

pub fn writable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, flags: WRITE }
}

struct DriverQueue {
    size: u16,
    base: u64,
    next_available: u16,
    notified: u16,
    last_used: u16,
    free: VecDeque<u16>,
    /// By head: the descriptors of the chain.
    chains: Vec<Vec<u16>>,
}

impl DriverQueue {
    fn descriptors(&self) -> u64 {
        self.base
    }
    fn available(&self) -> u64 {
        self.base + 0x1000
    }
    fn used(&self) -> u64 {
        self.base + 0x2000
    }
}

/// The driver. The transport is dropped before the memory it uses.
pub struct Driver {
    pub transport: MmioTransport,
    irq: EventFd,
    queues: Vec<DriverQueue>,
    features: u64,
    next_buffer: u64,
    first_buffer: u64,
    pub memory: Memory,
}

impl Driver {
    /// A device in reset, with `size` bytes of memory.
    pub fn new(device: Box<dyn VirtioDevice>, size: usize) -> Self {
        Self::with_memory(device, Memory::new(&[(BASE, size)]))
    }

    pub fn with_memory(device: Box<dyn VirtioDevice>, memory: Memory) -> Self {
        let sizes = device.max_queue_sizes().to_vec();
        let transport = MmioTransport::new(memory.guest.clone(), device).unwrap();
        let irq = transport.interrupt().event().try_clone().unwrap();
        let first_buffer = BASE + QUEUE_AREA * sizes.len() as u64;
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| DriverQueue {
                size: *size,
                base: BASE + QUEUE_AREA * index as u64,
                next_available: 0,
                notified: 0,
                last_used: 0,
                free: (0..*size).collect(),
                chains: vec![Vec::new(); usize::from(*size)],
            })
            .collect();
        Self { transport, irq, queues, features: 0, next_buffer: first_buffer, first_buffer, memory }
    }

    /// A device in use, with all it offers.
    pub fn running(device: Box<dyn VirtioDevice>, size: usize) -> Self {
        let mut driver = Self::new(device, size);
        driver.start(u64::MAX);
        assert_eq!(driver.get(STATUS), RUNNING);
        driver
    }

    pub fn get(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub fn set_address(&mut self, register: u64, value: u64) {
        self.set(register, u32::try_from(value & 0xffff_ffff).unwrap());
        self.set(register + 4, u32::try_from(value >> 32).unwrap());
    }

    pub fn offered(&mut self) -> u64 {
        self.set(DEVICE_FEATURES_SEL, 0);
        let low = u64::from(self.get(DEVICE_FEATURES));
        self.set(DEVICE_FEATURES_SEL, 1);
        low | u64::from(self.get(DEVICE_FEATURES)) << 32
    }

    /// Up to FEATURES_OK, accepting what is offered of `wanted`.
    pub fn negotiate(&mut self, wanted: u64) {
        self.set(STATUS, 0);
        for queue in &mut self.queues {
            queue.next_available = 0;
            queue.notified = 0;
            queue.last_used = 0;
            queue.free = (0..queue.size).collect();
            let zero = vec![0; usize::try_from(QUEUE_AREA).unwrap()];
            self.memory.guest.write_slice(&zero, GuestAddress(queue.base)).unwrap();
        }
        self.next_buffer = self.first_buffer;
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        let features = self.offered() & wanted;
        self.features = features;
        self.accept(features);
        self.set(STATUS, 11);
    }

    pub fn accept(&mut self, features: u64) {
        self.set(DRIVER_FEATURES_SEL, 0);
        self.set(DRIVER_FEATURES, u32::try_from(features & 0xffff_ffff).unwrap());
        self.set(DRIVER_FEATURES_SEL, 1);
        self.set(DRIVER_FEATURES, u32::try_from(features >> 32).unwrap());
    }

    pub fn set_up_queue(&mut self, index: usize) {
        let (size, descriptors) = (self.queues[index].size, self.queues[index].descriptors());
        let (available, used) = (self.queues[index].available(), self.queues[index].used());
        self.set(QUEUE_SEL, u32::try_from(index).unwrap());
        self.set(QUEUE_NUM, u32::from(size));
        self.set_address(QUEUE_DESC, descriptors);
        self.set_address(QUEUE_DRIVER, available);
        self.set_address(QUEUE_DEVICE, used);
        self.set(QUEUE_READY, 1);
    }

    /// The whole initialisation (§3.1.1).
    pub fn start(&mut self, wanted: u64) {
        self.negotiate(wanted);
        for index in 0..self.queues.len() {
            self.set_up_queue(index);
        }
        self.set(STATUS, RUNNING);
    }

    /// Lets all buffers be used again.
    pub fn free_buffers(&mut self) {
        self.next_buffer = self.first_buffer;
    }

    /// Fresh guest memory, not aligned to anything.
    pub fn allocate(&mut self, length: usize) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += length as u64;
        assert!(
            length == 0 || self.memory.guest.read_slice(&mut [0], GuestAddress(self.next_buffer - 1)).is_ok()
        );
        address
    }

    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        self.poke(address, bytes);
        address
    }

    pub fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory.guest.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.guest.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn write_descriptor(&self, table: u64, index: u16, buffer: Buffer, next: u16) {
        let at = table + 16 * u64::from(index);
        self.poke(at, &buffer.address.to_le_bytes());
        self.poke(at + 8, &buffer.length.to_le_bytes());
        self.poke(at + 12, &buffer.flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Writes a descriptor as it is, with whatever flags and next index.
    pub fn raw_descriptor(&self, queue: usize, index: u16, buffer: Buffer, next: u16) {
        self.write_descriptor(self.queues[queue].descriptors(), index, buffer, next);
    }

    /// Makes a chain available; answers its head.
    pub fn add(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> = self.queues[queue].free.drain(..buffers.len()).collect();
        for (position, buffer) in buffers.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            let flags = buffer.flags | if next.is_some() { NEXT } else { 0 };
            self.raw_descriptor(queue, indices[position], Buffer { flags, ..*buffer }, next.unwrap_or(0));
        }
        self.publish(queue, indices)
    }

    /// Makes a chain available whose descriptors are in a table of their own.
    pub fn add_indirect(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let table = self.allocate(16 * buffers.len());
        for (position, buffer) in buffers.iter().enumerate() {
            let last = position + 1 == buffers.len();
            let (flags, next) = if last { (0, 0) } else { (NEXT, u16::try_from(position + 1).unwrap()) };
            let buffer = Buffer { flags: buffer.flags | flags, ..*buffer };
            self.write_descriptor(table, u16::try_from(position).unwrap(), buffer, next);
        }
        let length = u32::try_from(16 * buffers.len()).unwrap();
        self.add(queue, &[Buffer { address: table, length, flags: INDIRECT }])
    }

    /// Makes available whatever is in the descriptor table at `head`.
    pub fn add_raw(&mut self, queue: usize, head: u16) {
        let slot = self.queues[queue].next_available % self.queues[queue].size;
        let available = self.queues[queue].available();
        self.poke(available + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.queues[queue].next_available = self.queues[queue].next_available.wrapping_add(1);
        let index = self.queues[queue].next_available;
        self.set_available_index(queue, index);
    }

    /// Where the index of the available ring is.
    pub fn available_index(&self, queue: usize) -> u64 {
        self.queues[queue].available() + 2
    }

    pub fn set_available_index(&self, queue: usize, index: u16) {
        let address = GuestAddress(self.available_index(queue));
        self.memory.guest.store(index, address, Ordering::SeqCst).unwrap();
    }

    fn publish(&mut self, queue: usize, indices: Vec<u16>) -> u16 {
        let head = indices[0];
        self.queues[queue].chains[usize::from(head)] = indices;
        self.add_raw(queue, head);
        head
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.guest.load(GuestAddress(address), Ordering::SeqCst).unwrap()
    }

    /// Notifies the device if it wants to know (§2.7.10), and never otherwise. Answers whether it did.
    pub fn notify(&mut self, index: usize) -> bool {
        let queue = &self.queues[index];
        let (new, old) = (queue.next_available, queue.notified);
        let wanted = if self.features & FEATURE_EVENT_IDX != 0 {
            let event = self.load(queue.used() + 4 + 8 * u64::from(queue.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(queue.used()) & 1 == 0
        };
        self.queues[index].notified = new;
        if wanted {
            self.kick(index);
        }
        wanted
    }

    /// Notifies the device.
    pub fn kick(&mut self, queue: usize) {
        self.set(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Adds a chain, notifies and handles everything until the device is idle.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.add(queue, buffers);
        self.notify(queue);
        self.settle();
        head
    }

    /// Asks for an interrupt when the chain of this used index has come back (§2.7.7.1).
    pub fn ask_for_interrupt_after(&self, index: usize, used: u16) {
        let queue = &self.queues[index];
        let event = GuestAddress(queue.available() + 4 + 2 * u64::from(queue.size));
        self.memory.guest.store(used, event, Ordering::SeqCst).unwrap();
    }

    /// The chains that have come back: head and bytes written. Asks for an interrupt for the next.
    pub fn used(&mut self, index: usize) -> Vec<(u16, u32)> {
        let mut all = Vec::new();
        let queue = &self.queues[index];
        let (size, used) = (queue.size, queue.used());
        loop {
            while self.queues[index].last_used != self.load(used + 2) {
                let at = used + 4 + 8 * u64::from(self.queues[index].last_used % size);
                let entry: [u8; 8] = self.peek(at, 8).try_into().unwrap();
                let entry = u64::from_le_bytes(entry);
                let head = u16::try_from(entry & 0xffff_ffff).unwrap();
                let chain = std::mem::take(&mut self.queues[index].chains[usize::from(head)]);
                self.queues[index].free.extend(chain);
                self.queues[index].last_used = self.queues[index].last_used.wrapping_add(1);
                all.push((head, u32::try_from(entry >> 32).unwrap()));
            }
            self.ask_for_interrupt_after(index, self.queues[index].last_used);
            if self.queues[index].last_used == self.load(used + 2) {
                return all;
            }
        }
    }

    /// The chains that come back from a device that works on a thread of its own: at least one.
    pub fn wait_interrupt(&mut self, index: usize) -> Vec<(u16, u32)> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.settle();
            let used = self.used(index);
            if !used.is_empty() {
                return used;
            }
            assert!(Instant::now() < deadline, "nothing comes back");
            // SAFETY: the driver keeps its event open for its life.
            let irq = unsafe { BorrowedFd::borrow_raw(self.irq.as_raw_fd()) };
            let mut fds = [PollFd::new(irq, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(100_u8)).unwrap();
            self.interrupted();
        }
    }

    /// Whether an interrupt came since the last call; acknowledges it as a driver does.
    pub fn interrupted(&mut self) -> bool {
        if self.irq.read().is_err() {
            return false;
        }
        let status = self.get(INTERRUPT_STATUS);
        self.set(INTERRUPT_ACK, status);
        true
    }

    /// One round of an event loop: waits at most `timeout` for something to do and does all of it. Answers whether
    /// there was anything.
    pub fn turn(&mut self, timeout: PollTimeout) -> bool {
        let queue_fds: Vec<RawFd> =
            self.transport.watched_queue_events().iter().map(AsRawFd::as_raw_fd).collect();
        let device_fds = self.transport.poll_fds();
        let ready: Vec<bool> = {
            let all = queue_fds.iter().chain(&device_fds);
            // SAFETY: the transport keeps its descriptors open for its life.
            let all = all.map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) });
            let mut fds: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll(&mut fds, timeout).unwrap();
            fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
        };
        for (index, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            if index < queue_fds.len() {
                self.transport.queue_events()[index].read().unwrap();
                self.transport.queue_event(index);
            } else {
                self.transport.fd_ready(index - queue_fds.len());
            }
        }
        ready.contains(&true)
    }

    /// Turns until so many chains have come back.
    pub fn wait_used(&mut self, queue: usize, count: usize) -> Vec<(u16, u32)> {
        let deadline = Instant::now() + DEADLINE;
        let mut all = self.used(queue);
        while all.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} chains have come back", all.len());
            self.turn(PollTimeout::from(1000_u16));
            all.extend(self.used(queue));
        }
        all
    }

    /// Turns until nothing is left to do.
    pub fn settle(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while self.turn(PollTimeout::ZERO) {
            assert!(Instant::now() < deadline, "the device never becomes idle");
        }
    }
}

/// A file of this content, deleted when closed.
pub fn file_with(content: &[u8]) -> std::fs::File {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// The same file by a descriptor of its own, with other flags.
pub fn reopen(file: &std::fs::File, options: &std::fs::OpenOptions) -> std::fs::File {
    options.open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap()
}

/// Both ring features.
pub const RING_FEATURES: u64 = FEATURE_EVENT_IDX | FEATURE_INDIRECT;
