//! The monitor alone, with a guest of a few instructions on this machine's `/dev/kvm`: how long it takes from `exec`, fully
//! jailed, until the guest has said its first word, where that time goes, and what memory it takes.
//!
//! `hull-bench monitor [--peer FIRECRACKER]`; `HULL_VMM` names another monitor. The peer is any program that takes
//! `--no-api --config-file` as Firecracker does.

use std::fs::File;
use std::io::{Read, Seek, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::control::hand_over;
use crate::memory;
use crate::tap::tap;
use hull_protocol::vmm::{
    Channel, CpuTemplate, DiskAccess, DiskConfig, DiskDiscard, DiskExtent, JailConfig, JailNetwork,
    MachineConfig, Message, NetworkBackend, NetworkConfig, NetworkLimits, RateLimits, Request, VERSION,
    VsockConfig,
};

const ROUNDS: usize = 200;
const GUEST_MIB: u32 = 64;
/// What the guest says first. No log says it.
const WORD: u8 = 2;

/// A 32-bit guest in an ELF file with a PVH note: it says its word and a line feed on the serial console, and halts.
fn kernel() -> Vec<u8> {
    const ENTRY: u32 = 0x10_0000;
    // mov dx, 0x3f8; mov al, WORD; out dx, al; mov al, '\n'; out dx, al; cli; hlt; jmp back
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, WORD, 0xee, 0xb0, b'\n', 0xee, 0xfa, 0xf4, 0xeb, 0xfd];
    let note =
        [[4_u32, 4, 18].map(u32::to_le_bytes).concat(), b"Xen\0".to_vec(), ENTRY.to_le_bytes().to_vec()];
    let note = note.concat();
    let data_at = 64 + 2 * 56_u64;
    let segment = |kind: u32, at: u64, address: u64, length: usize| {
        let length = length as u64;
        let words = [at, address, address, length, length, 4].map(u64::to_le_bytes).concat();
        [[kind, 7].map(u32::to_le_bytes).concat(), words].concat()
    };
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([u64::from(ENTRY), 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend(segment(1, data_at, ENTRY.into(), code.len()));
    file.extend(segment(4, data_at + code.len() as u64, 0, note.len()));
    file.extend(code);
    file.extend(note);
    file
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Steps from the start of the process, in their order.
const STEPS: [&str; 6] = [
    "`exec` and first answer",
    "the jail closes",
    "the machine is described",
    "disk, network and vsock are described",
    "the VM is built",
    "the guest's first word",
];

/// A monitor whose guest has spoken, and when each step was done.
struct Started {
    child: Child,
    done: [Duration; STEPS.len()],
    channel: Channel,
}

struct Parts {
    vmm: PathBuf,
    kernel: File,
    initramfs: File,
    disk: File,
    tap: OwnedFd,
    socket: tempfile::TempDir,
}

impl Parts {
    fn new() -> Self {
        let vmm = std::env::var_os("HULL_VMM").map_or_else(beside_this_program, PathBuf::from);
        Self {
            vmm,
            kernel: file(&kernel()),
            initramfs: file(b"initramfs"),
            disk: file(&[0; 1 << 20]),
            tap: tap(),
            socket: tempfile::tempdir().unwrap(),
        }
    }

    fn start(&self) -> Started {
        let kvm = File::options().read(true).write(true).open("/dev/kvm").unwrap();
        let (mut console, log) = pipe().unwrap();
        let path = self.socket.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let (channel, theirs) = Channel::pair().unwrap();
        let theirs = OwnedFd::from(theirs);
        let mut command = Command::new(&self.vmm);
        command.stdin(Stdio::null()).env_clear();
        hand_over(&mut command, &theirs);
        let start = Instant::now();
        let child = command.spawn().unwrap();
        let ask = |request: Request, fds: &[BorrowedFd<'_>]| {
            channel.send(&request, fds).unwrap();
            let answer = channel.receive::<Message>().unwrap().unwrap().message;
            assert_eq!(answer, Message::Done, "{request:?}");
            start.elapsed()
        };
        let hello = ask(Request::Hello { version: VERSION }, &[]);
        let someone = 0x7000_0000 + child.id();
        let jail = JailConfig::Full { uid: someone, gid: someone, network: JailNetwork::Empty };
        let jailed = ask(Request::Jail(jail), &[]);
        let config = MachineConfig {
            vcpus: 1,
            online_vcpus: None,
            cpu: CpuTemplate::Host,
            memory_mib: GUEST_MIB,
            kernel_args: String::new(),
            console_limit_bytes: 4096,
        };
        let fds = [kvm.as_fd(), self.kernel.as_fd(), self.initramfs.as_fd(), log.as_fd()];
        let machine = ask(Request::Machine(config), &fds);
        let disk = DiskConfig {
            serial: "disk".into(),
            access: DiskAccess::ReadOnly,
            extents: vec![DiskExtent { offset: 0, length: 1 << 20 }],
            discard: DiskDiscard::Off,
            limits: RateLimits::default(),
        };
        ask(Request::AddDisk(disk), &[self.disk.as_fd()]);
        let network = NetworkConfig {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            limits: NetworkLimits::default(),
            backend: NetworkBackend::default(),
        };
        ask(Request::AddNetwork(network), &[self.tap.as_fd()]);
        let vsock = VsockConfig { guest_cid: 3, guest_to_host_ports: Vec::new() };
        let devices = ask(Request::AddVsock(vsock), &[listener.as_fd()]);
        let built = ask(Request::Boot, &[]);
        drop(log);
        let mut byte = [0];
        console.read_exact(&mut byte).unwrap();
        let spoken = start.elapsed();
        assert_eq!(byte, [WORD]);
        Started { child, done: [hello, jailed, machine, devices, built, spoken], channel }
    }
}

impl Started {
    fn stop(mut self) {
        self.channel.send(&Request::Stop, &[]).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

fn beside_this_program() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|folder| folder.ends_with("target")).unwrap();
    target.join("release/hull-vmm")
}

/// The values below which half and 99 of 100 are.
fn percentiles(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort_unstable();
    [times[times.len() / 2], times[(times.len() * 99 / 100).min(times.len() - 1)]]
}

fn row(what: &str, times: Vec<Duration>) {
    let [half, most] = percentiles(times).map(|time| format!("{:.2} ms", time.as_secs_f64() * 1e3));
    println!("| {what} | {half} | {most} |");
}

/// `exec` of a peer to the guest's first word, in its standard output.
fn peer(program: &Path) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let kernel_path = folder.path().join("kernel");
    std::fs::write(&kernel_path, kernel()).unwrap();
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel_path, "boot_args": "" },
        "drives": [],
        "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB },
    });
    let config_path = folder.path().join("config.json");
    std::fs::write(&config_path, config.to_string()).unwrap();
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(["--no-api", "--config-file"])
        .arg(&config_path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0];
    while byte != [WORD] {
        let read = output.read(&mut byte).unwrap();
        assert_eq!(read, 1, "the peer ended before its guest spoke");
    }
    let took = start.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    took
}

/// Prints the tables.
pub fn run(peer_program: Option<&Path>) {
    let parts = Parts::new();
    // The first one is not counted: it brings the program into the page cache.
    parts.start().stop();
    let runs: Vec<[Duration; STEPS.len()]> = (0..ROUNDS)
        .map(|_| {
            let started = parts.start();
            let done = started.done;
            started.stop();
            done
        })
        .collect();
    println!("| from `exec` of hull-vmm, {ROUNDS} times | p50 | p99 |\n|---|---:|---:|");
    for (step, what) in STEPS.iter().enumerate() {
        let before =
            |done: &[Duration; STEPS.len()]| step.checked_sub(1).map_or(Duration::ZERO, |step| done[step]);
        row(what, runs.iter().map(|done| done[step] - before(done)).collect());
    }
    row("**all together**", runs.iter().map(|done| done[STEPS.len() - 1]).collect());
    if let Some(program) = peer_program {
        peer(program);
        row("the peer, without a jail and without devices", (0..ROUNDS).map(|_| peer(program)).collect());
    }
    let started = parts.start();
    let (outside, _) = memory::split(started.child.id().into(), u64::from(GUEST_MIB) << 20);
    println!("\nPrivate memory besides the guest's: {} KiB (PSS {} KiB).", outside.private, outside.pss);
    started.stop();
}
