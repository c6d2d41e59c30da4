//! The jail from outside: what `/proc` says of each thread of a running monitor, where anything that is not expected is a
//! failure; and what happens to a process inside it that misbehaves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests, with helpers outside of test functions")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hull_protocol::fs::BrokerChannel;
use hull_protocol::vmm::{
    Channel, DENIED_STATUS, DiskAccess, DiskConfig, DiskDiscard, DiskExtent, ExitReason, FailureCode,
    FsCache, FsConfig, JailConfig, JailNetwork, RateLimits, Request, TokenBucket, VERSION, VsockConfig,
};
use hull_vmm::jail::limits::FILES;
use nix::sys::resource::{Resource, getrlimit};
use support::guest::Code;
use support::shim::{Vmm, file, machine};

/// The namespaces that a monitor has for itself.
const OWN: [&str; 5] = ["cgroup", "ipc", "mnt", "net", "uts"];

/// The roles by the names that the example knows them by: those of the monitor's threads, and the file broker's.
const ROLES: [&str; 4] = ["event-loop", "vcpu", "files", "broker"];

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can ask for the full jail");
    }
    root
}

/// A VM with two vCPUs and one device of each kind. Its guest takes hold of each device, notifies all its queues,
/// resets it, several times, and halts.
fn boot_all_kinds() -> Vmm {
    let mut code = Code::new();
    for _ in 0..3 {
        for (slot, queues) in [(0, 1), (1, 3), (2, 1), (3, 2), (4, 1), (5, 2)] {
            code = drive(code, 0xd000_0000 + 0x1000 * slot, queues);
        }
    }
    let vmm = Vmm::greeted();
    vmm.describe(machine(2), &code.print("done").halt().kernel(), b"initramfs");
    let extents = vec![DiskExtent { offset: 0, length: 4096 }];
    let bucket = TokenBucket { size: NonZeroU64::MIN, refill_ms: NonZeroU32::MIN, one_time_burst: 0 };
    let limits = RateLimits { bandwidth: None, operations: Some(bucket) };
    let discard = DiskDiscard::Off;
    let disk = DiskConfig { serial: "rootfs".into(), access: DiskAccess::ReadOnly, extents, discard, limits };
    vmm.done(&Request::AddDisk(disk), &[file(&[0; 4096]).as_fd()]);
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
    let (_ours, theirs) = Channel::pair().unwrap();
    let vsock = VsockConfig { guest_cid: 3, guest_to_host_ports: vec![1024] };
    vmm.done(&Request::AddVsock(vsock), &[listener.as_fd(), OwnedFd::from(theirs).as_fd()]);
    vmm.done(&Request::AddEntropy, &[]);
    vmm.done(&Request::AddBalloon, &[]);
    vmm.done(&Request::AddHotplugMemory { mib: 128 }, &[]);
    let (broker, _) = BrokerChannel::pair().unwrap();
    let fs = FsConfig { tag: "volumes".into(), cache: FsCache::Auto };
    vmm.done(&Request::AddFs(fs), &[OwnedFd::from(broker).as_fd()]);
    vmm.done(&Request::Boot, &[]);
    // Answers from the event loop, while the guest works.
    while vmm.stats().console_bytes < 3 * 6 + 4 {
        std::thread::yield_now();
    }
    vmm
}

/// A driver from its first register to the reset (virtio 1.3 §3.1.1, §4.2.2).
fn drive(mut code: Code, window: u32, queues: u32) -> Code {
    let mut set = |offset: u32, value: u32| {
        code = std::mem::take(&mut code).store(window + offset, value);
    };
    for (offset, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 11)] {
        set(offset, value);
    }
    for queue in 0..queues {
        let memory = 0x20_0000 + 0x3000 * queue;
        let rings = [(0x80, memory), (0x90, memory + 0x1000), (0xa0, memory + 0x2000)];
        for (offset, value) in [[(0x30, queue), (0x38, 8)].as_slice(), &rings, &[(0x44, 1)]].concat() {
            set(offset, value);
        }
    }
    set(0x70, 15);
    for queue in 0..queues {
        set(0x50, queue);
    }
    // Still DRIVER_OK, which an accident of the device would have ended.
    code.load(window + 0x70).print_al().store(window + 0x70, 0)
}

/// The folders of a monitor's threads in `/proc` by name, without those that KVM, io_uring and vhost add: they never
/// leave the kernel.
fn threads(vmm: &Vmm) -> BTreeMap<String, PathBuf> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
    tasks
        .map(|task| task.unwrap().path())
        .map(|path| (fs::read_to_string(path.join("comm")).unwrap().trim().to_owned(), path))
        .filter(|(name, _)| !["kvm-", "iou-", "vhost-"].iter().any(|kernel| name.starts_with(kernel)))
        .collect()
}

/// The lines of a thread's `status`.
fn status(thread: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(thread.join("status")).unwrap();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

/// A VM whose threads all run: each closes its filter itself, a moment after it was made.
fn boot_and_settle() -> (Vmm, BTreeMap<String, PathBuf>) {
    let vmm = boot_all_kinds();
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        let threads = threads(&vmm);
        let filtered = threads.values().all(|thread| status(thread)["Seccomp_filters"] == "2");
        if threads.len() == 4 && filtered || Instant::now() > patience {
            return (vmm, threads);
        }
        std::thread::yield_now();
    }
}

#[test]
fn every_thread_is_jailed() {
    let (vmm, threads) = boot_and_settle();
    assert_eq!(threads.keys().collect::<Vec<_>>(), ["fs", "hull-vmm", "vcpu0", "vcpu1"]);
    for (name, thread) in &threads {
        let status = status(thread);
        let mut expected: Vec<(&str, String)> =
            [("Seccomp", "2"), ("Seccomp_filters", "2"), ("NoNewPrivs", "1")]
                .map(|(key, value)| (key, value.to_owned()))
                .into();
        let none = format!("{:016x}", 0);
        expected.extend(["CapInh", "CapPrm", "CapEff", "CapAmb"].map(|set| (set, none.clone())));
        if is_root() {
            let ids = [vmm.someone(); 4].map(|id| id.to_string()).join(" ");
            expected.extend([
                ("CapBnd", none),
                ("Uid", ids.clone()),
                ("Gid", ids),
                ("Groups", String::new()),
            ]);
        }
        for (key, value) in expected {
            assert_eq!(status[key], value, "{name}: {key}");
        }
    }
}

#[test]
fn every_thread_has_its_own_namespaces_and_an_empty_root() {
    if !is_root() {
        return;
    }
    let (_vmm, threads) = boot_and_settle();
    let names = |process: &Path| -> BTreeSet<(String, PathBuf)> {
        let links = fs::read_dir(process.join("ns")).unwrap().map(|link| link.unwrap().path());
        links
            .map(|link| (link.file_name().unwrap().to_string_lossy().into_owned(), link))
            .filter(|(name, _)| !name.ends_with("_for_children"))
            .map(|(name, link)| (name, fs::read_link(link).unwrap()))
            .collect()
    };
    let ours = names(Path::new("/proc/thread-self"));
    for (name, thread) in &threads {
        let own: Vec<String> = names(thread).difference(&ours).map(|(name, _)| name.clone()).collect();
        assert_eq!(own, OWN, "{name}");
        let mounts = fs::read_to_string(thread.join("mountinfo")).unwrap();
        let mounts: Vec<&str> = mounts.lines().collect();
        let [mount] = mounts[..] else { panic!("{name} sees {mounts:?}") };
        let words: Vec<&str> = mount.split(' ').collect();
        assert_eq!(words[3..5], ["/", "/"], "{name}: {mount}");
        let options: Vec<&str> = words[5].split(',').collect();
        assert_eq!(options[..4], ["ro", "nosuid", "nodev", "noexec"], "{name}: {mount}");
        assert!(mount.contains(" - tmpfs "), "{name}: {mount}");
        let root = thread.join("root");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "{name}");
        assert_eq!(File::create(root.join("x")).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        assert_eq!(fs::read_link(thread.join("cwd")).unwrap(), Path::new("/"));
        let interfaces = fs::read_to_string(thread.join("net/dev")).unwrap();
        let interfaces: Vec<&str> =
            interfaces.lines().skip(2).filter_map(|line| line.trim().split(':').next()).collect();
        assert_eq!(interfaces, ["lo"], "{name}");
    }
}

#[test]
fn devices_work_under_the_filters() {
    let vmm = boot_all_kinds();
    // What starts and resets a device runs on the vCPU's thread: a denied call there would have been the end.
    assert!(vmm.stats().exits["mmio_write"] > 3 * 6 * 10);
    vmm.done(&Request::Stop, &[]);
    let (reason, console, status) = vmm.end();
    let expected = [[15; 3 * 6].as_slice(), b"done"].concat();
    assert_eq!((reason, console, status), (ExitReason::Stopped, expected, 0));
}

#[test]
fn limits_are_set_and_its_memory_is_hidden() {
    let (vmm, _) = boot_and_settle();
    let process = PathBuf::from(format!("/proc/{}", vmm.pid()));
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let limit = |name: &str| -> Vec<String> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect()
    };
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Root may raise the host's limit.
    let files = [FILES, most.min(FILES)].map(|files| vec![files.to_string(); 2]);
    assert!(files.contains(&limit("Max open files")), "{limits}");
    // What belongs to a process that may not be looked into belongs to root.
    assert_eq!(fs::metadata(process.join("maps")).unwrap().uid(), 0);
    let maps = fs::read_to_string(process.join("maps"));
    let Ok(maps) = maps else { return assert!(!nix::unistd::geteuid().is_root()) };
    assert!(!maps.lines().any(|line| line.split(' ').nth(1).is_some_and(|access| access.contains("wx"))));
}

#[test]
fn open_descriptors_are_those_of_the_list() {
    let (vmm, _) = boot_and_settle();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for link in fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap() {
        let link = link.unwrap();
        let number: u32 = link.file_name().to_string_lossy().parse().unwrap();
        let target = fs::read_link(link.path()).unwrap().to_string_lossy().into_owned();
        let kind = match number {
            0 => target,
            1 | 2 => "standard output and error".to_owned(),
            3 => format!("control {}", target.split(':').next().unwrap()),
            // The tests' own files have no name.
            _ if target.ends_with("(deleted)") => "file".to_owned(),
            _ => target.trim_end_matches(|c: char| c.is_ascii_digit() || ":[]".contains(c)).to_owned(),
        };
        *found.entry(kind).or_default() += 1;
    }
    // A disk has a ring and its event where the host lets us have one.
    let rings = usize::from(io_uring::IoUring::new(2).is_ok());
    let expected = [
        ("/dev/null", 1),
        ("standard output and error", 2),
        ("control socket", 1),
        // The disk and the console's log.
        ("file", 2),
        // vsock: the listener and the channel of its port. The file broker's, twice.
        ("socket", 2 + 2),
        ("anon_inode:kvm-vm", 1),
        ("anon_inode:kvm-vcpu", 2),
        ("anon_inode:kvm-vcpu-stats", 2),
        // The end of the VM, the console's interrupt; each device's interrupt, and two for each of its queues.
        // And what the balloon and the memory hear by how large they are to be, and what the file system reports by.
        ("anon_inode:[eventfd", 2 + 6 + 2 * (1 + 3 + 1 + 4 + 1 + 2) + 2 + 1 + rings),
        // The disk's limits.
        ("anon_inode:[timerfd", 1),
        ("anon_inode:[io_uring", rings),
        // The event loop, and vsock's connections.
        ("anon_inode:[eventpoll", 2),
    ];
    let expected: BTreeMap<String, usize> = expected
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| (kind.to_owned(), count))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_jail_that_cannot_close_is_an_error() {
    for (uid, gid) in [(0, 5), (5, 0), (u32::MAX, 5)] {
        let vmm = Vmm::spawn();
        vmm.done(&Request::Hello { version: VERSION }, &[]);
        let jail = JailConfig::Full { uid, gid, network: JailNetwork::Empty };
        let message = vmm.refused(&Request::Jail(jail), &[], FailureCode::Jail);
        assert_eq!(message, "the jail needs a user and a group other than 0");
        // It may be half closed: nothing but Stop is left.
        vmm.refused(&Request::Jail(JailConfig::Unprivileged), &[], FailureCode::WrongState);
        vmm.done(&Request::Stop, &[]);
        assert_eq!(vmm.end().0, ExitReason::Stopped);
    }
}

#[test]
fn a_pods_network_is_kept() {
    if !is_root() {
        return;
    }
    let vmm = Vmm::spawn();
    vmm.done(&Request::Hello { version: VERSION }, &[]);
    let id = vmm.someone();
    vmm.done(&Request::Jail(JailConfig::Full { uid: id, gid: id, network: JailNetwork::Inherited }), &[]);
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
    assert_eq!(of(&vmm.pid().to_string()), of("self"));
    vmm.done(&Request::Stop, &[]);
    assert_eq!(vmm.end().0, ExitReason::Stopped);
}

/// Runs the example that misbehaves.
fn probe(words: &str) -> Output {
    // target/debug/deps/jail-HASH -> target/debug/examples/jail-probe
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples/jail-probe");
    Command::new(&path).args(words.split(' ')).output().expect("cargo builds examples with the tests")
}

fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn nothing_is_within_reach() {
    if !is_root() {
        return;
    }
    let found = lines(&probe("full 1879048192"));
    let walls = [
        "open /etc/passwd ENOENT",
        "create /x EROFS",
        "setuid 0 EPERM",
        "chroot EPERM",
        "parent's death Some(SIGKILL)",
        "dumpable false",
    ];
    assert_eq!(found[2..], walls);
    // Landlock, where the host has it, hides even that the root is empty and that there is no network.
    assert!(matches!(found[0].as_str(), "open / EACCES" | "open / done"), "{found:?}");
    assert!(matches!(found[1].as_str(), "connect EACCES" | "connect ENETUNREACH"), "{found:?}");
}

#[test]
fn without_privileges_there_is_a_jail_if_it_is_asked_for() {
    if !is_root() {
        return;
    }
    let found = lines(&probe("nobody unprivileged"));
    assert_eq!(
        found[4..],
        ["setuid 0 EPERM", "chroot EPERM", "parent's death Some(SIGKILL)", "dumpable false"]
    );
    let refused = probe("nobody full");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        message.contains("Operation not permitted") && message.contains("leave its namespaces"),
        "{message}"
    );
}

#[test]
fn a_thread_without_a_role_is_not_free() {
    assert_denied("nothing", "openat", &libc::SYS_openat.to_string());
    assert_denied("nothing", "execve", &libc::SYS_execve.to_string());
    let output = probe("nothing live");
    assert!(output.status.success(), "{output:?}");
}

/// That the call ends the process with its name in the log.
fn assert_denied(role: &str, name: &str, call: &str) {
    let output = probe(&format!("{role} call {call}"));
    let message = String::from_utf8(output.stderr).unwrap();
    let number = call.split(' ').next().unwrap();
    let (program, who) = if role == "broker" { ("hull-fsd", "file broker") } else { ("hull-vmm", "monitor") };
    let line = format!(
        "{program}: thread jail-probe made the system call {name} ({number}), which its filter denies: the {who} ends\n"
    );
    assert_eq!(message, line, "{role} {call}");
    assert_eq!(output.status.code(), Some(DENIED_STATUS), "{role} {call}");
}

#[test]
fn a_denied_call_is_named_and_kills() {
    for role in ROLES {
        for (name, number) in [
            ("open", libc::SYS_open),
            ("execve", libc::SYS_execve),
            ("socket", libc::SYS_socket),
            ("connect", libc::SYS_connect),
            ("ptrace", libc::SYS_ptrace),
            ("clone3", libc::SYS_clone3),
            ("mount", libc::SYS_mount),
            ("kill", libc::SYS_kill),
            ("rt_sigaction", libc::SYS_rt_sigaction),
            ("seccomp", libc::SYS_seccomp),
            ("io_uring_setup", libc::SYS_io_uring_setup),
        ] {
            assert_denied(role, name, &number.to_string());
        }
        // What the broker is for.
        let openat = libc::SYS_openat.to_string();
        if role == "broker" {
            assert!(probe(&format!("{role} call {openat}")).status.success());
        } else {
            assert_denied(role, "openat", &openat);
        }
    }
}

#[test]
fn arguments_are_looked_at() {
    let call = |number: libc::c_long, arguments: &str| format!("{number} {arguments}");
    let (rw, rwx) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let mmap = |protection, flags| call(libc::SYS_mmap, &format!("0 4096 {protection} {flags} 4294967295 0"));
    for role in ROLES {
        for allowed in [mmap(rw, private), call(libc::SYS_getpid, "0")] {
            let output = probe(&format!("{role} call {allowed}"));
            assert!(output.status.success(), "{role} {allowed}: {output:?}");
        }
        assert_denied(role, "mmap", &mmap(rwx, private));
        assert_denied(role, "mmap", &mmap(rw, libc::MAP_SHARED));
        assert_denied(role, "mprotect", &call(libc::SYS_mprotect, &format!("0 4096 {rwx}")));
        // KVM_CREATE_VM
        assert_denied(role, "ioctl", &call(libc::SYS_ioctl, "0 44545 0"));
        assert_denied(role, "prctl", &call(libc::SYS_prctl, &format!("{} 1", libc::PR_SET_DUMPABLE)));
        assert_denied(role, "tgkill", &call(libc::SYS_tgkill, "1 1 9"));
        assert_denied(role, "tgkill", &call(libc::SYS_tgkill, "1 1 34"));
    }
    let inet = format!("{} {} 0 0", libc::AF_INET, libc::SOCK_STREAM);
    assert_denied("event-loop", "socketpair", &call(libc::SYS_socketpair, &inet));
    let datagrams = format!("{} {} 0 0", libc::AF_UNIX, libc::SOCK_DGRAM);
    assert_denied("event-loop", "socketpair", &call(libc::SYS_socketpair, &datagrams));
    // KVM_RUN is no business of the event loop's.
    assert_denied("event-loop", "ioctl", &call(libc::SYS_ioctl, "0 44672 0"));
    assert_denied("vcpu", "accept4", &call(libc::SYS_accept4, "0"));
    assert_denied("files", "ioctl", &call(libc::SYS_ioctl, "0 44672 0"));
    assert_denied("broker", "fcntl", &call(libc::SYS_fcntl, &format!("0 {} 1", libc::F_SETOWN)));
}

#[test]
fn threads_live_and_panic_under_their_filters() {
    for role in ROLES {
        let output = probe(&format!("{role} live"));
        assert!(output.status.success(), "{role}: {output:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "lived, 1000 entries\n".repeat(2));
        let output = probe(&format!("{role} panic"));
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{role}: {output:?}");
        assert!(!output.status.core_dumped() || !is_root());
    }
}
