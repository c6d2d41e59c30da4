//! Guests that do their worst with a network and with shared files, whose other ends are a tap that is flooded from outside
//! and the real file broker. As in `hostile.rs`, the monitor must live, answer in time, serve its disk meanwhile, and
//! not grow; the broker must live, and nothing beside what it shares may change.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

use hull_protocol::vmm::{FsCache, FsConfig, NetworkBackend, NetworkConfig, NetworkLimits, Request};
use support::attacks::{Device, bad_chains, random_accesses, reprogram};
use support::broker::Broker;
use support::driver::{
    BLK, BUFFERS, NOTIFY, RINGS, STATUS, descriptor, offer_again, read_the_disk, rings, start, submit,
};
use support::guest::{Code, ENTRY, Elf};
use support::random::Random;
use support::shim::{Vmm, machine};
use support::tap::tap_of_this_thread;
use support::victim::{DISK, Victim, disk};

/// Windows of the devices, in the order in which [`boot`] adds them.
const NET: u32 = 0xd000_1000;
const FS: u32 = 0xd000_2000;
const DEVICES: [Device; 3] = [(BLK, 1), (NET, 2), (FS, 2)];

/// Queues, by index.
const RX: u32 = 0;
const TX: u32 = 1;
const REQUESTS: u32 = 1;

/// Where messages to the file system lie, which the kernel's file brings along.
const MESSAGES: u32 = 0x200_0000;
/// Where its answers go.
const ANSWER: u32 = BUFFERS + 0x8000;

/// What is beside the shared folder and must stay as it is.
const SENTINEL: &str = "sentinel";

/// Sends frames to a tap from outside as long as it lives.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// A tap, and the flood on it.
    fn start() -> (OwnedFd, Self) {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(1);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let tap = tap_of_this_thread();
            let packets = packet_socket();
            sender.send(tap).unwrap();
            let broadcast = [[0xff; 6], [2, 0, 0, 0, 0, 9]].concat();
            let mut frame = [broadcast, vec![0x88, 0xb5]].concat();
            let mut random = Random(17);
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    frame.resize(14 + random.below(1500) as usize, 0x77);
                    // SAFETY: the frame lives through the call. What the tap has no room for is lost.
                    unsafe { libc::send(packets.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        (receiver.recv().unwrap(), Self { stop, thread: Some(thread) })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}

/// Brings `tap0` of this thread's namespace up. A packet socket that sends there.
fn packet_socket() -> OwnedFd {
    // SAFETY: makes a descriptor, which is checked and ours alone.
    let packets = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: plain data for which all zeroes is a valid value.
    let (mut request, mut address) =
        unsafe { (std::mem::zeroed::<libc::ifreq>(), std::mem::zeroed::<libc::sockaddr_ll>()) };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
    // SAFETY: both requests read or write one `ifreq`; the second fills the index that is read then.
    address.sll_ifindex = unsafe {
        assert_eq!(libc::ioctl(packets.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request), 0);
        assert_eq!(libc::ioctl(packets.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request), 0);
        request.ifr_ifru.ifru_ifindex
    };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: the address lives through the call and has the length given.
    assert_eq!(unsafe { libc::bind(packets.as_raw_fd(), (&raw const address).cast(), length) }, 0);
    packets
}

/// What is left of a VM's files when it has ended.
struct Files {
    broker: Broker,
    parent: tempfile::TempDir,
}

/// A VM with a disk, a network and shared files.
fn boot(kernel: &[u8]) -> (Victim, Files) {
    let vmm = Vmm::greeted();
    vmm.describe(machine(1), kernel, b"initramfs");
    disk(&vmm);
    let (tap, flood) = Flood::start();
    let network = NetworkConfig {
        name: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: NetworkLimits::default(),
        backend: NetworkBackend::default(),
    };
    vmm.done(&Request::AddNetwork(network), &[tap.as_fd()]);
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join(SENTINEL), SENTINEL).unwrap();
    let shared = tempfile::tempdir_in(parent.path()).unwrap();
    fs::create_dir(shared.path().join("d")).unwrap();
    fs::write(shared.path().join("f"), b"file").unwrap();
    let broker = Broker::sharing(shared);
    let config = FsConfig { tag: "volumes".into(), cache: FsCache::Auto };
    vmm.done(&Request::AddFs(config), &[broker.monitor.as_fd()]);
    vmm.done(&Request::Boot, &[]);
    (Victim::new(vmm, flood), Files { broker, parent })
}

impl Files {
    /// The broker lives, and what it does not share is as it was.
    fn are_sound(mut self) {
        assert!(self.broker.lives());
        let sentinel = fs::read_to_string(self.parent.path().join(SENTINEL)).unwrap();
        assert_eq!(sentinel, SENTINEL);
        assert_eq!(fs::read_dir(self.parent.path()).unwrap().count(), 2);
    }
}

/// A FUSE message (`fuse_in_header` and a body).
fn message(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).unwrap();
    let header = [
        [length, opcode].map(u32::to_le_bytes).concat(),
        [unique, node].map(u64::to_le_bytes).concat(),
        [0_u32; 4].map(u32::to_le_bytes).concat(),
    ];
    [header.concat(), body.to_vec()].concat()
}

/// `FUSE_INIT` of a guest that has good intentions.
fn init() -> Vec<u8> {
    message(
        26,
        1,
        0,
        &[7_u32, 38, 0x2_0000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat(),
    )
}

/// Sends messages to the file system that was just brought up, one after the other: each where it lies, its length, and
/// the room for its answer.
fn converse(mut code: Code, messages: &[(u32, u32, u32)]) -> Code {
    let ring = rings(FS, REQUESTS);
    for (count, (at, length, room)) in (1..).zip(messages) {
        let more = u32::from(*room > 0);
        code = descriptor(code, ring, 0, (*at, *length, more, 1));
        code = descriptor(code, ring, 1, (ANSWER, *room, 2, 0));
        // All entries of the ring are descriptor 0.
        code = submit(code, FS, REQUESTS, count);
    }
    code
}

/// The device is brought up, greeted, and asked for the shared folder: prints the error of the answer, four zeroes.
fn greet_and_look_up(code: Code, at: u32) -> Code {
    let code = start(code, FS, 2).store(ANSWER + 4, 1);
    let init = u32::try_from(init().len()).unwrap();
    let code = converse(code, &[(at, init, 4096), (at + 0x100, 42, 4096)]);
    code.load(ANSWER + 4).print_eax()
}

/// Sees whether everything still works: takes memory back from network and files, reads the disk, asks for the folder.
fn look_around(code: Code) -> Code {
    let code = [NET, FS].into_iter().fold(code, |code, window| code.store(window + STATUS, 0));
    greet_and_look_up(read_the_disk(code), MESSAGES)
}

/// What [`look_around`] says where all is well.
const ALL_WELL: [u8; 5] = [DISK, 0, 0, 0, 0];

/// What [`greet_and_look_up`] sends.
fn greeting() -> Vec<u8> {
    let mut bytes = init();
    bytes.resize(0x100, 0);
    bytes.extend(message(1, 2, 1, b"x\0"));
    bytes
}

/// A kernel with data for its devices.
fn kernel(code: &Code, messages: &[u8]) -> Vec<u8> {
    assert!(code.bytes().len() < (RINGS - ENTRY) as usize);
    Elf::new(code.bytes()).segment(MESSAGES, messages).build()
}

#[test]
fn random_registers_in_random_order() {
    for seed in 21..=23 {
        let code = random_accesses(&mut Random(seed), &DEVICES, 6000, Code::new());
        let code = look_around(code).halt();
        let (victim, files) = boot(&kernel(&code, &greeting()));
        victim.wait_for_console(5);
        assert_eq!(victim.end(), ALL_WELL, "seed {seed}");
        files.are_sound();
    }
}

#[test]
fn queues_that_are_reprogrammed_while_they_run() {
    let mut random = Random(27);
    let mut code = Code::new();
    for round in 0..300 {
        let window = [NET, FS][random.below(2) as usize];
        code = start(code, window, 2);
        for queue in 0..2 {
            // One buffer of the host's, one of the guest's: a frame comes, a frame goes, a message is answered.
            let ring = rings(window, queue);
            code = descriptor(code, ring, 0, (BUFFERS, 2048, 2 * u32::from(window == NET && queue == RX), 0));
            code = code.store(ring + 0x100, 1 << 16).store(window + NOTIFY, queue);
        }
        code = reprogram(&mut random, window, code);
        if round % 100 == 99 {
            code = look_around(code);
        }
    }
    let (victim, files) = boot(&kernel(&code.halt(), &greeting()));
    let stats = victim.wait_for_console(15);
    assert!(stats.devices["net-eth0"].notifications > 3, "{stats:?}");
    assert_eq!(victim.end(), ALL_WELL.repeat(3));
    files.are_sound();
}

#[test]
fn chains_that_loop_and_chains_of_nonsense() {
    let mut random = Random(29);
    let mut code = Code::new();
    for (window, queues) in [(NET, 2), (FS, 2)] {
        for round in 0..48 {
            code = bad_chains(&mut random, (window, queues), round, code);
        }
        code = code.load(window + STATUS);
    }
    let code = look_around(code).halt();
    let (victim, files) = boot(&kernel(&code, &greeting()));
    victim.wait_for_console(5);
    assert_eq!(victim.end(), ALL_WELL);
    files.are_sound();
}

#[test]
fn floods_of_frames_and_messages_starve_nobody() {
    let (mut code, getattr) = (start(start(Code::new(), NET, 2), FS, 2), MESSAGES + 0x1000);
    let headers = rings(FS, REQUESTS);
    for index in 0..8 {
        // Frames with an empty header of what this driver has accepted, and room for those of the host.
        code = descriptor(code, rings(NET, TX), index, (BUFFERS + 0x1_0000, 1000, 0, 0));
        code =
            descriptor(code, rings(NET, RX), index, (BUFFERS + 0x2_0000 + 0x1_0000 * index, 0x1_0000, 2, 0));
        for queue in [RX, TX] {
            code = code.store(rings(NET, queue) + 0x104 + 2 * index, index | (index + 1) << 16);
        }
    }
    for pair in 0..4 {
        code = descriptor(code, headers, 2 * pair, (getattr, 56, 1, 2 * pair + 1));
        code = descriptor(code, headers, 2 * pair + 1, (ANSWER + 0x100 * pair, 0x100, 2, 0));
    }
    for pair in 0..4 {
        // Entries of two bytes: the heads 0, 2, 4, 6, and again.
        let heads = if pair % 2 == 0 { 2 << 16 } else { 6 << 16 | 4 };
        code = code.store(headers + 0x104 + 4 * pair, heads);
    }
    let again = code.here();
    for _ in 0..50 {
        code = offer_again(code, NET, TX, 8);
        code = offer_again(code, NET, RX, 8);
        code = offer_again(code, FS, REQUESTS, 4);
        code = code.store(FS + NOTIFY, 0);
    }
    let code = read_the_disk(code).jump(again);
    let mut messages = greeting();
    messages.resize(0x1000, 0);
    messages.extend(message(3, 3, 1, &[0; 16]));
    let (victim, files) = boot(&kernel(&code, &messages));
    let stats = victim.wait_for_console(20);
    let [net, files_device] = ["net-eth0", "fs-volumes"].map(|name| stats.devices[name]);
    assert!(net.bytes_from_guest > 0 && net.bytes_to_guest > 0, "{stats:?}");
    assert!(files_device.notifications > 0 && files_device.interrupts > 0, "{stats:?}");
    assert_eq!(net.failures + files_device.failures, 0, "{stats:?}");
    let console = victim.end();
    assert!(console.iter().all(|byte| *byte == DISK), "{console:?}");
    files.are_sound();
}

/// What may be asked, rightly or wrongly.
fn any_message(random: &mut Random, unique: u64) -> Vec<u8> {
    let opcode = if random.below(16) == 0 { random.any() } else { random.below(56) };
    let node = u64::from(if random.below(4) == 0 { random.any() } else { random.below(6) });
    let mut body = Vec::new();
    for _ in 0..random.below(8) {
        let word = if random.below(3) == 0 { random.any() } else { random.below(8) };
        body.extend(u64::from(word).to_le_bytes());
    }
    for _ in 0..random.below(3) {
        let names: [&[u8]; 8] =
            [b"f\0", b"d\0", b"..\0", b"../sentinel\0", b"/etc\0", b"x\0", b"new\0", b"no end"];
        body.extend(names[random.below(8) as usize]);
    }
    let mut message = message(opcode, unique, node, &body);
    match random.below(16) {
        0 => message[..4].copy_from_slice(&random.any().to_le_bytes()),
        1 => message.truncate(random.below(41) as usize),
        _ => {}
    }
    message
}

#[test]
fn messages_to_the_file_system_in_any_order() {
    for seed in [31, 33] {
        let mut random = Random(seed);
        let mut data = greeting();
        data.resize(0x1000, 0);
        let mut messages = Vec::new();
        for unique in 10..3000 {
            let message = any_message(&mut random, unique);
            let room = [0, 8, 16, 160, 4096][random.below(5) as usize];
            let at = MESSAGES + u32::try_from(data.len()).unwrap();
            messages.push((at, u32::try_from(message.len()).unwrap().max(1), room));
            data.extend(message);
            data.push(0);
        }
        // First without a greeting, then after one.
        let (early, late) = messages.split_at(messages.len() / 4);
        let code = converse(start(Code::new(), FS, 2), early);
        let code = converse(greet_and_look_up(code, MESSAGES), &[]);
        let code = converse(start(code, FS, 2), late);
        let code = look_around(code).halt();
        let (victim, files) = boot(&kernel(&code, &data));
        let stats = victim.wait_for_console(9);
        assert_eq!(stats.devices["fs-volumes"].failures, 0, "{stats:?}");
        assert_eq!(victim.end(), [0, 0, 0, 0, DISK, 0, 0, 0, 0], "seed {seed}");
        files.are_sound();
    }
}

#[test]
fn frames_with_headers_of_nonsense() {
    let mut random = Random(37);
    let mut code = start(Code::new(), NET, 2);
    let mut frames = greeting();
    frames.resize(0x1000, 0);
    for count in 1..1500 {
        let at = MESSAGES + u32::try_from(frames.len()).unwrap();
        for _ in 0..16 {
            let word = if random.below(2) == 0 { random.any() } else { random.below(4) };
            frames.extend(word.to_le_bytes());
        }
        let length = [0, 1, 11, 12, 13, 26, 64, 1526, 0x1_1000][random.below(9) as usize];
        code = descriptor(code, rings(NET, TX), 0, (at, length, 0, 0));
        code = submit(code, NET, TX, count);
    }
    frames.resize(frames.len() + 0x1_1000, 0);
    let code = look_around(code).halt();
    let (victim, files) = boot(&kernel(&code, &frames));
    let stats = victim.wait_for_console(5);
    assert_eq!(stats.devices["net-eth0"].failures, 0, "{stats:?}");
    assert_eq!(victim.end(), ALL_WELL);
    files.are_sound();
}
